"""State on disk without pickle: a nested dict of tensors and plain values as one safetensors file, written atomically."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from quant.files import write_atomically


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a nested dict of tensors, numbers, strings, booleans, None, lists and tuples.

    Raises:
        TypeError: a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, tensors)
    content = save(tensors, {"state": json.dumps(structure)})
    write_atomically(path, content)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what `save_state` wrote.

    Raises:
        ValueError: not such a file, or a damaged one.
    """
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            structure = json.loads((file.metadata() or {})["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(
            f"{path} is not a checkpoint of dnas, or is damaged ({error}); delete it to start again"
        ) from error
    state: dict[str, Any] = _unpack(structure, tensors)
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().clone().contiguous()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint cannot hold a {type(value).__name__}; allowed: tensors, numbers, strings, lists, dicts"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    items = [_unpack(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items
