"""Removing channels from layers for good."""

import torch
from torch import Tensor, nn

from dnas.space.choice import ChannelMap

Kept = dict[int, set[int]]
"""For a group (by its number) the positions that stay; groups that are not named stay whole."""


def kept_channels(side: ChannelMap, kept: Kept) -> list[int]:
    """Indices of a side's channels that stay, ascending."""
    return [
        channel
        for channel, (group, position) in enumerate(zip(side.group, side.position, strict=True))
        if group not in kept or position in kept[group]
    ]


def filter_dimension(layer: nn.Module) -> int:
    """The dimension of a layer's weight that runs over its filters (outputs): 1 for transposed convolutions, else 0."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def input_dimension(layer: nn.Module) -> int:
    """The dimension of a layer's weight that runs over its input channels."""
    return 1 - filter_dimension(layer)


def slice_layer(layer: nn.Module, inputs: list[int], outputs: list[int], depthwise: bool) -> None:
    """Cuts a convolution or linear layer down to these channels."""
    own: Tensor = layer.weight  # type: ignore[assignment]
    weight = own.detach()
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if depthwise:
        weight = weight[outputs]
        layer.groups = len(outputs)  # type: ignore[assignment]
    elif getattr(layer, "groups", 1) == 1:
        first, second = (inputs, outputs) if input_dimension(layer) == 0 else (outputs, inputs)
        weight = weight[first][:, second]
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach()[outputs].clone())
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, kept in zip(names, (inputs, outputs), strict=True):
        setattr(layer, name, len(kept))


def slice_channels(module: nn.Module, kept: list[int]) -> None:
    """Cuts every per-channel parameter and buffer of a module down to the kept channels."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dim() == 1 and parameter.numel() > 1:
            setattr(module, name, nn.Parameter(parameter.detach()[kept], parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim() == 1 and buffer.numel() > 1:
            setattr(module, name, buffer[kept])
    for name in ("num_features", "num_parameters"):
        if getattr(module, name, 1) != 1:
            setattr(module, name, len(kept))
