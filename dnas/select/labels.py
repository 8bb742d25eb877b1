"""Exact label setting on the layered graph, with Lagrangian completion bounds.

A label is a path so far: its state, its cost of every budget and its value. It is dropped where the cheapest rest breaks a
budget, where value and the best rest at some price cannot reach the threshold, and where another label of its state costs
no more and is worth as much. The threshold starts just below the Lagrangian bound and is lowered until a path is found: the
first one is a best one, and a threshold that nothing reaches is a proven bound. (`bilinear-estimator.md`, formulation P: a
resource-constrained shortest path.)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dnas.select.decomposition import Graph, Step, build_graph
from dnas.select.dominance import Indices, Numbers, efficient
from dnas.select.lagrangian import Dual, Path, minimise_dual, to_go
from dnas.select.problem import Problem, Solution, unmet

FIRST_STRIDE, FURTHER = 1 / 64, 2.0
"""How far below the bound the first threshold is, as a share of the gap to the incumbent; by what factor then."""
HURRIED = 300
"""Labels of one step that are kept once time has run out, to end with a path rather than with none."""
FEWEST, MOST = 60_000, 2_000_000
"""Labels of one step above which the least promising are dropped at first, and at last: then nothing is proven."""
CHUNK = 2_000_000
"""Labels that are extended at once."""
TIGHTENINGS = 20
"""Attempts after which a solution that holds only up to rounding is given up."""


@dataclass
class _Labels:
    """Labels at the same step, sorted by state. before: the label that each one extends, arc: by which arc."""

    state: Indices
    cost: Numbers
    value: Numbers
    before: Indices
    arc: Indices


@dataclass
class Found:
    """The best path within the limits, if there is one, and a proven upper bound of all of them (constant aside)."""

    path: Path | None
    bound: float


def rounding_of(graph: Graph, limits: Numbers, prices: Sequence[Numbers]) -> float:
    """How far off a path's value plus what is left of its limits, at these prices, may be."""
    values = [float(np.abs(step.value).max(initial=0.0)) for step in graph.steps]
    paid = max((float(price @ np.abs(limits)) for price in prices), default=0.0)
    return 1e-15 * len(values) * (sum(values) + paid)


