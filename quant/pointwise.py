"""1x1 convolutions with a stride on few channels: the same result, without the weight gradient that breaks memory.

On x86 processors oneDNN's gradient for images with channels innermost writes past its workspace where such a layer reads fewer
channels than one of its blocks holds, 8 or 16 (https://github.com/uxlfoundation/oneDNN/issues/6035, open in November 2026;
torch 2.13 carries it): a training of a narrow network ends in a crash, or with wrong weights. What such a layer skips is
skipped here before a convolution without a stride.
"""

from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16
"""Channels that a group has to read, at least, for oneDNN's own gradient to be sound on every processor."""


def is_strided_pointwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `pointwise` computes what this layer does, and has to: by its class and arguments alone."""
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer)._conv_forward is nn.Conv2d._conv_forward
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and (layer.padding in ("valid", "same") or not any(layer.padding))
        and layer.in_channels // layer.groups < BLOCK
    )


class PointwiseConv2d(nn.Conv2d):
    """A convolution that `is_strided_pointwise`, on its own weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [n, channels, h, w], or one image without n, as the layer does."""
        return pointwise(self, input, self.weight)


def pointwise(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a layer with another weight.

    Args:
        layer: one that `is_strided_pointwise`.
        x: shape (n, channels, h, w) or (channels, h, w).
        weight: shape (filters, channels / groups, 1, 1).

    Returns:
        what the layer computes.
    """
    rows, columns = layer.stride
    return F.conv2d(x[..., ::rows, ::columns], weight, layer.bias, groups=layer.groups)
