"""The selector against brute force, and the architectures that it is compared with."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from networks import NETWORKS, example
from torch import nn

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores
from dnas.select.program import enumerate_positions
from dnas.select.reference import random_architecture, uniform_architecture, uniform_candidates
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Layer, Space
from dnas.space.cost import COSTS, build_cost
from dnas.space.target import Target

PAIRS = ((2, 8), (4, 4), (8, 4), (8, 8))


def make_space(name: str, exclude: tuple[str, ...] = (), pairs: tuple[tuple[int, int], ...] | None = None) -> Space:
    model = NETWORKS[name]()
    return build_space(
        model, example(model), (2, 4, 8), (4, 8), (0.5, 1.0), exclude=exclude, target=Target(pairs=pairs)
    )


@pytest.fixture(scope="module")
def spaces() -> dict[str, Space]:
    torch.manual_seed(0)
    return {
        "chain": make_space("chain"),
        "pairs": make_space("chain", pairs=PAIRS),
        "separable": make_space("separable", ("stem", "head.fc")),
        "concat": make_space("concat", ("left", "head.fc")),
        "residual": make_space("residual", ("stem", "b", "short", "d", "head.fc")),
    }


class Everything:
    """All architectures of a space, with their costs; computed once per space."""

    def __init__(self, space: Space) -> None:
        self.positions = list(enumerate_positions(space))
        self.options = [{c.name: c.options[positions[c.name]] for c in space.choices} for positions in self.positions]
        self.costs = {name: np.array([build_cost(space, name).at(p) for p in self.positions]) for name in COSTS}
        self.legal = np.array(
            [
                space.pairs is None
                or all((o[layer.weight_choice], o[layer.act_choice]) in space.pairs for layer in space.layers)
                for o in self.options
            ]
        )

    def values(self, scores: Scores) -> np.ndarray:
        return np.array([sum(scores.values[n][i] for n, i in p.items()) for p in self.positions])

    def holds(self, limits: Mapping[str, float]) -> np.ndarray:
        return np.logical_and.reduce([self.legal, *(self.costs[name] <= limit for name, limit in limits.items())])


@pytest.fixture(scope="module")
def everything(spaces: dict[str, Space]) -> dict[str, Everything]:
    found = {name: Everything(space) for name, space in spaces.items()}
    assert all(10 < len(every.positions) < 5000 for every in found.values())
    return found


def random_scores(space: Space, rng: np.random.Generator, monotone: bool) -> Scores:
    values = {c.name: tuple(rng.normal(size=len(c.options)).tolist()) for c in space.choices}
    return Scores(values, "measured").monotone(space) if monotone else Scores(values, "measured")


@pytest.mark.parametrize("name", ["chain", "pairs", "separable", "concat", "residual"])
@pytest.mark.parametrize("seed", range(20))
def test_select_equals_brute_force(
    name: str, seed: int, spaces: dict[str, Space], everything: dict[str, Everything]
) -> None:
    space, every, rng = spaces[name], everything[name], np.random.default_rng(seed)
    scores = random_scores(space, rng, monotone=bool(seed % 2))
    caps = ["bops", "weight_bits", "peak_activation_bits", "activation_traffic_bits", "bops_uniq", "bops_accumulator"]
    picked = rng.choice(caps, size=1 + seed % 3, replace=False).tolist()
    # limits are costs of an architecture, so that they bind exactly: every cost is met with equality somewhere
    middle = int(rng.choice(np.flatnonzero(every.legal)))
    limits = {cap: float(every.costs[cap][middle]) for cap in picked}
    budget = Budget(**limits)
    found = select(scores, space, budget)
    values, holds = every.values(scores), every.holds(limits)
    best = values[holds].max()
    certificate = found.certificate
    assert certificate is not None
    assert budget.holds(found)
    chosen = every.options.index(dict(found.options))
    assert holds[chosen]
    assert certificate.value == pytest.approx(values[chosen])
    assert certificate.value == pytest.approx(best, abs=2e-5)
    assert certificate.value <= certificate.bound
    assert best <= certificate.bound + 1e-6
    assert 0 <= certificate.gap < 1e-4
    for cap, limit in limits.items():
        assert certificate.costs[cap] == every.costs[cap][chosen] <= limit == certificate.limits[cap]


def test_no_budget_is_the_argmax(spaces: dict[str, Space]) -> None:
    space = spaces["chain"]
    scores = random_scores(space, np.random.default_rng(0), monotone=False)
    found = select(scores, space)
    for choice in space.choices:
        assert found[choice.name] == choice.options[int(np.argmax(scores.values[choice.name]))]


def test_ties_go_to_the_dearer(spaces: dict[str, Space]) -> None:
    for space in (spaces["chain"], spaces["residual"]):
        level = Scores({c.name: (1.5,) * len(c.options) for c in space.choices}, "measured")
        assert dict(select(level, space).options) == {c.name: c.options[-1] for c in space.choices}
    space = spaces["chain"]
    # a tie under a budget: nothing is left that another option of some choice could still spend
    level = Scores({c.name: (0.0,) * len(c.options) for c in space.choices}, "measured")
    budget = Budget(bops=0.3)
    found = select(level, space, budget)
    for choice in space.searched():
        index = choice.index(found[choice.name])
        if index + 1 < len(choice.options):
            dearer = Architecture(space, {**found.options, choice.name: choice.options[index + 1]})
            assert not budget.holds(dearer)


def test_impossible_budgets(spaces: dict[str, Space]) -> None:
    space = spaces["chain"]
    scores = Scores({c.name: (0.0,) * len(c.options) for c in space.choices}, "measured")
    smallest = build_cost(space, "weight_bits").at({c.name: 0 for c in space.choices})
    with pytest.raises(BudgetError, match=f"{smallest:.6g}"):
        select(scores, space, Budget(weight_bits=smallest - 1))
    assert select(scores, space, Budget(weight_bits=smallest)).cost("weight_bits") == smallest
    # each alone can be met, both together cannot: the only legal pair at 2 bits of weights has 8 bits of activations
    space = spaces["pairs"]
    scores = Scores({c.name: (0.0,) * len(c.options) for c in space.choices}, "measured")
    traffic = build_cost(space, "activation_traffic_bits").at({c.name: 0 for c in space.choices})
    with pytest.raises(BudgetError, match="legal pairs"):
        select(scores, space, Budget(weight_bits=smallest, activation_traffic_bits=traffic))


def test_scores_that_do_not_fit(spaces: dict[str, Space]) -> None:
    space = spaces["chain"]
    right = {c.name: (0.0,) * len(c.options) for c in space.choices}
    for wrong in ({**right, "a.filters": (0.0,)}, {**right, "a.filters": (0.0, float("nan"))}, {}):
        with pytest.raises(ValueError, match="finite numbers"):
            select(Scores(wrong, "measured"), space)


def test_a_users_cost_as_budget(spaces: dict[str, Space]) -> None:
    def latency(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
        return c_out * (10 if weight_bits > 4 else 6)

    space = spaces["chain"]
    functions = {"latency": latency}
    scores = random_scores(space, np.random.default_rng(3), monotone=True)
    budget = Budget(latency=0.6, functions=functions)
    cost, every = build_cost(space, "latency", functions), Everything(space)
    limit = budget.limits(space)["latency"]
    fits = np.array([cost.at(p) <= limit for p in every.positions])
    found = select(scores, space, budget)
    assert found.certificate.value == pytest.approx(every.values(scores)[fits].max(), abs=2e-5)
    assert found.cost("latency") <= limit
    assert random_architecture(space, budget, 0, lowest=0.8).cost("latency") <= limit
    assert uniform_candidates(space, budget)
    assert budget.holds(Architecture(space, found.options))  # the budget knows its own functions


def test_uniform_architecture(spaces: dict[str, Space]) -> None:
    space = spaces["residual"]
    found = uniform_architecture(space, 4, 8, 0.5)
    assert {found[c.name] for c in space.searched() if c.kind == "weight_bits"} == {4}
    assert {found[c.name] for c in space.searched() if c.kind == "act_bits"} == {8}
    assert [found[g.choice] for g in space.groups if space.choice(g.choice).searched] == [4, 6]
    assert found["stem.weight_bits"] == 8
    with pytest.raises(ValueError, match="3 is not an option"):
        uniform_architecture(space, 3, 8)


@pytest.mark.parametrize(("name", "share"), [("chain", 0.3), ("pairs", 0.3), ("separable", 0.6), ("concat", 0.5)])
def test_uniform_candidates_are_those_that_nothing_contains(name: str, share: float, spaces: dict[str, Space]) -> None:
    space, budget = spaces[name], Budget(bops=share)
    legal = [p for p in itertools.product((2, 4, 8), (4, 8)) if space.pairs is None or p in space.pairs]
    fits = {}
    for (weight, act), ratio in itertools.product(legal, (0.5, 1.0)):
        architecture = uniform_architecture(space, weight, act, ratio)
        if budget.holds(architecture):
            fits[weight, act, ratio] = dict(architecture.options)
    best = [
        options
        for key, options in fits.items()
        if not any(other != key and all(o >= k for o, k in zip(other, key, strict=True)) for other in fits)
    ]
    found = [dict(architecture.options) for architecture in uniform_candidates(space, budget)]
    assert sorted(map(str, found)) == sorted(map(str, best))
    assert found


@pytest.mark.parametrize("caps", [("bops",), ("weight_bits",), ("bops", "peak_activation_bits")])
@pytest.mark.parametrize("name", ["chain", "pairs"])
def test_random_architectures_spend_the_budget(
    caps: tuple[str, ...], name: str, spaces: dict[str, Space], everything: dict[str, Everything]
) -> None:
    space, every = spaces[name], everything[name]
    middle = np.flatnonzero(every.legal)[int(every.legal.sum()) // 2]
    limits = {cap: float(every.costs[cap][middle]) for cap in caps}
    share = np.max([every.costs[cap] / limit for cap, limit in limits.items()], axis=0)
    allowed = int((every.legal & (share >= 0.96) & (share <= 1)).sum())
    budget, seen = Budget(**limits), set()
    for seed in range(8):
        before = (torch.random.get_rng_state(), np.random.get_state()[1].copy())
        found = random_architecture(space, budget, seed)
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        assert 0.96 <= max(found.cost(cap) / limit for cap, limit in limits.items()) <= 1.0
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert dict(random_architecture(space, budget, seed).options) == dict(found.options)
        if space.pairs:
            for layer in space.layers:
                assert (found[layer.weight_choice], found[layer.act_choice]) in space.pairs
        seen.add(str(found.options))
    assert len(seen) > 1 or allowed == 1


def test_random_architectures_at_the_ends(spaces: dict[str, Space]) -> None:
    space = spaces["chain"]
    full = {c.name: c.options[-1] for c in space.choices}
    assert dict(random_architecture(space, Budget(bops=1e12), 0).options) == full
    with pytest.raises(BudgetError, match="smallest architecture"):
        random_architecture(space, Budget(bops=1e-6), 0)


@pytest.mark.parametrize("names", [("bops",), ("bops", "weight_bits")])
def test_the_smallest_costs_can_be_asked_for(names: tuple[str, ...]) -> None:
    """Where budgets leave only the lowest-scored architecture, rounding does not make it unreachable."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    space = build_space(net, (torch.rand(4, 3, 8, 8),))
    caps = {name: build_cost(space, name).at(space.extreme(False)) for name in names}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = {c.name: np.sort(rng.random(c.width)) for c in space.choices}
        scores = Scores({name: tuple((row - row[0]).tolist()) for name, row in rows.items()}, "random")
        found = select(scores, space, Budget(**caps))
        assert {name: found.cost(name) for name in names} == caps