class _Search:
    """Label setting for one graph and one set of limits."""

    def __init__(self, graph: Graph, limits: Numbers, dual: Dual, deadline: float) -> None:
        self.graph, self.limits, self.dual, self.deadline = graph, limits, dual, deadline
        prices = dual.prices or [np.zeros(len(limits))]
        self.rest = [(price, to_go(graph, price)) for price in prices]
        price, rest = self.rest[0]
        self.sorted: list[tuple[Indices, Numbers]] = []
        for step, after in zip(graph.steps, rest[1:], strict=True):
            gain = step.value - step.cost @ price + after[step.enter]
            order = np.lexsort([-gain, step.leave])
            self.sorted.append((order, gain[order]))
        self.rounding = rounding_of(graph, limits, prices)

    def run(self, threshold: float, most: int) -> tuple[Path | None, bool]:
        """A best path, if any reaches the threshold, else one or none; and whether nothing promising was dropped.

        Args:
            threshold: of the sum of values along the path.
            most: labels to keep per step.
        """
        count = len(self.limits)
        zero = np.zeros(1, dtype=np.int64)
        labels = _Labels(zero, np.zeros((1, count)), np.zeros(1), zero, zero)
        history, complete = [], True
        for number, step in enumerate(self.graph.steps):
            labels = self._extend(labels, number, step, threshold)
            kept = efficient(labels.state, labels.cost, labels.value)
            if time.perf_counter() > self.deadline:
                most = min(most, HURRIED)
            if len(kept) > most:
                complete = False
                price, rest = self.rest[0]
                hope = labels.value[kept] - labels.cost[kept] @ price + rest[number + 1][labels.state[kept]]
                kept = kept[np.sort(np.argpartition(-hope, most)[:most])]
            labels = _Labels(*(part[kept] for part in vars(labels).values()))
            history.append((labels.before, labels.arc))
            if not len(kept):
                return None, complete
        best = int(np.argmax(labels.value))
        value, cost, arcs = float(labels.value[best]), labels.cost[best], []
        for before, arc in reversed(history):
            arcs.append(int(arc[best]))
            best = int(before[best])
        return Path(tuple(reversed(arcs)), value, cost), complete

    def _extend(self, labels: _Labels, number: int, step: Step, threshold: float) -> _Labels:
        """All labels one step further that may still reach the threshold within the limits."""
        price = self.rest[0][0]
        order, gain = self.sorted[number]
        needed = threshold - self.rounding - self.limits @ price - (labels.value - labels.cost @ price)
        reach = np.empty(len(labels.state), dtype=np.int64)  # arcs of a state are sorted by gain: a prefix is enough
        starts = np.flatnonzero(np.append(True, labels.state[1:] != labels.state[:-1]))
        for start, end in zip(starts, np.append(starts[1:], len(labels.state)), strict=True):
            arcs = step.arcs_of(int(labels.state[start]))
            reach[start:end] = np.searchsorted(-gain[arcs], -needed[start:end], side="right")
        parts, ends = [], np.cumsum(reach)
        first = 0
        while first < len(reach):
            base = ends[first - 1] if first else 0
            last = max(int(np.searchsorted(ends, base + CHUNK, side="right")), first + 1)
            parts.append(
                self._extend_part(labels, slice(first, last), reach[first:last], order, step, number, threshold)
            )
            first = last
        return _Labels(*(np.concatenate(found) for found in zip(*parts, strict=True)))

    def _extend_part(
        self, labels: _Labels, part: slice, reach: Indices, order: Indices, step: Step, number: int, threshold: float
    ) -> tuple[Indices, Numbers, Numbers, Indices, Indices]:
        before = np.repeat(np.arange(part.start, part.start + len(reach)), reach)
        within = np.arange(len(before)) - np.repeat(np.cumsum(reach) - reach, reach)
        arc = order[step.first[labels.state[before]] + within]
        state = step.enter[arc]
        cost = labels.cost[before] + step.cost[arc]
        value = labels.value[before] + step.value[arc]
        alive = np.ones(len(arc), dtype=bool)
        for r, rest in enumerate(self.dual.cheapest):
            alive &= cost[:, r] - rest[number + 1][state] <= self.limits[r]
        for price, rest in self.rest[1:]:
            best = value + rest[number + 1][state] + (self.limits - cost) @ price
            alive &= best >= threshold - self.rounding
        return state[alive], cost[alive], value[alive], before[alive], arc[alive]


def best_within(graph: Graph, limits: Numbers, deadline: float, precision: float = 0.0) -> Found:
    """The best path within the limits.

    Args:
        graph: the layered graph.
        limits: per resource, shape (R,).
        deadline: of `time.perf_counter`; when it passes, the best path and bound so far are returned.
        precision: difference of values that does not matter.

    Returns:
        bound minus infinity where it is proven that no path holds.
    """
    dual = minimise_dual(graph, limits)
    if dual.bound == -np.inf:
        return Found(None, -np.inf)
    lowest = -to_go(graph, np.zeros(len(limits)), -1.0)[0][0]
    rounding = 1e-9 * max(abs(lowest), abs(dual.bound)) + rounding_of(graph, limits, dual.prices)
    if dual.incumbent is None and dual.bound < lowest - rounding:
        return Found(None, -np.inf)
    slack = np.flatnonzero(dual.prices[0] <= 0.0)
    if len(slack) and len(slack) < len(limits):  # budgets without a price seldom bind: first without them
        found = _without(graph, limits, slack, (time.perf_counter() + deadline) / 2, precision)
        dual.bound = min(dual.bound, found.bound)
        if found.path is not None and (found.path.cost <= limits).all():
            dual.incumbent = max(found.path, dual.incumbent or found.path, key=lambda path: path.value)
    return _deepen(_Search(graph, limits, dual, deadline), lowest, precision)


