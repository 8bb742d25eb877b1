"""A front of architectures: the best one at every budget of a grid, from the cheapest to the dearest."""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores
from dnas.select.decomposition import Graph, TooLargeError, build_graph
from dnas.select.labels import solve_graph
from dnas.select.problem import Problem, Solution
from dnas.select.solvers import EXACT_TIE, PRECISION, proven, solve_problem, unscaled
from dnas.select.ties import scaled
from dnas.space.architecture import Architecture, Certificate
from dnas.space.choice import Space
from dnas.space.conventions import LayerCost
from dnas.space.cost import build_cost
from dnas.space.preflight import extreme_cost


class _Points:
    """Selections that differ in the limit of one cost; a layered graph is built once where the cost is one sum."""

    def __init__(self, problem: Problem, cost: str, top: float, time_limit: float) -> None:
        self.problem, self.cost, self.top, self.time_limit = problem, cost, top, time_limit
        self.exact, self.scale = scaled(self._at(problem, top), EXACT_TIE)
        self.graph: Graph | None = None
        self.plain: Graph | None = None
        if len(next(c for c in problem.costs if c.name == cost).rows) == 1:
            try:
                self.graph, self.plain = build_graph(self.exact), build_graph(self._at(problem, top))
            except TooLargeError:
                return

    def _at(self, problem: Problem, limit: float) -> Problem:
        return replace(problem, limits={**(problem.limits or {}), self.cost: limit})

    def solve(self, limit: float) -> Solution:
        """The best architecture where the cost is at most `limit`; BudgetError where there is none."""
        problem = self._at(self.problem, limit)
        if self.graph is None or self.plain is None:
            return solve_problem(problem, "auto", self.time_limit)
        start = time.perf_counter()
        lower = np.array([(self.top - limit) * (row.name == self.cost) for row in self.graph.resources])
        limits, deadline = self.graph.limits - lower, start + self.time_limit
        found = solve_graph(self._at(self.exact, limit), self.graph, limits, deadline, PRECISION)
        found = replace(unscaled(found, problem, self.scale), seconds=time.perf_counter() - start)
        return proven(found, self.scale, self.plain, limits, self.time_limit)


def frontier(
    scores: Scores,
    space: Space,
    cost: str,
    count: int = 30,
    budget: Budget | None = None,
    time_limit: float = 60.0,
    functions: Mapping[str, LayerCost] | None = None,
) -> list[Architecture]:
    """The best architectures over a grid of budgets, without those that another one beats, cheapest first.

    Args:
        scores: of the space, see `dnas.select.select.select`.
        space: one where no single filters decide.
        cost: the name of the cost that varies.
        count: budgets, in equal ratios between the smallest cost and that of the best architecture of all.
        budget: further budgets that hold everywhere; one on the varying cost is an upper end of the grid.
        time_limit: seconds for each point.
        functions: the user's own costs per layer, where no budget has them.

    Returns:
        architectures with their certificates: each is the best one at its limit.

    Raises:
        BudgetError: the further budgets cannot be met.
        ValueError: scores that do not fit, a cost that is unknown, a count below 2, or single filters that decide.
    """
    scores.check(space)
    if count < 2:
        raise ValueError(f"count is {count}; allowed: 2 or more")
    if any(choice.by_filter for choice in space.searched()):
        raise ValueError("a front needs one decision per layer (space.granularity=layer, space.act_granularity=layer)")
    if budget:
        budget.check(space)
    limits = budget.limits(space) if budget else {}
    functions = functions or (budget.functions if budget else {})
    costs = [build_cost(space, name, functions) for name in {cost: None, **limits}]
    top = min(costs[0].bound(max), limits.get(cost, np.inf))
    points = _Points(Problem.of(space, scores, costs, limits), cost, top, time_limit)
    dearest = points.solve(top)
    ends = extreme_cost(space, costs[0], dearest=False), costs[0].at(dearest.positions)
    grid = [*(np.geomspace(max(ends[0], 1e-9), max(ends[1], 1e-9), count)[1:-1]), ends[1]]
    found = []
    for limit in [ends[0], *map(float, grid)]:
        try:
            solution = points.solve(limit)
        except BudgetError:  # below the cheapest architecture that the further budgets and legal pairs allow
            continue
        spent = {c.name: c.at(solution.positions) for c in costs}
        certificate = Certificate(
            solution.value,
            solution.bound,
            solution.gap,
            solution.method,
            solution.seconds,
            spent,
            {**limits, cost: limit},
        )
        options = {choice.name: choice.options[solution.positions[choice.name]] for choice in space.choices}
        found.append((spent[cost], Architecture(space, options, None, certificate, functions)))
    return _undominated(found)


def _undominated(found: list[tuple[float, Architecture]]) -> list[Architecture]:
    kept: list[Architecture] = []
    best = -np.inf
    for _, architecture in sorted(found, key=lambda pair: (pair[0], -_value(pair[1]))):
        if _value(architecture) > best:
            kept.append(architecture)
            best = _value(architecture)
    return kept


def _value(architecture: Architecture) -> float:
    assert architecture.certificate is not None
    return architecture.certificate.value
