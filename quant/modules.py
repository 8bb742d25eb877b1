"""Networks whose code holds more than parameters and parts: tensors of the last forward pass, lists of layers."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_REGISTERED = frozenset(vars(nn.Module()))
"""Attributes that every module has: its parameters and parts among them."""
DEPTH = 4
"""Of lists in lists that are looked through; attributes may hold themselves."""


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; tensors that a model's code has kept of a training step come without the graph that made them.

    torch copies no tensor that is part of a graph. memo: as of `copy.deepcopy`; filled in.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in _own_attributes(module).values():
            for part in _parts(value):
                if isinstance(part, Tensor) and not part.is_leaf:
                    memo[id(part)] = part.detach().clone()
    found: nn.Module = copy.deepcopy(model, memo)
    return found


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module at a path, and at every other path where the same module stands; in lists that modules hold as well."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        if parent is module:
            continue
        for name, child in list(parent._modules.items()):  # named_children leaves out a second name of a module
            if child is old:
                setattr(parent, name, module)
        for name, value in _own_attributes(parent).items():
            if any(part is old for part in _parts(value)):
                vars(parent)[name] = _exchanged(value, old, module)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a user's module holds but for its parameters, buffers, parts and hooks."""
    if type(module).__module__.startswith("torch.nn."):
        return {}
    return {name: value for name, value in vars(module).items() if name not in _REGISTERED}


def _parts(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """What lists, tuples and dicts in each other hold, or the value itself."""
    if depth and isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part, depth - 1)
    else:
        yield value


def _exchanged(value: Any, old: nn.Module, new: nn.Module, depth: int = DEPTH) -> Any:
    """The value with another module in place of one; lists and dicts are changed in place, since others may hold them."""
    if depth and isinstance(value, dict):
        for key, part in value.items():
            value[key] = _exchanged(part, old, new, depth - 1)
    elif depth and isinstance(value, list):
        value[:] = [_exchanged(part, old, new, depth - 1) for part in value]
    elif depth and type(value) is tuple:
        return tuple(_exchanged(part, old, new, depth - 1) for part in value)
    return new if value is old else value
