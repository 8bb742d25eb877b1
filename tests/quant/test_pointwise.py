"""Strided 1x1 convolutions on few channels: torch's result, and a process that survives their training."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from quant.layers import apply_layer, training_twin
from quant.pointwise import BLOCK, PointwiseConv2d, is_strided_pointwise, pointwise
from tests.quant.test_depthwise import gradients

CASES: tuple[tuple[int, dict[str, Any], tuple[int, int]], ...] = (
    (4, {"stride": 2}, (8, 8)),
    (3, {"stride": (3, 1), "bias": False}, (7, 5)),
    (6, {"stride": (1, 2), "groups": 3}, (5, 6)),
    (15, {"stride": 4, "padding": "valid"}, (3, 9)),
)
OTHERS: tuple[tuple[int, dict[str, Any]], ...] = (
    (4, {"stride": 1, "kernel_size": 1}),
    (4, {"stride": 2, "kernel_size": 3}),
    (4, {"stride": 2, "kernel_size": 1, "padding": 1}),
    (BLOCK, {"stride": 2, "kernel_size": 1}),
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "arguments", "size"), CASES)
def test_output_and_gradients_are_torchs(
    channels: int, arguments: dict[str, Any], size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 6, 1, **arguments).double()  # torch's own in double precision takes another path
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    assert is_strided_pointwise(layer)
    expected = gradients(layer, layer, x)
    for compute in (lambda x: pointwise(layer, x, layer.weight), lambda x: apply_layer(layer, x, layer.weight)):
        for mine, torchs in zip(gradients(compute, layer, x.to(memory_format=layout)), expected, strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pointwise(layer, x[0], layer.weight), layer(x[0]))


@pytest.mark.parametrize(("channels", "arguments"), OTHERS)
def test_other_convolutions_are_left_to_torch(channels: int, arguments: dict[str, Any]) -> None:
    assert not is_strided_pointwise(nn.Conv2d(channels, 8, **arguments))


def test_plain_layers_are_replaced_in_training_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, stride=2))
    twin = training_twin(model)
    assert (type(model[1]), type(twin[1])) == (nn.Conv2d, PointwiseConv2d)  # type: ignore[index]
    assert twin[1].weight is model[1].weight  # type: ignore[index]
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(twin(x), model(x))


TRAINING = """
import torch
from torch import nn
from quant.layers import training_twin
torch.set_num_threads(1)
torch.manual_seed(0)
for channels in range(3, 16):
    model = training_twin(nn.Sequential(nn.Conv2d(channels, 16, 1, stride=2, bias=False)))
    for _ in range(30):
        x = torch.randn(32, channels, 16, 16).to(memory_format=torch.channels_last)
        model.zero_grad()
        y = model(x)
        upstream = torch.randn_like(y)
        y.backward(upstream)
        expected = torch.einsum("nohw,nihw->oi", upstream.double(), x[..., ::2, ::2].double())
        error = (model[0].weight.grad.double()[..., 0, 0] - expected).abs().max()
        assert error < 1e-3, (channels, error)
print("survived")
"""


def test_training_breaks_no_memory() -> None:
    """In a process of its own: with torch's own gradient this one ends by a signal, on processors without AVX-512."""
    found = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, "survived"), found.stderr[-2000:]
