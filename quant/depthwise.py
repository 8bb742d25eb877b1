"""Depthwise convolutions with large kernels: the same forward pass, a weight gradient that is one sweep over the images.

torch's own is slow on CPUs where kernels have more than 3x3 entries: nearly half of a training step of a MobileNet with 5x5
kernels (`benchmarks/depthwise.py`).
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.kernel import kernel_available

TORCH_IS_FAST = 9
"""Entries of a kernel up to which torch's own gradient is the faster one."""


def has_own_gradient(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `depthwise` computes what this layer does, and faster: by its class and arguments alone."""
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer)._conv_forward is nn.Conv2d._conv_forward
        and layer.in_channels == layer.out_channels == layer.groups
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.kernel_size[0] * layer.kernel_size[1] > TORCH_IS_FAST
    )


class DepthwiseConv2d(nn.Conv2d):
    """A convolution that `has_own_gradient`, on its own weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [n, channels, h, w], or one image without n, as the layer does."""
        return depthwise(self, input, self.weight)


class _Depthwise(torch.autograd.Function):
    """torch's convolution and its other gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return F.conv2d(x, weight, bias, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        second = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph=True: by torch alone
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and second, False]
        grad_x = grad_weight = grad_bias = None
        if any(wanted):
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, stride, padding, dilation, False, [0, 0], len(weight), wanted
            )
        if ctx.needs_input_grad[1] and not second:
            grad_weight = torch.ops.dnas.depthwise_weight_grad(grad, x, weight.shape[2:], stride, padding, dilation)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None


def depthwise(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a layer with another weight.

    Args:
        layer: one that `has_own_gradient`.
        x: shape (n, channels, h, w) or (channels, h, w).
        weight: shape (channels, 1, kernel, kernel).

    Returns:
        what the layer computes.
    """
    floats = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    if (
        x.device.type == "cpu"
        and x.dim() == 4
        and floats
        and not torch.is_autocast_enabled("cpu")
        and kernel_available()
    ):
        found: Tensor = _Depthwise.apply(
            x, weight, layer.bias, list(layer.stride), list(layer.padding), list(layer.dilation)
        )
        return found
    result: Tensor = layer._conv_forward(x, weight, layer.bias)
    return result
