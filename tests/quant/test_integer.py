"""The integer reference: against numpy integers, against torch, and its accumulators."""

import numpy as np
import pytest
import torch
from quantised_networks import Mixed, MixedSequence, Network, Residual, Sequence, act, fix, images, network
from torch import Tensor, nn

from quant.brevitas import quantised_layers
from quant.integer import EXACT, integer_reference


def test_linear_layer_equals_numpy_integers() -> None:
    torch.manual_seed(0)
    linear = fix(nn.Linear(40, 9), 4, act(8, True, 0.02))
    model = nn.Sequential(linear)
    x = torch.randn(5, 40)
    (layer,) = quantised_layers(model)
    step = np.float64(layer.activation_step.item())
    codes = np.clip(np.round(x.double().numpy() / step), -128, 127).astype(np.int64)
    total = codes @ layer.codes.numpy().astype(np.int64).T
    scale = layer.weight_step.double().numpy() * step
    reference = integer_reference(model)
    expected = total * scale + linear.bias.detach().double().numpy()
    assert np.array_equal(reference(x).numpy(), expected)
    found = reference.accumulators()["0"]
    assert found["largest"] == np.abs(total).max()
    assert 2 ** (found["bits"] - 2) <= found["largest"] < 2 ** (found["bits"] - 1)
    assert found["largest"] <= found["bound"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_bound_is_reached_by_the_worst_input(groups: int) -> None:
    torch.manual_seed(groups)
    layer = nn.ConvTranspose1d(4, 8, 3, groups=groups)
    model = nn.Sequential(fix(layer, 4, act(4)))
    reference = integer_reference(model)
    codes = reference.layers["0"].codes
    assert reference.accumulators()["0"]["bound"] == 15 * int(
        codes.abs().reshape(groups, 4 // groups, 8 // groups, 3).sum((1, 3)).amax()
    )
    x = torch.randn(3, 4, 6)
    assert torch.allclose(reference(x), model(x).double(), atol=1e-6)


@pytest.mark.parametrize("kind", [Residual, Sequence, Mixed, MixedSequence])
def test_networks_agree_with_torch(kind: Network) -> None:
    model = network(kind).train()
    parameters = {name: p.clone() for name, p in model.named_parameters()}
    reference = integer_reference(model)
    x = images(kind, 16)
    with torch.no_grad():
        expected = model.eval()(x)
    result = reference(x)
    assert result.dtype == torch.float64
    assert torch.allclose(result, expected.double(), atol=1e-6)
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())
    one_unit = {layer.name for layer in quantised_layers(model) if layer.activation_step.dim() == 0}
    assert set(reference.accumulators()) == one_unit


def test_layer_used_under_two_names_and_a_bare_layer() -> None:
    torch.manual_seed(0)
    layer = fix(nn.Linear(6, 6), 4, act(4))
    x = torch.randn(3, 6)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert torch.allclose(integer_reference(twice)(x), twice(x).double(), atol=1e-6)
    assert torch.allclose(integer_reference(layer)(x), layer(x).double(), atol=1e-6)


def test_exactness_limit_is_that_of_float64() -> None:
    assert float(EXACT) + 1.0 == float(EXACT)
    assert float(EXACT) - 1.0 != float(EXACT)


class OwnPrecision(nn.Module):
    """What it computes between its layers is in float32, whatever it is given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = fix(nn.Linear(6, 8), 8, act(8, True, 0.05)), fix(nn.Linear(8, 4), 8, act(8, True, 0.05))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "cast":
            x = self.norm(x.float()).type(x.dtype)
        elif self.kind == "state":
            state = torch.zeros(len(x), 8)
            state += x
            x = torch.tanh(state) + torch.full((8,), 0.1, dtype=torch.float32)
        else:
            x = x.to(torch.float32).relu()
        result: Tensor = self.last(x)
        return result


@pytest.mark.parametrize("kind", ["cast", "state", "between"])
def test_what_a_model_computes_in_float32_is_computed_in_float64(kind: str, generator: torch.Generator) -> None:
    model, x = OwnPrecision(kind).eval(), torch.randn(16, 6, generator=generator)
    found = integer_reference(model)(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), model(x), rtol=1e-5, atol=1e-6)
    assert torch.zeros(1).dtype == torch.float32
