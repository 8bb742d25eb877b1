"""Loading weights, never code."""

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
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
_FOLDER = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHOWN = 8


def load_weights(model: nn.Module, path: str | Path, skip: Sequence[str] = ()) -> None:
    """Copies the weights of a file into a model; of half precision into float32, too.

    A prefix of every key (`module.`, `_orig_mod.`, or another one without which the keys fit) is dropped. Counters of
    batch normalisation (`num_batches_tracked`) may be missing, as in old files; so may all but one key of a weight that
    the model shares, as safetensors keeps it once.

    Args:
        model: changed in place, if all fits.
        path: a `.safetensors`, `.pt` or `.pth` file: a state dict, or a dict which holds one as "state_dict",
            "model_state_dict" or "model"; or a Hugging Face folder with `model.safetensors`, or its shards and their index.
        skip: globs of keys that keep the model's values, such as those of a new head: `fc.*`.

    Raises:
        ModelError: no such file; another content than a state dict; keys, shapes or kinds of numbers which differ from the
            model's; values that are not finite; or a glob that matches no key.
    """
    path = Path(path)
    if path.is_dir():
        weights = _read_folder(path)
    elif not path.is_file():
        raise ModelError(f"model.checkpoint is {path}, where no file exists; give an existing file, or null")
    elif path.name.endswith(".safetensors.index.json"):
        weights = _read_shards(path)
    elif path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        weights = _unwrapped(_read_pickle(path), path)
    else:
        raise ModelError(
            f"model.checkpoint is {path}; allowed: .safetensors, .pt or .pth: rename the file after its format"
        )
    own = model.state_dict(keep_vars=True)
    _copy(model, own, _without_prefix(weights, own), path, skip)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model.checkpoint {path} is not a complete safetensors file ({error}); copy or save it again"
        ) from error


def _read_folder(path: Path) -> dict[str, Tensor]:
    if (path / _INDEX).is_file():
        return _read_shards(path / _INDEX)
    if (path / _FOLDER).is_file():
        return _read_safetensors(path / _FOLDER)
    raise ModelError(f"model.checkpoint is the folder {path}; it needs {_FOLDER}, or {_INDEX}: name the file in it")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, by its index: {"weight_map": {key: file in the same folder}}."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model.checkpoint {index} is no index of shards ({error!r}); copy it again") from error
    weights: dict[str, Tensor] = {}
    for name in files:
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise ModelError(
                f"model.checkpoint {index} names the shard {name}, which is not in its folder; copy it there"
            )
        weights |= {key: value for key, value in _read_safetensors(shard).items() if places.get(key) == name}
    lost = [key for key in places if key not in weights]
    if lost:
        raise ModelError(f"model.checkpoint {index}: its shards lack {_listed(lost)}; copy them again")
    return weights


def _without_prefix(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what stands before every key, where keys are the model's then; else as they are."""
    found = weights
    while found and not any(key in own for key in found):
        first = next(iter(found))
        prefix = next((p for p in _PREFIXES if first.startswith(p)), first.partition(".")[0] + ".")
        if not all(key.startswith(prefix) and key != prefix for key in found):
            return weights
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


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


def _listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''}"


def _copy(
    model: nn.Module, own: Mapping[str, Tensor], weights: dict[str, Tensor], path: Path, skip: Sequence[str]
) -> None:
    for glob in skip:
        if not any(fnmatchcase(key, glob) for key in (*own, *weights)):
            raise ModelError(
                f"model.checkpoint_skip: {glob!r} matches no key of the model or of {path}; the model has "
                f"{_listed(list(own))}"
            )
    skipped = {key for key in (*own, *weights) if any(fnmatchcase(key, glob) for glob in skip)}
    weights = {key: value for key, value in weights.items() if key not in skipped}
    shared: dict[int, list[str]] = {}  # names of one and the same parameter or buffer
    for key, value in own.items():
        shared.setdefault(id(value), []).append(key)
    missing, unlike = [], []
    for names in shared.values():
        given = [key for key in names if key in weights]
        left = [key for key in names if key not in given and key not in skipped]
        if given and len(names) > len(given) + len(left):
            unlike.append(
                f"{given[0]} (one weight with {next(key for key in names if key in skipped)}, which is skipped)"
            )
        unlike += [f"{given[0]} and {key}" for key in given[1:] if not _same(weights[key], weights[given[0]])]
        missing += [key for key in left if not given and not key.endswith("num_batches_tracked")]
        weights |= {key: weights[given[0]] for key in left if given}
    both = [(key, weights[key], mine) for key, mine in own.items() if key in weights]
    problems = [
        f"{len(items)} {what}: {_listed(items)}"
        for what, items in (
            ("missing in the file", missing),
            ("unknown to the model", [key for key in weights if key not in own]),
            (
                "of another shape",
                [
                    f"{key} (file {list(value.shape)}, model {list(mine.shape)})"
                    for key, value, mine in both
                    if value.shape != mine.shape
                ],
            ),
            (
                "of another kind of number",
                [
                    f"{key} (file {value.dtype}, model {mine.dtype})"
                    for key, value, mine in both
                    if _kind(value) != _kind(mine)
                ],
            ),
            ("shared in the model, but unlike in the file", unlike),
            ("not finite", [key for key, value, mine in both if not _finite(value, mine)]),
        )
        if items
    ]
    if problems:
        raise ModelError(
            f"model.checkpoint {path} does not fit the model; keys {'; '.join(problems)}; choose the model.target and "
            "model.arguments with which it was saved, or let keys keep their initial values (model.checkpoint_skip)"
        )
    model.load_state_dict({**own, **weights})


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "whole"


def _finite(value: Tensor, mine: Tensor) -> bool:
    """Whether a weight is finite in the model's precision; -inf where the model has it, too, as in a mask, is."""
    if not mine.is_floating_point() or value.shape != mine.shape:
        return True
    found = value.to(mine.dtype)
    return bool((torch.isfinite(found) | (found == mine.detach().to(found.device))).all())
