"""Bounds over a layered graph: the best that can still come, with budgets at a price (Lagrangian relaxation)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from dnas.select.decomposition import Graph
from dnas.select.dominance import Numbers
from dnas.select.problem import TINY

ROUNDS = 60
PRECISE = 1e-9
"""Of the dual's value: where it and its cutting planes agree this far, its minimum is found."""


def to_go(graph: Graph, price: Numbers, values: float = 1.0) -> list[Numbers]:
    """For every state before each step, and the last one, the largest sum of values * value - price . cost to the end.

    Minus infinity where nothing leads to the end. `values=0` and a price of 1 for one budget: minus its cheapest rest.
    """
    found = [np.zeros(1)]
    for step in reversed(graph.steps):
        best = np.full(step.states, -np.inf)
        if len(step.value):
            gain = values * step.value - step.cost @ price + found[-1][step.enter]
            used = np.flatnonzero(step.first[1:] > step.first[:-1])
            best[used] = np.maximum.reduceat(gain, step.first[used])
        found.append(best)
    return found[::-1]


@dataclass(frozen=True)
class Path:
    """A path: one arc per step, its value and costs."""

    arcs: tuple[int, ...]
    value: float
    cost: Numbers


def best_path(graph: Graph, price: Numbers, rest: Sequence[Numbers], values: float = 1.0) -> Path | None:
    """The path that reaches `rest`, see `to_go`; None where there is none."""
    if not np.isfinite(rest[0][0]):
        return None
    state, arcs, value, cost = 0, [], 0.0, np.zeros(len(graph.resources))
    for step, after in zip(graph.steps, rest[1:], strict=True):
        own = step.arcs_of(state)
        gain = values * step.value[own] - step.cost[own] @ price + after[step.enter[own]]
        arc = own.start + int(np.argmax(gain))
        arcs.append(arc)
        value += float(step.value[arc])
        cost = cost + step.cost[arc]
        state = int(step.enter[arc])
    return Path(tuple(arcs), value, cost)


@dataclass
class Dual:
    """The minimum over prices of max over paths of value + price . (limit - cost).

    bound: an upper bound of every path within the limits (the graph's constant aside); minus infinity where it is proven
    that there is none. prices: the best, then others that are nearly as good. incumbent: the best path within the limits.
    cheapest: for every budget the `to_go` of its cost.
    """

    bound: float
    prices: list[Numbers] = field(default_factory=list)
    incumbent: Path | None = None
    cheapest: list[list[Numbers]] = field(default_factory=list)
    smallest: Numbers = field(default_factory=lambda: np.empty(0))


def minimise_dual(graph: Graph, limits: Numbers, rounds: int = ROUNDS) -> Dual:
    """Cutting planes over the prices: exact for one budget after finitely many rounds, in practice for two and three.

    Args:
        graph: the layered graph.
        limits: per resource, shape (R,).
        rounds: most Viterbi passes.
    """
    count = len(limits)
    units = np.eye(count)
    cheapest = [to_go(graph, unit, 0.0) for unit in units]
    smallest = np.array([-rest[0][0] for rest in cheapest])
    dual = Dual(np.inf, cheapest=cheapest, smallest=smallest)
    if (smallest > limits).any():
        dual.bound = -np.inf
        return dual
    dearest = np.array([to_go(graph, -unit, 0.0)[0][0] for unit in units])
    # where constant parts use a budget up, its unit is the largest cost
    scale = np.maximum(np.where(np.abs(limits) > TINY * dearest, np.abs(limits), dearest), 1e-300)
    cuts: list[tuple[float, Numbers]] = []  # value, slack in units of the limits
    seen: list[tuple[float, Numbers]] = []

    def add(path: Path) -> None:
        cuts.append((path.value, (limits - path.cost) / scale))
        if (path.cost <= limits).all() and (dual.incumbent is None or path.value > dual.incumbent.value):
            dual.incumbent = path

    def evaluate(price: Numbers) -> float:
        rest = to_go(graph, price / scale)
        path = best_path(graph, price / scale, rest)
        if path is None:
            return -np.inf
        value = float(rest[0][0] + price @ (limits / scale))
        seen.append((value, price))
        dual.bound = min(dual.bound, value)
        add(path)
        return value

    best = np.zeros(count)
    if evaluate(best) == -np.inf:
        dual.bound = -np.inf
        return dual
    for unit, rest in zip(units, cheapest, strict=True):
        path = best_path(graph, unit, rest, 0.0)
        assert path is not None
        add(path)
    most = _most_price(graph)
    for _ in range(rounds if count else 0):
        price, model = _minimum(cuts, most)
        if dual.bound - model <= PRECISE * max(abs(dual.bound), _spread(cuts)):
            break
        inside = price if count == 1 else 0.7 * price + 0.3 * best  # between the model's minimum and the best so far
        before = dual.bound
        if evaluate(inside) < before:
            best = inside
    seen.sort(key=lambda pair: pair[0])
    dual.prices = [price / scale for price in _apart([price for _, price in seen], 2 + 2 * count)]
    return dual


def _spread(cuts: Sequence[tuple[float, Numbers]]) -> float:
    values = [value for value, _ in cuts]
    return max(values) - min(values)


def _most_price(graph: Graph) -> float:
    """A price in units of the limits far above any that a minimum needs, unless no path lies well within the limits."""
    largest = sum(float(np.ptp(step.value)) for step in graph.steps if len(step.value))
    return 1e6 * max(largest, 1e-12)


def _minimum(cuts: Sequence[tuple[float, Numbers]], most: float) -> tuple[Numbers, float]:
    """The lowest point of the largest of the lines value + price . slack over 0 <= price <= most."""
    values = np.array([value for value, _ in cuts])
    slacks = np.array([slack for _, slack in cuts])
    count = slacks.shape[1]
    if count == 1:
        return _lowest(values, slacks[:, 0], most)
    top = max(float(np.abs(values).max()), 1e-12)
    result = linprog(
        np.append(np.zeros(count), 1.0),
        A_ub=np.column_stack([slacks, -np.ones(len(cuts))]),
        b_ub=-values / top,
        bounds=[(0.0, most / top)] * count + [(None, None)],
        method="highs-ds",
    )
    if result.x is None:
        return np.zeros(count), -np.inf
    return result.x[:count] * top, float(result.x[count]) * top


def _lowest(values: Numbers, slacks: Numbers, most: float) -> tuple[Numbers, float]:
    """The same for one price: at an end, or where two lines meet."""
    with np.errstate(divide="ignore", invalid="ignore"):
        meets = (values[:, None] - values) / (slacks - slacks[:, None])
    prices = np.append(meets[np.isfinite(meets) & (meets > 0) & (meets < most)], [0.0, most])
    heights = (values + prices[:, None] * slacks).max(1)
    lowest = int(np.argmin(heights))
    return prices[lowest : lowest + 1], float(heights[lowest])


def _apart(prices: Sequence[Numbers], most: int) -> list[Numbers]:
    """The first prices that differ from each other by more than a hundredth, at most so many."""
    found: list[Numbers] = []
    for price in prices:
        size = max(float(np.abs(price).max(initial=0.0)), 1e-300)
        if all(np.abs(price - other).max(initial=0.0) > 0.01 * size for other in found) or not found:
            found.append(price)
    return found[:most]
