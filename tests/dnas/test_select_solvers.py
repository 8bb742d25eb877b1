"""Selection with joint tables, with every solver, and over a grid of budgets."""

import json

import numpy as np
import pytest
import torch
from networks import NETWORKS, example

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores, nested
from dnas.select.pareto_front import frontier
from dnas.select.program import enumerate_positions
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.cost import build_cost


@pytest.fixture(scope="module")
def space() -> Space:
    torch.manual_seed(0)
    model = NETWORKS["chain"]()
    return build_space(model, example(model), (2, 4, 8), (4, 8), (0.5, 1.0))


def joint_scores(space: Space, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    values = {c.name: tuple(rng.normal(size=len(c.options)).tolist()) for c in space.choices}
    layers = [layer for layer in space.layers if space.choice(layer.weight_choice).searched]
    names = [(layer.weight_choice, layer.act_choice) for layer in layers]
    names.append((layers[0].weight_choice, layers[-1].weight_choice))  # not neighbours
    joint = tuple((n, nested(rng.normal(size=[len(space.choice(c).options) for c in n]).tolist())) for n in names)
    return Scores(values, "measured", joint)


def total(scores: Scores, positions: dict[str, int]) -> float:
    value = sum(scores.values[name][option] for name, option in positions.items())
    for names, table in scores.joint:
        entry = table
        for name in names:
            entry = entry[positions[name]]
        value += entry
    return value


@pytest.mark.parametrize("solver", ["auto", "labels", "highs"])
@pytest.mark.parametrize("seed", range(5))
def test_joint_tables_count(solver: str, seed: int, space: Space) -> None:
    scores = joint_scores(space, seed)
    budget = Budget(bops=0.3, weight_bits=0.5)
    limits = budget.limits(space)
    costs = [build_cost(space, name) for name in limits]
    best = max(total(scores, p) for p in enumerate_positions(space) if all(c.at(p) <= limits[c.name] for c in costs))
    found = select(scores, space, budget, solver=solver)
    assert budget.holds(found)
    certificate = found.certificate
    assert certificate is not None
    assert certificate.method == ("highs" if solver == "highs" else "labels")
    assert certificate.value == pytest.approx(total(scores, found.positions()))  # type: ignore[arg-type]
    assert certificate.value == pytest.approx(best, abs=2e-5)
    assert certificate.bound >= best - 1e-6


@pytest.mark.parametrize("solver", ["frank_wolfe", "evolution", "random"])
def test_heuristics_have_a_lagrangian_bound(solver: str, space: Space) -> None:
    scores, budget = joint_scores(space, 0), Budget(bops=0.3)
    exact, found = select(scores, space, budget), select(scores, space, budget, solver=solver)
    assert exact.certificate is not None
    assert found.certificate is not None
    assert found.certificate.method == solver
    assert budget.holds(found)
    assert found.certificate.value <= exact.certificate.value + 1e-9
    assert exact.certificate.value - 1e-9 <= found.certificate.bound < float("inf")


def test_scores_keep_their_joint_tables(space: Space) -> None:
    scores = joint_scores(space, 0)
    scores.check(space)
    assert Scores.from_json(scores.to_json()) == scores
    plain = Scores(scores.values, "measured")
    assert "joint" not in json.loads(plain.to_json())  # files without joint tables stay as they were
    assert Scores.from_json(plain.to_json()) == plain
    assert scores.monotone(space).joint == scores.joint
    both = scores.mean(plain)
    for (names, table), (expected, whole) in zip(both.joint, scores.joint, strict=True):
        assert names == expected
        assert np.allclose(np.array(table) * 2, whole)
    assert np.allclose(scores.mean(scores).joint[0][1], scores.joint[0][1])


def test_joint_tables_that_do_not_fit(space: Space) -> None:
    values = {c.name: (0.0,) * len(c.options) for c in space.choices}
    weight = next(c for c in space.searched() if c.kind == "weight_bits").name
    act = next(c for c in space.searched() if c.kind == "act_bits").name
    for joint, message in (
        (((weight, "nobody"), [[0.0]]), "distinct choices"),
        (((weight, weight), [[0.0] * 3] * 3), "distinct choices"),
        (((weight, act), [[0.0] * 3] * 2), r"shape \(3, 2\)"),
        (((weight, act), [[0.0, float("nan")]] * 3), "finite"),
        (((weight, act), [[0.0, 0.0], [0.0], [0.0, 0.0]]), r"shape \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Scores(values, "measured", (joint,)).check(space)
    Scores(values, "measured", (((weight, act), [[0.0] * 2] * 3),)).check(space)


def test_single_filters_are_left_to_highs() -> None:
    torch.manual_seed(0)
    model = NETWORKS["chain"]()
    fine = build_space(model, example(model), (2, 4), (4, 8), (0.5, 1.0), granularity="filter")
    values = {c.name: ((0.0,) * c.width,) * c.count if c.by_filter else (0.0,) * c.width for c in fine.choices}
    with pytest.raises(ValueError, match=r"select\.solver is 'labels', but single filters decide"):
        select(Scores(values, "measured"), fine, Budget(bops=0.3), solver="labels")
    by_filter = next(c.name for c in fine.choices if c.by_filter)
    whole = next(c.name for c in fine.choices if not c.by_filter)
    with pytest.raises(ValueError, match="single filters decide"):
        Scores(values, "measured", (((by_filter, whole), [[0.0]]),)).check(fine)


def test_infeasible_budgets_name_what_is_dear(space: Space) -> None:
    smallest = {name: build_cost(space, name).at(space.extreme(False)) for name in ("bops", "weight_bits")}
    with pytest.raises(BudgetError) as error:
        Budget(bops=smallest["bops"] / 2, weight_bits=smallest["weight_bits"] / 2).check(space)
    for cost, value in smallest.items():
        assert f"budget.{cost}" in str(error.value)
        assert f"{value:.6g}" in str(error.value)
    # by hand: the share of the smallest network's weight bits in the layers that a choice enters
    cost, position = build_cost(space, "weight_bits"), {c.name: 0 for c in space.choices}
    share: dict[str, float] = {}
    for factor in cost.rows[0]:
        for name in factor.choices:
            if space.choice(name).searched or space.choice(name).kind != "filters":
                share[name] = share.get(name, 0.0) + factor.at(position) / smallest["weight_bits"]
    heaviest = max(share, key=lambda name: share[name])
    assert f"{heaviest} enters at its cheapest option ({share[heaviest]:.0%})" in str(error.value)


@pytest.mark.parametrize("cost", ["bops", "peak_activation_bits"])
def test_a_front_is_best_at_every_cost(cost: str, space: Space) -> None:
    scores = joint_scores(space, 1)
    budget = Budget(weight_bits=0.6)
    limit = budget.limits(space)["weight_bits"]
    other = build_cost(space, "weight_bits")
    every = [p for p in enumerate_positions(space) if other.at(p) <= limit]
    values, spent = (
        np.array([total(scores, p) for p in every]),
        np.array([build_cost(space, cost).at(p) for p in every]),
    )
    found = frontier(scores, space, cost, 40, budget)
    assert len(found) >= (5 if cost == "bops" else 2)  # few tensors, few peaks
    before = (-1.0, -float("inf"))
    for architecture in found:
        certificate = architecture.certificate
        assert certificate is not None
        assert budget.holds(architecture)
        here = certificate.costs[cost]
        assert here <= certificate.limits[cost]
        assert certificate.value == pytest.approx(values[spent <= certificate.limits[cost]].max(), abs=1e-6)
        assert certificate.gap == 0
        assert here > before[0]
        assert certificate.value > before[1]
        before = (here, certificate.value)
    assert found[0].certificate.costs[cost] == spent.min()
    assert found[-1].certificate.value == pytest.approx(values.max(), abs=1e-6)


def test_a_front_ends_at_the_budget_on_its_cost(space: Space) -> None:
    scores, budget = joint_scores(space, 2), Budget(bops=0.2)
    found = frontier(scores, space, "bops", 10, budget)
    assert all(isinstance(architecture, Architecture) and budget.holds(architecture) for architecture in found)
    assert found[-1].certificate.value == pytest.approx(select(scores, space, budget).certificate.value, abs=1e-6)
    with pytest.raises(ValueError, match="count is 1"):
        frontier(scores, space, "bops", 1)
    with pytest.raises(ValueError, match="unknown cost"):
        frontier(scores, space, "watts")
