"""Depth: the last blocks of a stage are left out where shortcuts go around them."""

import pytest
import torch
from equivalence import check_elastic
from networks import Head, conv
from torch import Tensor, nn

import dnas
from dnas.models import resnet20
from dnas.search.measure import switch_options
from dnas.search.supernet import Supernet
from dnas.select.reference import widest_uniform
from dnas.space.architecture import Architecture
from dnas.space.batch_norm import batch_statistics


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.na = conv(c_in, c_out, stride=stride), nn.BatchNorm2d(c_out)
        self.b, self.nb = conv(c_out, c_out), nn.BatchNorm2d(c_out)
        self.short = conv(c_in, c_out, 1, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.nb(self.b(self.na(self.a(x)).relu())) + self.short(x)).relu()


class Stages(nn.Module):
    """Two stages: one in a sequence, all of whose blocks may go; one in a list, after a block that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.one = nn.Sequential(Block(8, 8), Block(8, 8))
        self.two = nn.ModuleList([Block(8, 12, 2), Block(12, 12), Block(12, 12)])
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x).relu())
        for block in self.two:
            x = block(x)
        return self.head(x)


class NoShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU())
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class InPlace(nn.Module):
    """A block that changes what it reads: its input is gone afterwards."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x.relu_() + self.conv(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.units, self.head = conv(3, 8), nn.Sequential(self.Unit(), self.Unit()), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)))


def test_masked_equals_realised_and_costs_are_those_of_the_shallower_network() -> None:
    supernet = check_elastic(Stages, min_depth=0)
    depths = {c.name: c.options for c in supernet.space.choices if c.kind == "depth"}
    assert depths == {"one.0.depth": (0, 1, 2), "two.0.depth": (1, 2, 3)}


def test_blocks_that_stay_at_least() -> None:
    space = dnas.build_space(Stages().eval(), torch.randn(2, 3, 8, 8), min_depth=2)
    assert {c.name: c.options for c in space.choices if c.kind == "depth"} == {"two.0.depth": (2, 3)}
    assert [(gate.module, gate.least) for gate in space.gates] == [("two.2", 3)]


def test_resnet20() -> None:
    supernet = check_elastic(lambda: resnet20(3, 5), draws=2, min_depth=1)
    assert [c.options for c in supernet.space.choices if c.kind == "depth"] == [(1, 2, 3)] * 3


@pytest.mark.parametrize("make", [NoShortcut, InPlace])
def test_blocks_that_cannot_be_left_out_are_named(make: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"space.min_depth is 0.*(shortcut|in place)"):
        dnas.build_space(make().eval(), torch.randn(2, 3, 8, 8), min_depth=0)


def test_a_layer_that_does_not_run_has_no_gradient() -> None:
    model = Stages().eval()
    space = dnas.build_space(model, torch.randn(2, 3, 8, 8), min_depth=0)
    supernet = dnas.Supernet(model, space).eval()
    shallow = {c.name: c.options[0] if c.kind == "depth" else c.options[-1] for c in space.choices}
    with supernet.evaluate_as(dnas.Architecture(space, shallow)):
        supernet(torch.randn(2, 3, 8, 8)).sum().backward()
    ran = {layer.name for layer in space.layers if supernet.mixed_layer(layer.name).layer.weight.grad is not None}
    assert ran == {"stem", "two.0.a", "two.0.b", "two.0.short", "head.fc"}


def test_options_of_blocks_that_are_left_out_are_measured_in_the_network_with_all_of_them() -> None:
    torch.manual_seed(0)
    model = Stages()
    x, y = torch.randn(24, 3, 8, 8), torch.randint(5, (24,))
    model(x)
    space = dnas.build_space(model.eval(), x, (2, 4), (2, 8), (0.5, 1.0), min_depth=1)
    supernet = Supernet(model, space)
    supernet.calibrate(x)
    full = {c.name: c.options[-1] for c in space.choices}
    shallow = Architecture(space, {**full, **{c.name: c.options[0] for c in space.choices if c.kind == "depth"}})
    found, errors = switch_options(supernet, shallow, [(x, y)])

    def loss(options: dict[str, object]) -> float:
        network = dnas.realise(supernet, Architecture(space, options))  # type: ignore[arg-type]
        with torch.no_grad(), batch_statistics(network):
            return float(nn.functional.cross_entropy(network(x), y))

    names = {layer.weight_choice: layer.name for layer in space.layers}
    silent = [choice for choice, name in names.items() if not space.runs(name, shallow.positions())]
    running = [choice for choice, name in names.items() if space.runs(name, shallow.positions())]
    assert len(silent) == 6  # three blocks
    for base, chosen in ((full, silent), (shallow.options, running)):
        for name in chosen:
            low = space.choice(name).options[0]
            expected = loss(dict(base)) - loss({**base, name: low})
            assert found.values[name] == pytest.approx((expected, 0.0), abs=1e-5)
            assert all(error > 0 for error in errors[name])


def test_the_widest_uniform_network_is_a_deep_one() -> None:
    """Filters of blocks that do not run do not count: W3A3 without the last blocks is not wider than W2A2 with them."""
    space = dnas.build_space(resnet20(3, 5).eval(), torch.randn(2, 3, 8, 8), min_depth=1)
    found = widest_uniform(space, dnas.Budget(bops=0.1))
    assert found is not None
    assert {found[c.name] for c in space.choices if c.kind == "depth"} == {3}
    assert dnas.Budget(bops=0.1).holds(found)
