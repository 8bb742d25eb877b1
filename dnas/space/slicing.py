"""Removing channels from layers for good."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dnas.space.choice import ChannelMap, Layer, Through

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
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), own.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach()[outputs].clone(), bias.requires_grad)
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, kept in zip(names, (inputs, outputs), strict=True):
        setattr(layer, name, len(kept))


def shrink_kernel(layer: nn.Module, side: int) -> None:
    """Leaves the middle of a square kernel, and of the padding what that needs: outputs keep their shape."""
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer.padding, str)
    border = (layer.kernel_size[0] - side) // 2
    if border:
        own = layer.weight
        weight = own.detach()[:, :, border:-border, border:-border]
        layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), own.requires_grad)
        layer.kernel_size = (side, side)
        rows, columns = layer.padding
        layer.padding = (rows - border * layer.dilation[0], columns - border * layer.dilation[1])


def slice_channels(module: nn.Module, kept: list[int]) -> None:
    """Cuts every per-channel parameter and buffer of a normalisation down to the kept channels (their dimension 0)."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dim() > 0 and parameter.numel() > 1:
            setattr(module, name, nn.Parameter(parameter.detach()[kept], parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim() > 0 and buffer.numel() > 1:
            setattr(module, name, buffer[kept])
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list):
        module.normalized_shape = (len(kept), *shape[1:])  # type: ignore[assignment]
    if isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = len(kept)
        module.num_channels = len(kept)
    for name in ("num_features", "num_parameters"):
        if getattr(module, name, 1) != 1:
            setattr(module, name, len(kept))


def slice_parameter(model: nn.Module, name: str, dimension: int, kept: list[int]) -> None:
    """Cuts a parameter or buffer at a path of a model down to these indices of a dimension."""
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    found: Tensor = getattr(owner, own)
    index = torch.tensor(kept, device=found.device)
    sliced = found.detach().index_select(dimension, index)
    setattr(owner, own, nn.Parameter(sliced, found.requires_grad) if isinstance(found, nn.Parameter) else sliced)


def slice_through(model: nn.Module, through: Through, kept: Kept) -> None:
    """Cuts what channels pass through down to those that stay."""
    channels = kept_channels(through.channels, kept)
    if through.kind == "parameter":
        slice_parameter(model, through.name, through.over[0], channels)
    else:
        slice_channels(model.get_submodule(through.name), channels)


def slice_model(model: nn.Module, layers: Iterable[Layer], through: Iterable[Through], kept: Kept) -> None:
    """Cuts a plain model down to the filters that stay."""
    for layer in layers:
        ins, outs = kept_channels(layer.inputs, kept), kept_channels(layer.outputs, kept)
        slice_layer(model.get_submodule(layer.name), ins, outs, layer.depthwise)
    for item in through:
        slice_through(model, item, kept)
