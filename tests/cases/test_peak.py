"""The peak of activation memory where values wait: pre-activation, shortcuts without parameters, gates, blocks left out."""

import copy
import itertools
import json

import torch
from equivalence import leave_out
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.cost import build_cost

PIXELS = 64


def peaks(space: Space, position: dict[str, int] | None = None) -> list[float]:
    """Of every row, in elements of 8 bits."""
    cost = build_cost(space, "peak_activation_bits")
    found = position or {choice.name: 0 for choice in space.choices}
    rows = zip(cost.rows, cost.constants, strict=True)
    return [(constant + sum(factor.at(found) for factor in row)) / 8 for row, constant in rows]


def whole(model: nn.Module, x: Tensor) -> Space:
    return build_space(model.eval(), x, (8,), (8,), (1.0,))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class Transformer(nn.Module):
    """One block with the norm first, on 16 tokens of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.up, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.down(self.up(self.norm(x)).relu())
        result: Tensor = self.head(x.mean(1))
        return result


def test_a_residual_stream_waits_until_it_is_added() -> None:
    tokens, stream, normed, hidden, pooled = 16 * 4, 16 * 8, 16 * 8, 16 * 12, 8
    found = peaks(whole(Transformer(), torch.randn(2, 16, 4)))
    assert found == [
        tokens + stream + normed, normed + hidden + stream, hidden + stream + pooled, pooled
    ]  # fmt: skip


class Before(nn.Module):
    """Norm and ReLU before the convolutions; the sum takes what was there before them."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.stem, self.norm, self.a, self.b, self.head = (
            conv(3, 8),
            nn.BatchNorm2d(8),
            conv(8, 4),
            conv(4, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)) if self.inside else self.stem(x)
        read = x.relu() if self.inside else self.norm(x).relu()
        result: Tensor = self.head((x + self.b(self.a(read).relu())).relu().mean((2, 3)))
        return result


def test_what_stands_before_a_norm_waits_for_the_sum() -> None:
    image, x, read, a = 3 * PIXELS, 8 * PIXELS, 8 * PIXELS, 4 * PIXELS
    given = torch.randn(2, 3, 8, 8)
    assert peaks(whole(Before(inside=False), given)) == [image + x + read, read + a + x, a + x + 8, 8]
    # made after the stem ran, in place of its output
    assert peaks(whole(Before(inside=True), given)) == [image + read, read + a + x, a + x + 8, 8]


class Pooled(nn.Module):
    """A shortcut of no parameters, smaller than what it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 8, 2), conv(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        short = F.avg_pool2d(x, 2)
        result: Tensor = self.head((self.b(self.a(x).relu()) + short).relu().mean((2, 3)))
        return result


def test_a_pooled_shortcut_waits_at_its_own_size() -> None:
    image, x, small = 3 * PIXELS, 8 * PIXELS, 8 * PIXELS // 4
    space = whole(Pooled(), torch.randn(2, 3, 8, 8))
    assert peaks(space) == [image + x, x + small + small, small + small + 8, 8]
    # what is not read by a layer is no traffic
    assert build_cost(space, "activation_traffic_bits").at({c.name: 0 for c in space.choices}) == 8 * (
        image + x + small + 8
    )


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Block(nn.Module):
    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.a, self.b, self.se, self.last = (
            conv(channels, 2 * channels),
            conv(2 * channels, channels),
            Excite(channels),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        found = self.se(self.b(self.a(x).relu()))
        return (x + found).relu() if self.last else x + found.relu()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv(3, 4), nn.Sequential(Block(4, True), Block(4, False), Block(4, True))
        self.down, self.second = conv(4, 6, 2), nn.Sequential(Block(6, True), Block(6, True))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.first(self.stem(x).relu())).relu()
        result: Tensor = self.head(self.second(x).mean((2, 3)))
        return result


def test_a_gate_waits_for_its_factors() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6), Excite(6), nn.ReLU(), conv(6, 2)).eval()
    image, x, gated, pooled = 3 * PIXELS, 4 * PIXELS, 6 * PIXELS, 6
    assert peaks(whole(model, torch.randn(2, 3, 8, 8))) == [
        image + x, x + gated + pooled, pooled + 2 + gated, 2 + gated + gated, gated
    ]  # fmt: skip


def test_blocks_left_out_cost_what_the_smaller_network_does() -> None:
    """All 384 architectures, which are 105 networks, against spaces of models that never had these blocks."""
    model, x = Blocks().eval(), torch.rand(2, 3, 8, 8)
    space = build_space(model, x, (8,), (8,), (1.0,), min_depth=0, branches=("*.se",))
    searched = list(space.searched())
    assert {choice.kind for choice in searched} == {"depth", "branch"}
    rest = {choice.name: 0 for choice in space.choices}
    needed: dict[tuple[bool, ...], float] = {}
    found = 0
    for taken in itertools.product(*(range(len(choice.options)) for choice in searched)):
        position = rest | dict(zip([choice.name for choice in searched], taken, strict=True))
        running = tuple(space.runs(layer.name, position) for layer in space.layers)
        if running not in needed:
            small = copy.deepcopy(model)
            leave_out(small, space, position)
            needed[running] = max(peaks(whole(small, x)))
        assert max(peaks(space, position)) == needed[running], position
        found += 1
    assert (found, len(needed)) == (4 * 3 * 2**5, (1 + 2 + 4 + 8) * (1 + 2 + 4))
    assert Space.from_json(space.to_json()) == space


def test_a_space_of_an_earlier_release_keeps_its_digest() -> None:
    """It has gates, but no rows; an architecture that was chosen from it is still read."""
    space = build_space(Blocks().eval(), torch.rand(2, 3, 8, 8), (8,), (8,), (1.0,), min_depth=1)
    content = json.loads(space.to_json())
    del content["calls"]
    earlier = json.dumps(content, indent=1)
    assert Space.from_json(earlier).to_json() == earlier


def test_blocks_left_out_never_cost_more_than_is_counted(generator: torch.Generator) -> None:
    """What waits for a tensor of a block that is left out has that tensor's width no more: it counts as the widest."""
    model, x = Blocks().eval(), torch.rand(2, 3, 8, 8)
    space = build_space(model, x, (8,), (2, 8), (1.0,), min_depth=0, branches=("*.se",))
    equal = 0
    for _ in range(40):
        position = {c.name: int(torch.randint(len(c.options), (1,), generator=generator)) for c in space.choices}
        small = copy.deepcopy(model)
        leave_out(small, space, position)
        anew = build_space(small, x, (8,), (2, 8), (1.0,))
        of_layer = {layer.act_choice: layer.name for layer in reversed(anew.layers)}
        found = {
            c.name: position[space.layer(of_layer[c.name]).act_choice] if c.name in of_layer else 0
            for c in anew.choices
        }
        counted, needed = max(peaks(space, position)), max(peaks(anew, found))
        assert counted >= needed
        equal += counted == needed
    assert equal >= 30
