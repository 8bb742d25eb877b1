"""Selection where single filters decide, against enumeration."""

from typing import Any

import numpy as np
import pytest
import torch
from test_filter_cost import SPACES, joined, positions_of, space_of
from torch import Tensor, nn

import dnas
from dnas.search.budget import BudgetError
from dnas.search.scores import Scores
from dnas.select import by_filter
from dnas.select.settle import total_score
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.conventions import macs
from dnas.space.cost import Cost, Factor, build_cost


def scores_of(space: Space, seed: int, growing: bool = True) -> Scores:
    """Random, growing with the width if asked for; keeping a filter is then worth something."""
    generator = np.random.default_rng(seed)

    def row(width: int) -> tuple[float, ...]:
        found = generator.random(width)
        return tuple((np.sort(found) if growing else found).tolist())

    values: dict[str, Any] = {}
    for choice in space.choices:
        rows = tuple(row(choice.width) for _ in range(choice.count))
        values[choice.name] = rows if choice.by_filter else rows[0]
    return Scores(values, "random")


def allowed(space: Space, positions: dict[str, Any]) -> bool:
    """Whether every group keeps one of the numbers of filters that it may."""
    try:
        Architecture.at(space, positions)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", SPACES)
def test_the_best_within_the_budget_or_within_the_gap(kind: str) -> None:
    space = SPACES[kind]()
    cost = build_cost(space, "bops")
    every = [p for p in positions_of(space) if allowed(space, p)]
    costs = np.array([cost.at(p) for p in every])
    for seed, share in ((0, 0.4), (1, 0.6), (2, 0.8)):
        scores = scores_of(space, seed)
        limit = float(np.quantile(costs, share))
        values = np.array([total_score(scores, space, p) for p in every])
        best = values[costs <= limit].max()
        found = dnas.select(scores, space, dnas.Budget(bops=max(limit, 2.0)))
        certificate = found.certificate
        assert certificate is not None
        assert found.cost("bops") <= limit
        assert certificate.value == pytest.approx(total_score(scores, space, found.positions()))
        assert certificate.bound >= certificate.value
        assert certificate.bound >= best - 1e-6
        assert certificate.value >= best - 1e-6  # on spaces as small as these
        print(
            kind,
            share,
            round(best, 3),
            round(certificate.value, 3),
            round(certificate.bound, 3),
            round(certificate.seconds, 2),
        )


class Depthwise(nn.Module):
    """A depthwise convolution between two others."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(1, channels, 1), nn.Conv2d(channels, 1, 1)
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depth(self.a(x).relu()).relu())


BITS: dict[str, Any] = {"weight_bits": (2, 4, 8), "act_bits": (2, 8)}
BOTH: dict[str, Any] = {"granularity": {"depth": "filter"}, "act_granularity": {"depth": "filter"}}
HARDER = {
    "depthwise, weights and activations": lambda: space_of(Depthwise(), **BITS, **BOTH),
    "the same, filters go": lambda: space_of(Depthwise(), **{**BITS, "weight_bits": (0, 2, 8)}, **BOTH),
    "uneven blocks": lambda: space_of(Depthwise(), **BITS, act_granularity="filter", filter_block=2),
    "a concat": lambda: joined(1, 1),
    "a concat, uneven blocks": lambda: joined(1, 3),
    "joined twice": lambda: joined(2, 2),
}
"""Spaces where costs depend on more than the total widths of layers."""


def in_order(space: Space, scores: Scores, positions: dict[str, Any]) -> bool:
    """Whether no group keeps a block of filters that is worth less than one that it removes."""
    for choice in space.choices:
        if choice.by_filter and choice.kind == "filters":
            worth = [row[1] - row[0] for row in scores.rows(choice)]
            kept = [worth[i] for i, stays in enumerate(positions[choice.name]) if stays]
            gone = [worth[i] for i, stays in enumerate(positions[choice.name]) if not stays]
            if max(gone, default=-2.0) > min(kept, default=2.0):
                return False
    return True


@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("name", ["bops", "activation_traffic_bits", "peak_activation_bits"])
@pytest.mark.parametrize("kind", HARDER)
def test_budgets_hold_and_nothing_beats_the_bound(kind: str, name: str, growing: bool) -> None:
    space = HARDER[kind]()
    cost = build_cost(space, name)
    every = [p for p in positions_of(space) if allowed(space, p)]
    costs = np.array([cost.at(p) for p in every])
    for seed, share in ((0, 0.1), (1, 0.4), (2, 0.8)):
        scores, limit = scores_of(space, seed, growing), float(np.quantile(costs, share))
        within = [p for p, value in zip(every, costs, strict=True) if value <= limit and in_order(space, scores, p)]
        found = dnas.select(scores, space, dnas.Budget(**{name: limit}))
        assert cost.at(found.positions()) == found.certificate.costs[name] <= limit
        assert found.certificate.value <= found.certificate.bound
        assert max(total_score(scores, space, p) for p in within) <= found.certificate.bound + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_a_depthwise_layer_is_not_certified_below_an_architecture_that_is_known(seed: int) -> None:
    """Every channel has wide weights or wide activations, whichever is worth more: cheaper than both in one channel."""
    space = space_of(Depthwise(16), **{**BITS, "weight_bits": (2, 8)}, **BOTH)
    weights, acts = np.random.default_rng(seed).random((2, 16))
    values: dict[str, Any] = {choice.name: (0.0,) * choice.width for choice in space.choices}
    values |= {"depth.weight_bits": tuple((0.0, w) for w in weights), "depth.act_bits": tuple((0.0, a) for a in acts)}
    known = space.extreme(dearest=False)
    known |= {"depth.weight_bits": tuple((weights > acts).astype(int).tolist())}
    known |= {"depth.act_bits": tuple((weights <= acts).astype(int).tolist())}
    scores, limit = Scores(values, "by hand"), build_cost(space, "bops").at(known)
    found = dnas.select(scores, space, dnas.Budget(bops=limit))
    assert found.cost("bops") <= limit
    assert total_score(scores, space, known) == pytest.approx(np.maximum(weights, acts).sum())
    assert np.maximum(weights, acts).sum() <= found.certificate.bound < weights.sum() + acts.sum()


@pytest.mark.parametrize("share", [0.9, 0.5, 0.0])
def test_a_program_that_counts_too_little_is_solved_again_or_refused(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the program believes, what comes back holds in the space's own integers."""
    space, scores = joined(1, 1), scores_of(joined(1, 1), 0)
    cost, counts = build_cost(space, "peak_activation_bits"), by_filter._surrogate_cost
    limit = (cost.at(space.extreme(False)) + cost.at(space.extreme(True))) / 2

    def too_little(*args: Any, **more: Any) -> Cost:
        own = counts(*args, **more)
        rows = tuple(tuple(Factor(f.choices, f.table * share) for f in row) for row in own.rows)
        return Cost(own.name, rows, tuple(c * share for c in own.constants))

    monkeypatch.setattr(by_filter, "_surrogate_cost", too_little)
    budget = dnas.Budget(peak_activation_bits=limit)
    if share:
        assert 0.8 * limit <= dnas.select(scores, space, budget).cost("peak_activation_bits") <= limit
    else:
        with pytest.raises(
            BudgetError, match=r"whose costs hold the budgets .* the last one costs .* raise the budget"
        ):
            dnas.select(scores, space, budget)


