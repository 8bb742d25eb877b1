"""The training twin: what is trained in it is trained in the network of Brevitas layers, bit for bit."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.brevitas import LearnedStepActivation, is_fixed, plain_layer
from quant.layers import FixedLayer, apply_layer, training_twin
from tests.quant.quantised_networks import (
    Mixed,
    MixedSequence,
    Network,
    Residual,
    Sequence,
    act,
    act_each,
    fix,
    fix_each,
    images,
    network,
)

KINDS = (Residual, Sequence, Mixed, MixedSequence)


def train(run: nn.Module, model: nn.Module, x: Tensor, steps: int = 4) -> list[float]:
    """Losses of SGD on the parameters of `model`, through `run`."""
    run.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(run(x), torch.arange(len(x)) % 7)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_training_the_twin_trains_the_network_bit_for_bit(kind: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.pointwise.BLOCK", 0)  # its sums are in another order: test_pointwise.py
    model = network(kind)
    other, x = copy.deepcopy(model), images(kind, 6)
    twin = training_twin(model)
    assert train(twin, model, x) == train(other, other, x)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))
        assert torch.equal(twin.eval()(x), other(x))


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_widths_of_filters_and_channels_compile(generator: torch.Generator) -> None:
    conv = fix_each(nn.Conv1d(3, 4, 3), [2, 8, 3, 5], act_each([8, 2, 4], True))
    linear = fix_each(nn.Linear(8, 3), [4, 2, 3], act_each([2, 3, 4, 5, 6, 7, 8, 2], channel_dim=-1))
    model = nn.Sequential(conv, nn.Flatten(), linear)
    twin = training_twin(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for count in (4, 3):
        x, found = torch.randn(count, 3, 4, generator=generator), []
        for run in (twin, compiled):
            model.zero_grad()
            run(x).square().sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_buffers_are_the_same_objects(kind: Network) -> None:
    model = network(kind)
    twin = training_twin(model)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    own = {id(b) for b in model.buffers() if b.dim() > 0}
    assert {id(m.running_mean) for m in twin.modules() if isinstance(m, nn.BatchNorm2d)} <= own
    assert not any(is_fixed(module) or isinstance(module, LearnedStepActivation) for module in twin.modules())
    assert sum(isinstance(module, FixedLayer) for module in twin.modules()) == sum(map(is_fixed, model.modules()))


def test_layers_that_share_a_quantiser_share_it_in_the_twin() -> None:
    twin: Any = training_twin(network(Residual))
    assert twin.block["conv1"].activation is twin.block["down"].activation
    assert twin.block["conv1"].activation is not twin.block["depth"].activation


class References(nn.Module):
    """Keeps a layer in a list beside its registration, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = fix(nn.Linear(6, 6), 4, act(4, True))
        self.two = self.one
        self.order = [self.one, self.two]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x


def test_references_outside_of_the_module_tree_lead_to_the_twin() -> None:
    model = References()
    twin: Any = training_twin(model)
    assert twin.order[0] is twin.one is twin.two
    assert isinstance(twin.one, FixedLayer)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(twin(x), model(x))


class Running(nn.Module):
    """Keeps a running mean by assigning its buffer anew, as users' modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.layer = fix(nn.Linear(6, 6), 4, act(4, True))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        out: Tensor = self.layer(x - self.mean)
        return out


def test_buffers_that_are_assigned_anew_stay_shared() -> None:
    model = Running()
    twin: Any = training_twin(model)
    twin(torch.ones(3, 6))
    assert model.mean.tolist() == pytest.approx([0.1] * 6)
    twin.double()
    assert model.mean.dtype == torch.float64
    assert model.mean is twin.mean


def test_a_float_network_gets_a_twin_as_well() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = training_twin(model)
    assert twin is not model
    assert twin[0].weight is model[0].weight


def test_what_is_no_layer() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d"):
        plain_layer(nn.BatchNorm1d(3))
    with pytest.raises(TypeError, match="BatchNorm1d"):
        apply_layer(nn.BatchNorm1d(3), torch.zeros(1, 3), torch.zeros(3))
