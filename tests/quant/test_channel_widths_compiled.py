"""A step and a width for every channel, images with channels innermost: compiled as eager, forwards and backwards."""

import pytest
import torch
from torch import Tensor

from quant.mixture import grid_bounds
from quant.quantizer import quantize_along
from quant.spec import QuantSpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_compiled_channels_have_the_values_and_gradients_of_eager_ones(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    specs = tuple(QuantSpec(bits, bits == 3) for bits in (2, 4, 3, 8, 2, 3))
    lower, upper = (bound.unsqueeze(0) for bound in grid_bounds(specs))
    x = torch.randn(5, 6, 7, 3, generator=generator).to(memory_format=layout)
    upstream = torch.randn(5, 6, 7, 3, generator=generator).to(memory_format=layout)
    step = torch.rand(6, generator=generator) + 0.05
    weight = torch.ones(1)

    def quantised(x: Tensor, step: Tensor) -> Tensor:
        return quantize_along(x, step, weight, lower, upper, 1, True)

    found = []
    for function in (quantised, torch.compile(quantised)):
        inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_(), step.clone().requires_grad_()]
        y = function(*inputs)
        found.append((y, *torch.autograd.grad(y, inputs, upstream)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)
    # the definition, by plain autograd
    scale = step.reshape(1, -1, 1, 1)
    low, high = (bound.reshape(1, -1, 1, 1) for bound in (lower, upper))
    inside = (x / scale >= low) & (x / scale <= high)
    codes = torch.clamp(torch.round(x / scale), low, high)
    torch.testing.assert_close(found[1][0], codes * scale)
    torch.testing.assert_close(found[1][1], torch.where(inside, upstream, 0.0))
    slope = (upstream * (codes - torch.where(inside, x / scale, 0.0))).sum((0, 2, 3))
    elements = x[0, 0].numel()  # of one image's channel: LSQ, section 2.2
    torch.testing.assert_close(found[1][2], slope * (elements * upper[0].clamp_min(1.0)).rsqrt())