def test_a_legal_width_that_is_on_no_frontier() -> None:
    """Four bits beside eight are all that fits; by score per bit no filter would take them."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    ).eval()  # fmt: skip
    space = dnas.build_space(
        model, torch.rand(4, 3, 8, 8), (2, 4, 8), (2, 8), (1.0,), granularity="filter",
        target=dnas.Target("pairs", pairs=((2, 2), (4, 8), (8, 8))),
    )  # fmt: skip
    values: dict[str, Any] = {
        c.name: ((0.0, 0.1, 1.0),) * c.count if c.by_filter else tuple(float(i) for i in range(len(c.options)))
        for c in space.choices
    }
    four = {c.name: (4,) * c.count if c.kind == "weight_bits" else c.options[-1] for c in space.choices}
    limit = Architecture(space, four).cost("weight_bits")
    found = dnas.select(Scores(values, "given"), space, dnas.Budget(weight_bits=float(limit)))
    assert found.cost("weight_bits") <= limit
    for layer in space.layers:
        (act,) = {found[layer.act_choice]} if isinstance(found[layer.act_choice], int) else set(found[layer.act_choice])
        assert {(w, act) for w in found[layer.weight_choice]} <= {(2, 2), (4, 8), (8, 8)}


@pytest.mark.parametrize("granularity", ["layer", "filter"])
def test_the_least_of_a_cost_that_does_not_grow_with_the_width(granularity: str) -> None:
    """Three bits are unpacked to eight: four are the cheapest."""

    def own(layer: Any, inputs: int, outputs: int, weight: int, act: int) -> float:
        return macs(layer, inputs, outputs, weight, act) * {3: 8, 4: 4, 8: 8}[weight]

    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    space = dnas.build_space(model, torch.rand(4, 3, 8, 8), (3, 4, 8), (8,), (1.0,), granularity=granularity)
    four = {
        c.name: (4,) * c.count if c.by_filter else 4 if c.kind == "weight_bits" else c.options[-1]
        for c in space.choices
    }
    values: dict[str, Any] = {
        c.name: (tuple(range(c.width)),) * c.count if c.by_filter else tuple(range(c.width)) for c in space.choices
    }
    limit = Architecture(space, four, functions={"own": own}).cost("own")
    found = dnas.select(Scores(values, "given"), space, dnas.Budget(own=float(limit), functions={"own": own}))
    assert found.cost("own") == limit
    with pytest.raises(BudgetError, match="smallest"):
        dnas.select(Scores(values, "given"), space, dnas.Budget(own=0.99 * limit, functions={"own": own}))
