"""Depthwise convolutions with a weight gradient of their own, against torch's in double precision and by finite differences."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import library as torch_library

from quant.depthwise import DepthwiseConv2d, depthwise, has_own_gradient
from quant.kernel import kernel_available
from quant.layers import apply_layer, training_twin

CASES: tuple[tuple[dict[str, Any], tuple[int, int]], ...] = (
    ({"kernel_size": 5, "padding": 2}, (8, 8)),
    ({"kernel_size": 5, "padding": 2, "stride": 2}, (9, 7)),
    ({"kernel_size": 7, "padding": 0}, (7, 12)),
    ({"kernel_size": (5, 3), "padding": (4, 0), "stride": (3, 1)}, (6, 5)),
    ({"kernel_size": 5, "padding": 8, "dilation": 4, "bias": False}, (6, 3)),  # some taps never meet the image
    ({"kernel_size": (1, 11), "padding": (0, 5), "dilation": (2, 1)}, (3, 4)),
    ({"kernel_size": 5, "padding": (7, 2), "stride": (4, 2)}, (1, 1)),
)


def gradients(compute: Any, layer: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The output, and what torch.autograd finds for x and the layer's parameters with a fixed upstream gradient."""
    x = x.detach().requires_grad_()
    y = compute(x)
    upstream = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], upstream)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("arguments", "size"), CASES)
def test_output_and_gradients_are_torchs(
    arguments: dict[str, Any], size: tuple[int, int], layout: torch.memory_format
) -> None:
    assert kernel_available()
    layer = nn.Conv2d(6, 6, groups=6, **arguments).double()
    assert has_own_gradient(layer)
    x = torch.randn(9, 6, *size, dtype=torch.float64).contiguous(memory_format=layout)
    for own, torchs in zip(
        gradients(lambda x: depthwise(layer, x, layer.weight), layer, x), gradients(layer, layer, x), strict=True
    ):
        assert own.shape == torchs.shape
        assert torch.allclose(own, torchs, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    layer = nn.Conv2d(2, 2, 5, stride=2, padding=2, groups=2).double()
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: depthwise(layer, x, weight), (x, layer.weight))
    assert torch.autograd.gradgradcheck(lambda x, weight: depthwise(layer, x, weight), (x, layer.weight))


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    layer, x = nn.Conv2d(24, 24, 5, padding=2, groups=24), torch.randn(37, 24, 8, 8)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y = depthwise(layer, x, layer.weight)
            found.append(torch.autograd.grad(y.square().sum(), layer.weight)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Doubled(nn.Conv2d):
    """Computes something else."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * super()._conv_forward(input, weight, bias)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(6, 6, 3, groups=6),  # torch's gradient is fast
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Conv2d(6, 6, 5, groups=3),
        nn.Conv2d(6, 6, 5, padding=2, padding_mode="reflect", groups=6),
        nn.Conv2d(6, 6, 5, padding="same", groups=6),
        nn.Conv1d(6, 6, 11, groups=6),
        Doubled(6, 6, 5, groups=6),
        nn.Linear(6, 6),
    ],
)
def test_other_layers_are_left_to_torch(other: nn.Module) -> None:
    assert not has_own_gradient(other)


def test_what_the_kernel_cannot_take_goes_to_torch() -> None:
    """An image without a batch, bfloat16, autocast."""
    layer = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    image = torch.randn(4, 6, 6)
    assert torch.equal(apply_layer(layer, image, layer.weight), layer(image))
    half, batch = copy.deepcopy(layer).bfloat16(), torch.randn(2, 4, 6, 6)
    assert torch.equal(depthwise(half, batch.bfloat16(), half.weight), half(batch.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise(layer, batch, layer.weight)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, layer(batch))


def test_a_float_networks_twin_trains_it_with_its_hooks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Flatten(), nn.Linear(288, 5))
    calls: list[str] = []
    model[1].register_forward_hook(lambda *_: calls.append("hook"))
    other, twin = copy.deepcopy(model), training_twin(model)
    assert type(twin[1]) is DepthwiseConv2d
    assert type(model[1]) is nn.Conv2d
    x, y = torch.randn(7, 3, 6, 6), torch.arange(7) % 5
    for run, trained in ((twin, model), (other, other)):
        optimiser = torch.optim.SGD(trained.parameters(), lr=0.05)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(run(x), y).backward()
            optimiser.step()
    assert len(calls) == 6
    for own, torchs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(own, torchs, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles() -> None:
    assert kernel_available()
    layer, x = nn.Conv2d(8, 8, 5, padding=2, stride=2, groups=8), torch.randn(3, 8, 9, 9)
    torch_library.opcheck(
        torch.ops.dnas.depthwise_weight_grad, (torch.randn(3, 8, 5, 5), x, [5, 5], [2, 2], [2, 2], [1, 1])
    )
    compiled = torch.compile(lambda x: depthwise(layer, x, layer.weight), fullgraph=True)
    for own, torchs in zip(gradients(compiled, layer, x), gradients(layer, layer, x), strict=True):
        assert torch.allclose(own, torchs, atol=1e-5)
