"""Label setting against enumeration and HiGHS: on chains, on networks with shortcuts, depth and joint scores."""

import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dnas
from dnas.models import elastic_mobilenet, resnet20
from dnas.search.scores import Scores, nested
from dnas.select.labels import solve_by_labels, state_count
from dnas.select.problem import Problem, build_problem
from dnas.select.select import select
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from dnas.space.target import Target
from tests.networks import Residual, example

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from solver_instances import chain


def brute(problem: Problem) -> float:
    best = -np.inf
    for index in product(*(range(size) for size in problem.sizes.values())):
        positions = dict(zip(problem.sizes, index, strict=True))
        if problem.holds(positions):
            best = max(best, problem.value(positions))
    return best


@pytest.mark.parametrize("group", range(8))
def test_random_chains_are_solved_as_by_enumeration(group: int) -> None:
    """200 instances: one to three resources, with and without values of neighbours, tight and loose."""
    for seed in range(25 * group, 25 * (group + 1)):
        share = (0.01, 0.05, 0.2, 0.5)[seed % 4]
        problem = chain(3, 2 + seed % 2, 3, seed, share, 1 + seed % 3, bool(seed % 2))
        found, best = solve_by_labels(problem), brute(problem)
        if best == -np.inf:
            assert found.positions is None
            continue
        assert found.positions is not None
        assert problem.holds(found.positions)
        assert found.value == pytest.approx(best, abs=1e-9)
        assert found.bound == pytest.approx(best, abs=1e-9)


def scores(space: Space, seed: int, joint: bool = False) -> Scores:
    generator = np.random.default_rng(seed)
    values = {c.name: tuple(np.sort(generator.normal(0, 1, len(c.options))).tolist()) for c in space.choices}
    tables = []
    for layer in space.layers if joint else ():
        names = tuple(dict.fromkeys((layer.weight_choice, layer.act_choice)))
        shape = [len(space.choice(name).options) for name in names]
        tables.append((names, nested(generator.normal(0, 0.5, shape).tolist())))
    return Scores(values, "random", tuple(tables))


def residual(**options: object) -> Space:
    torch.manual_seed(0)
    return dnas.build_space(Residual().eval(), example(Residual()), (2, 4, 8), (2, 8), (0.5, 1.0), **options)  # type: ignore[arg-type]


def elastic() -> Space:
    torch.manual_seed(0)
    model: nn.Module = elastic_mobilenet(
        3, 5, stem=(8, 8), stem_stride=1, stages=(8, 12), strides=(1, 2), depth=3, expansion=4, last=(16, 16)
    )
    return dnas.build_space(
        model.eval(), torch.randn(2, 3, 8, 8), (2, 8), (4, 8), {"*.expand.0": (0.5, 1.0)}, kernels=(3, 5), min_depth=1,
        branches=("*.se",),
    )  # fmt: skip


SPACES: dict[str, Callable[[], Space]] = {
    "residual": residual,
    "pairs of a target": lambda: residual(target=Target(pairs=((2, 2), (4, 8), (8, 8)))),
    "joint choices": lambda: residual(pairs=((2, 2), (4, 8), (8, 8))),
    "elastic": elastic,
}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    "caps",
    [{"bops": 0.15}, {"bops": 0.3, "weight_bits": 0.4}, {"bops": 0.3, "peak_activation_bits": 0.7}],
    ids=["one", "two", "peak"],
)
@pytest.mark.parametrize("name", SPACES)
def test_real_spaces_are_solved_as_by_highs(name: str, caps: Mapping[str, float], joint: bool) -> None:
    space = SPACES[name]()
    budget = dnas.Budget(**caps)
    found = {s: select(scores(space, 3, joint), space, budget, solver=s) for s in ("labels", "highs")}
    certificates = {s: architecture.certificate for s, architecture in found.items()}
    labels, highs = certificates["labels"], certificates["highs"]
    assert labels is not None
    assert highs is not None
    assert (labels.method, highs.method) == ("labels", "highs")
    assert labels.value == pytest.approx(highs.value, abs=2e-5)
    assert labels.gap < 2e-5
    for cost, limit in budget.limits(space).items():
        assert found["labels"].cost(cost) <= limit


def test_a_resnet_with_depth_is_proven() -> None:
    torch.manual_seed(0)
    space = dnas.build_space(resnet20(3, 10).eval(), torch.randn(2, 3, 32, 32), min_depth=1)
    found = select(scores(space, 0), space, dnas.Budget(bops=0.05))
    assert found.certificate is not None
    assert found.certificate.method == "labels"
    assert found.certificate.gap < 1e-3


def test_what_has_too_many_states_goes_to_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    space = residual()
    monkeypatch.setattr(sys.modules["dnas.select.select"], "MOST_STATES", 3)
    found = select(scores(space, 0), space, dnas.Budget(bops=0.2))
    assert found.certificate is not None
    assert found.certificate.method == "highs"


def test_without_time_the_bound_still_holds() -> None:
    problem = chain(12, 4, 5, 0, 0.1, 2)
    best = solve_by_labels(problem)
    hurried = solve_by_labels(problem, time_limit=0.0)
    assert best.gap < 1e-9
    assert hurried.bound >= best.value - 1e-9
    if hurried.positions is not None:
        assert problem.holds(hurried.positions)
        assert hurried.value <= best.value + 1e-9


def test_states_carry_the_width_that_a_stage_shares() -> None:
    """On a chain two filter counts and a width are open at once, whatever its length; a shortcut adds one more count."""
    assert state_count(chain(4, 3, 4, 0)) == state_count(chain(9, 3, 4, 0)) == 3 * 3 * 4
    space = residual()
    limits = dnas.Budget(bops=0.2).limits(space)
    values = {c.name: [0.0] * len(c.options) for c in space.choices}
    problem = build_problem(space, values, [], [build_cost(space, "bops")], limits)
    assert state_count(problem) < np.prod([float(size) for size in problem.sizes.values()])


def test_an_unknown_solver_is_an_error() -> None:
    space = residual()
    with pytest.raises(ValueError, match=r"select\.solver is 'cplex'; allowed"):
        select(scores(space, 0), space, dnas.Budget(bops=0.2), solver="cplex")
