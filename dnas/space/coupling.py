"""Which channels must be kept or removed together, from Torch-Pruning's graph. The one file that talks to it.

Torch-Pruning (MIT, maintained, needs only torch) follows channel indices through adds, concats, splits and flattens.
"""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dnas.space.trace import is_searchable

ChannelKey = tuple[str, str, int]
"""(module path, "in", "out" or (a batch norm) "through", channel)."""

TRANSPARENT = (nn.modules.batchnorm._BatchNorm, nn.PReLU)
"""Modules with one parameter per channel that is removed with the channel."""


@dataclass(frozen=True)
class Coupling:
    """Channels in classes: every channel of every layer side belongs to exactly one class.

    classes: channels that hold the same filter, producers' and consumers'. blocked: for a class that must stay, why.
    """

    classes: tuple[frozenset[ChannelKey], ...]
    blocked: Mapping[int, str]


class _Marked(nn.Module):
    """The model with a per-channel module on each output, so that groups that reach an output show it."""

    def __init__(self, model: nn.Module, outputs: list[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.first = nn.ModuleList([_mark(nn.PReLU, t, 1) if t.dim() > 1 else nn.Identity() for t in outputs])
        self.last = nn.ModuleList([_mark(nn.LayerNorm, t, -1) if t.dim() > 2 else nn.Identity() for t in outputs])

    def forward(self, *inputs: Any) -> list[Tensor]:
        tensors = [leaf for leaf in tree_leaves(self.model(*inputs)) if isinstance(leaf, Tensor)]
        first = [mark(t) for mark, t in zip(self.first, tensors, strict=True)]
        last = [mark(t) for mark, t in zip(self.last, tensors, strict=True)]
        return first + last


def _mark(kind: type[nn.Module], output: Tensor, dimension: int) -> nn.Module:
    if not output.is_floating_point():
        return nn.Identity()
    return kind(max(output.shape[dimension], 1), device=output.device, dtype=output.dtype)


class _Classes:
    """Union-find over channels."""

    def __init__(self) -> None:
        self.parent: dict[ChannelKey, ChannelKey] = {}

    def find(self, key: ChannelKey) -> ChannelKey:
        self.parent.setdefault(key, key)
        while self.parent[key] != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def union(self, a: ChannelKey, b: ChannelKey) -> None:
        self.parent[self.find(a)] = self.find(b)


def _sides(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return int(layer.in_channels), int(layer.out_channels)  # type: ignore[arg-type]


def _through_channels(module: nn.Module) -> int:
    """Channels of a `TRANSPARENT` module; 0 for a PReLU with one factor for all channels, which loses nothing."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters if module.num_parameters > 1 else 0
    return int(module.num_features)  # type: ignore[arg-type]


def is_depthwise(layer: nn.Module) -> bool:
    """One input channel per output channel, and nothing shared between them."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", 0) == getattr(layer, "out_channels", 0)


def find_coupling(
    model: nn.Module, example_inputs: tuple[Any, ...], outputs: list[Tensor], layers: list[str]
) -> Coupling:
    """Groups the channels of the named layers.

    Args:
        model: left as it was.
        example_inputs: positional arguments of its forward.
        outputs: tensors that the model returns for them, in tree order.
        layers: module paths of the layers that run.
    """
    marked = _Marked(model, outputs)
    training = {module: module.training for module in model.modules()}
    try:
        graph = _build_graph(marked.eval(), example_inputs)
    finally:
        for module, mode in training.items():
            module.training = mode
    path = {module: name.removeprefix("model.") for name, module in marked.named_modules()}
    classes, blocked = _Classes(), dict[ChannelKey, str]()
    for name in layers:
        layer = model.get_submodule(name)
        c_in, c_out = _sides(layer)
        for i in range(c_in):
            classes.find((name, "in", i))
        for i in range(c_out):
            classes.find((name, "out", i))
            if is_depthwise(layer):
                classes.union((name, "in", i), (name, "out", i))
            elif getattr(layer, "groups", 1) > 1:
                blocked[(name, "out", i)] = f"grouped convolution {name}"
        if getattr(layer, "groups", 1) > 1 and not is_depthwise(layer):
            blocked.update({(name, "in", i): f"grouped convolution {name}" for i in range(c_in)})
        _follow(graph, name, layer, path, classes, blocked, set(layers))
    members: dict[ChannelKey, set[ChannelKey]] = {}
    for key in classes.parent:
        members.setdefault(classes.find(key), set()).add(key)
    ordered = sorted(
        (frozenset(keys) for keys in members.values()), key=lambda keys: min(_order(k, layers) for k in keys)
    )
    reasons = {}
    for i, keys in enumerate(ordered):
        found = [blocked[key] for key in keys if key in blocked]
        if not any(side == "out" and not is_depthwise(model.get_submodule(name)) for name, side, _ in keys):
            found.append("the network's input or an operation outside of its layers")
        if found:
            reasons[i] = min(found)
    return Coupling(tuple(ordered), reasons)


def _order(key: ChannelKey, layers: list[str]) -> tuple[int, int, int]:
    return layers.index(key[0]) if key[0] in layers else len(layers), key[1] == "in", key[2]


def _build_graph(marked: nn.Module, example_inputs: tuple[Any, ...]) -> Any:
    required = [(parameter, parameter.requires_grad, parameter.grad) for parameter in marked.parameters()]
    try:
        for parameter, _, _ in required:
            parameter.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                marked, example_inputs, forward_fn=lambda model, data: model(*data), verbose=False
            )
    finally:
        for parameter, flag, grad in required:
            parameter.requires_grad_(flag)
            parameter.grad = grad


def _follow(
    graph: Any,
    name: str,
    layer: nn.Module,
    path: Mapping[nn.Module, str],
    classes: _Classes,
    blocked: dict[ChannelKey, str],
    layers: set[str],
) -> None:
    """Unites the layer's output channels with every channel that Torch-Pruning says goes with them."""
    out_channels = _sides(layer)[1]
    try:
        pruner = graph.get_pruner_of_module(layer).prune_out_channels
        items = list(graph.get_pruning_group(layer, pruner, list(range(out_channels))))
    except Exception as error:  # Torch-Pruning raises bare exceptions for operations that it does not know
        logging.getLogger(__name__).info("no coupling for %s: %s", name, error)
        blocked.update({(name, "out", i): f"its coupling could not be traced ({error})" for i in range(out_channels)})
        return
    for item in items:
        target = item.dep.target.module
        roots = item.root_idxs if item.root_idxs is not None else item.idxs
        side, channels = "", len(item.idxs)
        if path.get(target, "") in layers and is_searchable(target):
            inwards = item.dep.handler.__name__.startswith("prune_in") or "in_channels" in item.dep.handler.__name__
            side, channels = "in" if inwards else "out", _sides(target)[0 if inwards else 1]
        elif isinstance(target, TRANSPARENT) and not path.get(target, "").startswith(("first.", "last.")):
            channels = _through_channels(target)
            side = "through" if channels else ""
        if side and (len(item.idxs) != len(roots) or any(not 0 <= index < channels for index in item.idxs)):
            reason = f"its channels could not be followed to {path[target]}"
            blocked.update({(name, "out", i): reason for i in range(out_channels)})
        elif side:
            for index, root in zip(item.idxs, roots, strict=True):
                classes.union((name, "out", root), (path[target], side, index))
            for index in range(channels):  # channels that no layer produces have a class too: they stay
                classes.find((path[target], side, index))
        elif not isinstance(target, TRANSPARENT) and not _is_operation(target):
            reason = f"{type(target).__name__} {path.get(target, '')} mixes or owns these channels"
            blocked.update({(name, "out", root): reason for root in roots})
        if path.get(target, "").startswith(("first.", "last.")):
            blocked.update({(name, "out", root): "an output of the network" for root in roots})


def _is_operation(target: nn.Module) -> bool:
    """Torch-Pruning's stand-ins for functional operations that pass channels on."""
    return type(target).__module__.startswith("torch_pruning")
