"""Costs of choices by filter against enumeration: every set of kept channels, every width of every filter."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dnas
from dnas.space.choice import Layer, Position, Space
from dnas.space.cost import build_cost

OPTIONS: dict[str, Any] = {"weight_bits": (0, 2, 4), "act_bits": (3, 8), "filters": (1.0,), "granularity": "filter"}


class Coupled(nn.Module):
    """A residual add, a depthwise convolution, and features that are flattened with space left."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 3, padding=1)
        self.depth = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.b = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = y + self.b(self.depth(y).relu())
        return self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


class Two(nn.Module):
    """Two groups, one of which decides as a whole, joined by a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Conv2d(1, 2, 1)
        self.single = nn.Conv2d(1, 2, 1)
        self.last = nn.Conv2d(4, 2, 1)
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.whole(x), self.single(x)], 1).relu()
        z = self.last(y)
        return self.head(z + y[:, :2])


class Joined(nn.Module):
    """A tensor that waits for another one, to be joined with it once or twice."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.last = nn.Conv2d(2 * times + 2, 1, 1)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([*[self.first(x).relu()] * self.times, self.second(x).relu()], 1))


def space_of(model: nn.Module, **options: Any) -> Space:
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    return dnas.build_space(model, torch.rand(4, channels, 4, 4), **{**OPTIONS, **options})


SPACES = {
    "coupled": lambda: space_of(Coupled()),
    "coupled, channels of activations": lambda: space_of(
        Coupled(), weight_bits=(0, 4), act_granularity={"depth": "filter", "head": "filter"}
    ),
    "only activations": lambda: space_of(
        Coupled(), weight_bits=(2, 4), granularity="layer", act_granularity={"b": "filter"}, filters=(0.5, 1.0)
    ),
    "blocks": lambda: space_of(Coupled(), filter_block=2),
    "two groups": lambda: space_of(Two(), granularity={"single": "filter", "head": "filter"}, filters=(0.5, 1.0)),
    "shares": lambda: space_of(
        Coupled(), weight_bits=(2, 4), filters=(0.5, 1.0), granularity={"*": "filter", "head": "layer"}
    ),
}


def positions_of(space: Space) -> Iterator[dict[str, Position]]:
    """Everything that the choices can decide, also that no filter stays."""
    every: list[list[Position]] = []
    for choice in space.choices:
        one = range(choice.width)
        every.append(list(product(one, repeat=choice.count)) if choice.by_filter else list(one))
    for found in product(*every):
        yield dict(zip([choice.name for choice in space.choices], found, strict=True))


def by_hand(space: Space, positions: dict[str, Position], name: str) -> float:
    """A sum over pairs of channels, one at a time."""

    def stays(group: int, position: int) -> float:
        choice = space.choice(space.groups[group].choice)
        found = positions[choice.name]
        if isinstance(found, tuple):
            return found[position // choice.block]
        return choice.options[found] / space.groups[group].size  # whichever they are: their number counts

    def bits(name: str, channel: int) -> int:
        choice, found = space.choice(name), positions[name]
        return choice.options[found[channel // choice.block] if isinstance(found, tuple) else found]

    def pair(layer: Layer, j: int, f: int) -> float:
        w, a = bits(layer.weight_choice, f), bits(layer.act_choice, j)
        return {"bops": layer.positions * w * a, "macs": layer.positions, "weight_bits": w}[name] * layer.kernel

    total = 0.0
    for layer in space.layers:
        ins = [stays(*key) for key in zip(layer.inputs.group, layer.inputs.position, strict=True)]
        outs = [stays(*key) for key in zip(layer.outputs.group, layer.outputs.position, strict=True)]
        if layer.depthwise:
            total += sum(m * pair(layer, f, f) for f, m in enumerate(outs))
        else:
            total += sum(ins[j] * outs[f] * pair(layer, j, f) for j in range(len(ins)) for f in range(len(outs)))
    return total


@pytest.mark.parametrize("name", ["bops", "macs", "weight_bits"])
@pytest.mark.parametrize("kind", SPACES)
def test_the_expectation_is_that_of_enumeration(kind: str, name: str, generator: torch.Generator) -> None:
    space = SPACES[kind]()
    cost = build_cost(space, name)
    chances = {
        choice.name: torch.rand(choice.count, choice.width, generator=generator, dtype=torch.float64).softmax(1)
        for choice in space.choices
    }
    entering, want, mass = set(cost.choices), 0.0, 0.0
    left_out = [c.name for c in space.choices if c.name not in entering]
    for count, positions in enumerate(positions_of(space)):
        if any(positions[c] not in (0, (0,) * space.choice(c).count) for c in left_out):
            continue
        weight = 1.0
        for choice in cost.choices:
            found = positions[choice]
            for decision, option in enumerate(found if isinstance(found, tuple) else (found,)):
                weight *= float(chances[choice][decision, option])
        value = by_hand(space, positions, name)
        if count % 97 == 0:
            assert cost.at(positions) == pytest.approx(value, rel=1e-12)
        want, mass = want + weight * value, mass + weight
    assert mass == pytest.approx(1.0)
    width = max(matrix.shape[1] for matrix in chances.values())
    matrix = torch.cat([nn.functional.pad(chances[c], (0, width - chances[c].shape[1])) for c in cost.choices])
    assert float(cost.expectation(matrix)) == pytest.approx(want, rel=1e-10)
    assert torch.autograd.gradcheck(cost.expectation, matrix.requires_grad_())


def joined(times: int, block: int) -> Space:
    fine = {"granularity": "layer", "act_granularity": {"last": "filter"}, "filter_block": block}
    return space_of(Joined(times), weight_bits=(4,), act_bits=(2, 3, 8), **fine)


def stored(space: Space, channels: int) -> Iterator[tuple[dict[str, Position], list[int]]]:
    """Every way to give these channels of the last layer's input their widths."""
    block = space.choice("last.act_bits").block
    for taken in product(range(3), repeat=-(-channels // block)):
        widths = [(2, 3, 8)[taken[channel // block]] for channel in range(channels)]
        yield {**space.extreme(dearest=True), "last.act_bits": taken}, widths


@pytest.mark.parametrize("block", [1, 2, 3])
def test_stored_channels_have_the_widths_of_their_own_decisions(block: int) -> None:
    """Images of 16 pixels at 8 bits; `first` waits until the concat, at the widths that its two channels have in there."""
    space = joined(1, block)
    traffic, peak = build_cost(space, "activation_traffic_bits"), build_cost(space, "peak_activation_bits")
    values = []
    for positions, widths in stored(space, 4):
        image, waiting, joint = 16 * 8, 16 * sum(widths[:2]), 16 * sum(widths)
        values.append(image + joint)
        assert traffic.at(positions) == values[-1]
        assert peak.at(positions) == image + waiting + joint  # while `second` runs
    even = torch.full((space.choice("last.act_bits").count, 3), 1 / 3, dtype=torch.float64)
    matrix = {"last.act_bits": even}
    found = traffic.expectation(torch.cat([matrix.get(name, torch.eye(1, 3).double()) for name in traffic.choices]))
    assert float(found) == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("block", [1, 2])
def test_a_channel_that_is_joined_twice_waits_at_the_dearest_width(block: int) -> None:
    space = joined(2, block)
    peak = build_cost(space, "peak_activation_bits")
    for positions, widths in stored(space, 6):
        assert peak.at(positions) == 16 * 8 + 16 * 2 * 8 + 16 * sum(widths)
