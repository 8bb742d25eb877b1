"""Loading weights, never code."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dnas.models.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of data-parallel and of compiled models
_HOW_TO_SAVE = "save a state dict: torch.save(model.state_dict(), 'weights.pt')"
_SHOWN = 8


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Copies the weights of a file into a model.

    Counters of batch normalisation (`num_batches_tracked`) may be missing, as in old files.

    Args:
        model: changed in place.
        path: a `.safetensors`, `.pt` or `.pth` file: a state dict, or a dict which holds one as "state_dict",
            "model_state_dict" or "model".

    Raises:
        ModelError: no such file, another content than a state dict, or keys or shapes which differ from the model's.
    """
    if not path.is_file():
        raise ModelError(f"model.checkpoint is {path}, where no file exists; give an existing file, or null")
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model.checkpoint {path} is not a complete safetensors file ({error}); copy or save it again"
            ) from error
    elif path.suffix in (".pt", ".pth"):
        weights = _unwrapped(_read_pickle(path), path)
    else:
        raise ModelError(
            f"model.checkpoint is {path}; allowed: .safetensors, .pt or .pth: rename the file after its format"
        )
    for prefix in _PREFIXES:
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    _copy(model, weights, path)


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript archives, which the error below covers
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.checkpoint {path} holds more than weights (a whole pickled model, or damaged data), which could "
            f"run any code and is not loaded; where you trust it, load it by yourself and {_HOW_TO_SAVE}"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"model.checkpoint {path} cannot be read ({reason}); it may be incomplete or a TorchScript archive: "
            f"copy it again, or {_HOW_TO_SAVE}"
        ) from error


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if isinstance(content, Mapping):
        others = [
            str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))
        ]
        if not others:
            return dict(content)
        found = f"a dict with other values than tensors, at {', '.join(others[:_SHOWN])}"
    else:
        found = f"a {type(content).__name__}"
    raise ModelError(
        f"model.checkpoint {path} holds {found}; allowed: a state dict, bare or under one of "
        f"{', '.join(_WRAPPERS)}: {_HOW_TO_SAVE}"
    )


def _copy(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    conflicts = [
        f"{key} (file {list(weights[key].shape)}, model {list(own[key].shape)})"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [
        f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''}"
        for what, items in (
            ("missing in the file", missing),
            ("unknown to the model", unexpected),
            ("of another shape", conflicts),
        )
        if items
    ]
    if problems:
        raise ModelError(
            f"model.checkpoint {path} does not fit the model; keys {'; '.join(problems)}; "
            "choose the model.target and model.arguments with which it was saved"
        )
    model.load_state_dict({**own, **weights})
