"""Frank-Wolfe, evolution and random search: always feasible, never better than the optimum, bounded from above."""

import sys
from pathlib import Path

import numpy as np
import pytest

import dnas
from dnas.select.evolution import solve_by_evolution, solve_by_random
from dnas.select.frank_wolfe import blocks_of, relax, solve_by_frank_wolfe
from dnas.select.labels import dual_bound, solve_by_labels
from dnas.select.problem import Problem, Row
from dnas.select.select import select
from tests.dnas.test_labels import SPACES, scores

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from solver_instances import chain

SOLVERS = [solve_by_frank_wolfe, solve_by_evolution, solve_by_random]


@pytest.mark.parametrize("solve", SOLVERS)
def test_solutions_hold_and_are_no_better_than_the_optimum(solve: object) -> None:
    close = []
    for seed in range(20):
        problem = chain(6, 4, 5, seed, (0.05, 0.2)[seed % 2], 1 + seed % 2, bool(seed % 3))
        best, found = solve_by_labels(problem), solve(problem)  # type: ignore[operator]
        assert found.positions is not None
        assert problem.holds(found.positions)
        assert found.value == pytest.approx(problem.value(found.positions))
        assert found.value <= best.value + 1e-9
        assert dual_bound(problem) >= best.value - 1e-9
        close.append((best.value - found.value) / abs(best.value))
    if solve is not solve_by_random:
        assert np.median(close) < 0.05


def test_no_two_choices_of_a_block_meet() -> None:
    problem = chain(8, 3, 4, 0, neighbours=True)
    blocks = blocks_of(problem)
    assert sorted(name for block in blocks for name in block) == sorted(problem.sizes)
    for names, _ in [*problem.values, *(table for row in problem.rows for table in row.tables)]:
        for block in blocks:
            assert len(set(names) & set(block)) <= 1


@pytest.mark.parametrize("resources", [1, 2, 3])
def test_a_vertex_has_no_more_fractional_choices_than_resources(resources: int) -> None:
    for seed in range(10):
        problem = chain(10, 4, 5, seed, 0.15, resources)
        start = {name: np.eye(size)[0] for name, size in problem.sizes.items()}
        _, fractional = relax(problem, start)
        assert max(fractional) <= resources


def test_what_cannot_be_met_ends() -> None:
    problem = chain(4, 3, 4, 0)
    tight = Problem(problem.sizes, problem.values, 0.0, (Row(problem.rows[0].tables, 1.0),))
    for solve in SOLVERS:
        assert solve(tight).positions is None  # type: ignore[operator]


@pytest.mark.parametrize("solver", ["frank_wolfe", "evolution", "random"])
def test_select_names_the_solver_and_a_bound(solver: str) -> None:
    space = SPACES["elastic"]()
    budget = dnas.Budget(bops=0.2)
    exact = select(scores(space, 1), space, budget)
    found = select(scores(space, 1), space, budget, solver=solver)
    assert found.certificate is not None
    assert exact.certificate is not None
    assert found.certificate.method == solver
    assert found.cost("bops") <= budget.limits(space)["bops"]
    assert found.certificate.value <= exact.certificate.value + 1e-5
    assert found.certificate.bound >= exact.certificate.value - 1e-9