def nothing_above(graph: Graph, limits: Numbers, value: float, deadline: float) -> bool:
    """Whether it is proven that no path within the limits is worth more than `value`, up to rounding.

    Args:
        graph: the layered graph.
        limits: per resource, shape (R,).
        value: of a path, the graph's constant aside.
        deadline: of `time.perf_counter`; when it passes, nothing is proven.
    """
    dual = minimise_dual(graph, limits)
    search = _Search(graph, limits, dual, deadline)
    threshold = value + 2 * search.rounding
    if dual.bound <= threshold:
        return True
    path, complete = search.run(threshold, MOST)
    return complete and (path is None or path.value < threshold)


def _without(graph: Graph, limits: Numbers, left_out: Indices, deadline: float, precision: float) -> Found:
    """`best_within` where some budgets do not count: its bound holds for all; the path's cost is that of every budget."""
    taken = np.setdiff1d(np.arange(len(limits)), left_out)
    steps = tuple(replace(step, cost=step.cost[:, taken]) for step in graph.steps)
    fewer = replace(graph, steps=steps, resources=tuple(graph.resources[r] for r in taken), limits=limits[taken])
    found = best_within(fewer, limits[taken], deadline, precision)
    if found.path is None:
        return found
    cost = sum((step.cost[arc] for step, arc in zip(graph.steps, found.path.arcs, strict=True)), np.zeros(len(limits)))
    return Found(replace(found.path, cost=cost), found.bound)


def _deepen(search: _Search, lowest: float, precision: float) -> Found:
    """Lowers the threshold from the bound until a path is found that nothing can be above."""
    incumbent, bound = search.dual.incumbent, search.dual.bound
    low, top = incumbent.value if incumbent else lowest, bound
    stride, most = max((top - low) * FIRST_STRIDE, precision), FEWEST
    while bound - (incumbent.value if incumbent else -np.inf) > max(precision, 2 * search.rounding):
        if time.perf_counter() > search.deadline:
            break
        threshold = max(low, top - stride)
        path, complete = search.run(threshold, most)
        better = path is not None and (incumbent is None or path.value > incumbent.value)
        if better:
            assert path is not None
            incumbent, low = path, path.value
        if complete:
            reached = path is not None and path.value >= threshold
            if reached or threshold <= lowest or (incumbent and threshold <= incumbent.value):
                bound = incumbent.value if incumbent else -np.inf
                break
            bound = threshold
            stride *= FURTHER
        elif not better:
            if most >= MOST:
                break
            most = min(most * 4, MOST)
            if incumbent is None:
                stride *= FURTHER
    return Found(incumbent, bound)


def solve_labels(problem: Problem, time_limit: float = 60.0, precision: float = 0.0) -> Solution:
    """The best architecture of a problem, proven where time allows.

    Args:
        problem: one that has a layered graph, see `dnas.select.decomposition`.
        time_limit: seconds; when it runs out, the solution's bound is above its value.
        precision: difference of values that does not matter.

    Raises:
        BudgetError: nothing meets the budgets, or nothing was found in time.
        TooLargeError: the graph would be too large.
    """
    start = time.perf_counter()
    graph = build_graph(problem)
    found = solve_graph(problem, graph, graph.limits, start + time_limit, precision)
    return replace(found, seconds=time.perf_counter() - start)


def solve_graph(problem: Problem, graph: Graph, limits: Numbers, deadline: float, precision: float = 0.0) -> Solution:
    """`solve_labels` on a graph that is there already.

    Args:
        problem: the problem with the limits that must hold exactly.
        graph: of a problem that differs at most in the limits of `graph.resources`.
        limits: of these resources, shape (R,).
        deadline: of `time.perf_counter`.
        precision: difference of values that does not matter.

    Raises:
        BudgetError: nothing meets the budgets, or nothing was found in time.
    """
    start, bound = time.perf_counter(), np.inf
    for _ in range(TIGHTENINGS):
        found = best_within(graph, limits, deadline, precision)
        bound = min(bound, found.bound + graph.constant) if bound == np.inf else bound  # of the limits as they are
        if found.path is None:
            break
        positions = graph.positions(found.path.arcs)
        if problem.holds(positions):
            value = problem.value(positions)
            return Solution(positions, value, max(bound, value), "labels", time.perf_counter() - start)
        limits = limits - np.abs(limits) * 1e-9  # within rounding, but not exactly
    raise unmet(problem, proven=bound == -np.inf)
