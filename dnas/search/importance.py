"""Which filters of a group matter: the order in which a filter count keeps them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dnas.space.choice import ChannelMap, Space
from dnas.space.slicing import filter_dimension


@torch.no_grad()
def filter_importance(space: Space, index: int, layers: Mapping[str, nn.Module], model: nn.Module) -> Tensor:
    """Squared scale of the batch norms that a group's filters pass through; without any, the filters' squared L2 norm.

    Before a batch norm the norm of a filter says nothing, since it is divided out again: Liu et al. 2017
    (arXiv 1708.06519) rank by the batch norm's scale. Norms are taken relative to their layer and added up.

    Args:
        space: the space.
        index: number of the group.
        layers: the group's members, by name.
        model: holds the modules that the channels pass through.

    Returns:
        shape (size,), not negative.
    """
    size = space.groups[index].size
    norms = torch.zeros(size)
    for name, layer in layers.items():
        own: Tensor = layer.weight  # type: ignore[assignment]
        found = _norms(layer, own.detach().float().cpu())
        channels, positions = _entries(space.layer(name).outputs, index)
        norms.index_add_(0, torch.tensor(positions), found[channels].square())
    scales, count = torch.zeros(size), 0
    for through in space.through:
        if through.kind != "channel":
            continue
        module = model.get_submodule(through.name)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            channels, positions = _entries(through.channels, index)
            if channels:
                scales.index_add_(0, torch.tensor(positions), module.weight.detach().float().cpu()[channels].square())
                count += 1
    return scales if count else norms


def _entries(side: ChannelMap, index: int) -> tuple[list[int], list[int]]:
    """Channels of a side that belong to a group, and their positions in it."""
    pairs = [
        (channel, position)
        for channel, (group, position) in enumerate(zip(side.group, side.position, strict=True))
        if group == index
    ]
    return [channel for channel, _ in pairs], [position for _, position in pairs]


def _norms(layer: nn.Module, weight: Tensor) -> Tensor:
    """L2 norm of every filter, shape (filters,), together of length 1."""
    if filter_dimension(layer) == 1:  # (inputs, outputs / groups, ...) to (outputs, inputs / groups, ...)
        weight = weight.unflatten(0, (int(layer.groups), -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
    norms = weight.flatten(1).norm(dim=1)
    return norms / norms.norm().clamp_min(1e-12)
