"""Exact selection by label setting with Lagrangian completion bounds, on a path decomposition of the choices.

Choices are decided one after the other, in the order of the layers. What later tables still need of the decided ones is the
state: on a chain the last filter count and width, on a residual stage also the width that its blocks share, and its depth.
So the selection is a resource-constrained shortest path (`bilinear-estimator.md`, formulation P): a label is a state, what has
been spent, and the value so far. Labels go when they cannot be completed within the limits, when no completion can beat the
best known solution (Lagrangian bounds from a backward pass), or when another label of the state spends no more and has more.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from dnas.select.problem import Array, Problem, Table, spread

MOST_STATES = 400_000
"""Joint options of open choices, the next one included, up to which a problem is decomposed."""
MOST_LABELS = 3_000_000
CUTS = 60
TOLERANCE = 1e-12
CHUNK = 256
BEAMS = (100, 2000)
"""Labels kept per decision in the passes that only look for a good solution."""


@dataclass(frozen=True)
class Solution:
    """positions: None if there is none. bound: no solution is worth more. proven: whether none is worth more than this one."""

    positions: dict[str, int] | None
    value: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """How far from proven."""
        return max(0.0, self.bound - self.value)


@dataclass
class _Step:
    """One decision: the open choices before it, the choice, the open choices after it.

    gain: shape (*open before, options); spend: the same for every resource; -inf gain where options must not meet.
    """

    before: list[str]
    choice: str
    after: list[str]
    gain: Array
    spend: list[Array]

    def ahead(self, value: Array) -> Array:
        """A table over the states after the step, with the axes of (open before, choice): length 1 where closed."""
        names = [*self.before, self.choice]
        return value.reshape(
            [size if name in self.after else 1 for name, size in zip(names, self.gain.shape, strict=True)]
        )


def state_count(problem: Problem) -> int:
    """The largest number of joint options of open choices and the next one."""
    largest = 1
    for before, choice, _ in _order(problem):
        largest = max(largest, int(np.prod([float(problem.sizes[name]) for name in (*before, choice)])))
    return largest


def _every_table(problem: Problem) -> list[tuple[str, ...]]:
    return [
        *(names for names, _ in problem.values), *(names for row in problem.rows for names, _ in row.tables),
        *(names for names, _ in problem.forbidden),
    ]  # fmt: skip


def _order(problem: Problem) -> list[tuple[list[str], str, list[str]]]:
    """(open before, choice, open after) for every decision."""
    rank = {name: i for i, name in enumerate(problem.sizes)}
    last = dict(rank)
    for names in _every_table(problem):
        closing = max(rank[name] for name in names)
        for name in names:
            last[name] = max(last[name], closing)
    found: list[tuple[list[str], str, list[str]]] = []
    opened: list[str] = []
    for i, name in enumerate(problem.sizes):
        after = [other for other in (*opened, name) if last[other] > i]
        found.append((opened, name, after))
        opened = after
    return found


def _steps(problem: Problem) -> list[_Step]:
    rank = {name: i for i, name in enumerate(problem.sizes)}
    at: dict[str, list[tuple[int, Table]]] = {name: [] for name in problem.sizes}
    names_of = list(problem.sizes)
    forbidden: dict[str, list[tuple[tuple[str, ...], NDArray[np.bool_]]]] = {name: [] for name in names_of}
    for number, tables in enumerate([problem.values, *(row.tables for row in problem.rows)]):
        for table in tables:
            at[names_of[max(rank[name] for name in table[0])]].append((number, table))
    for names, illegal in problem.forbidden:
        forbidden[names_of[max(rank[name] for name in names)]].append((names, illegal))
    found = []
    for before, choice, after in _order(problem):
        over = [*before, choice]
        shape = [problem.sizes[name] for name in over]
        sums = [np.zeros(shape) for _ in range(1 + len(problem.rows))]
        for number, table in at[choice]:
            sums[number] = sums[number] + spread(table, over, problem.sizes)
        for illegal_table in forbidden[choice]:
            sums[0] = np.where(spread(illegal_table, over, problem.sizes), -np.inf, sums[0])
        found.append(_Step(before, choice, after, sums[0], sums[1:]))
    return found


def _backward(steps: Sequence[_Step], weights: Sequence[float], gain: float = 1.0) -> list[Array]:
    """For every number of decisions taken the best of gain * value - weights * spending to go, over the states there."""
    found = [np.zeros(())]
    for step in reversed(steps):
        total = step.gain * gain if gain else np.where(np.isneginf(step.gain), -np.inf, 0.0)
        for weight, spend in zip(weights, step.spend, strict=True):
            if weight:
                total = total - weight * spend
        found.append(np.asarray((total + step.ahead(found[-1])).max(-1)))
    return found[::-1]


def _follow(steps: Sequence[_Step], weights: Sequence[float], ahead: Sequence[Array]) -> dict[str, int]:
    """The positions that reach the best of a backward pass."""
    taken: dict[str, int] = {}
    for i, step in enumerate(steps):
        state = tuple(taken[name] for name in step.before)
        total = step.gain[state].copy()
        for weight, spend in zip(weights, step.spend, strict=True):
            total -= weight * spend[state]
        names = [*step.before, step.choice]
        after = step.ahead(ahead[i + 1])
        index = tuple(taken[name] if name in step.after else 0 for name in names[:-1])
        total = total + after[index]
        taken[step.choice] = int(np.argmax(total))
    return taken


def solve_by_labels(problem: Problem, time_limit: float = 60.0) -> Solution:
    """The best positions, proven optimal unless time or memory end first: then the gap says how far from it.

    Args:
        problem: see `state_count` for whether it can be decomposed.
        time_limit: seconds.
    """
    start = time.perf_counter()
    steps = _steps(problem)
    limits = np.array([row.limit for row in problem.rows])
    cheapest = [-_backward(steps, [float(r == i) for i in range(len(limits))], 0.0)[0] for r in range(len(limits))]
    if any(float(c) > limit for c, limit in zip(cheapest, limits, strict=True)):
        return Solution(None, -np.inf, -np.inf, time.perf_counter() - start)
    dual = _Dual(problem, steps, limits)
    dual.minimise(start + 0.4 * time_limit)
    found = _Labels(problem, steps, limits, dual)
    for beam in BEAMS:
        found.run(start + 0.6 * time_limit, beam)
    positions, bound = found.run(start + time_limit)
    if positions is None:
        return Solution(None, -np.inf, bound + problem.constant, time.perf_counter() - start)
    value = problem.value(positions)
    return Solution(positions, value, max(value, bound + problem.constant), time.perf_counter() - start)


def dual_bound(problem: Problem, time_limit: float = 10.0) -> float:
    """The bound of the Lagrangian dual: no feasible solution is worth more."""
    dual = _Dual(problem, _steps(problem), np.array([row.limit for row in problem.rows]))
    dual.minimise(time.perf_counter() + time_limit)
    return dual.bound + problem.constant


class _Dual:
    """The Lagrangian dual by cutting planes; every multiplier gives a bound, and a path that may be feasible."""

    def __init__(self, problem: Problem, steps: Sequence[_Step], limits: Array) -> None:
        self.problem, self.steps, self.limits = problem, steps, limits
        self.best: dict[str, int] | None = None
        self.value = -np.inf
        self.bound = np.inf
        self.multipliers = np.zeros(len(limits))
        self.tried: list[tuple[float, Array]] = []

    def minimise(self, deadline: float) -> None:
        """Until the bound stops improving."""
        count = len(self.limits)
        cuts: list[tuple[float, Array]] = []
        highest = np.full(count, 1.0)
        scale = np.maximum(np.abs(self.limits), 1e-12)
        weights = np.zeros(count)
        for turn in range(CUTS * max(count, 1)):
            excess = self._try(weights, cuts)
            if count == 0 or (turn == 0 and bool((excess <= 0).all())) or time.perf_counter() > deadline:
                return
            if turn == 0:
                spans = sum(float(np.ptp(s.gain[np.isfinite(s.gain)])) for s in self.steps)
                highest = 4.0 * max(spans, 1e-12) / scale * len(self.steps)
            rows = np.array([[-1.0, *(cut[1] / scale)] for cut in cuts])
            result = linprog(
                [1.0, *np.zeros(count)], A_ub=rows, b_ub=[-cut[0] for cut in cuts],
                bounds=[(None, None), *((0.0, h * s) for h, s in zip(highest, scale, strict=True))], method="highs-ds",
            )  # fmt: skip
            if result.x is None or self.bound - float(result.x[0]) < 1e-7 * max(1.0, abs(self.bound)):
                return
            weights = result.x[1:] / scale

    def _try(self, weights: Array, cuts: list[tuple[float, Array]]) -> Array:
        """One multiplier: its cut, bound and path; returns what the path spends above the limits."""
        ahead = _backward(self.steps, weights.tolist())
        path = _follow(self.steps, weights.tolist(), ahead)
        value = self.problem.value(path) - self.problem.constant
        spent = np.array(
            [sum(t[tuple(path[n] for n in names)] for names, t in row.tables) for row in self.problem.rows]
        )
        excess = spent - self.limits
        cuts.append((value, -excess))
        bound = float(ahead[0]) + float(weights @ self.limits)
        if bound < self.bound:
            self.bound, self.multipliers = bound, weights
        self.tried.append((bound, weights))
        if bool((excess <= 0).all()) and value > self.value:
            self.best, self.value = path, value
        return excess


class _Labels:
    """The forward pass."""

    def __init__(self, problem: Problem, steps: Sequence[_Step], limits: Array, dual: _Dual) -> None:
        self.problem, self.steps, self.limits = problem, steps, limits
        self.best, self.value = dual.best, dual.value
        if self.best is not None:
            self.best, self.value = _improved(problem, self.best)
        near = sorted(dual.tried, key=lambda entry: entry[0])
        chosen = [weights for _, weights in near[: 2 + 2 * len(limits)]]
        chosen += [factor * dual.multipliers for factor in (0.8, 1.25)] if len(limits) else []
        unique = {tuple(weights.tolist()): weights for weights in chosen}
        self.bounds = [(weights, _backward(steps, weights.tolist())) for weights in unique.values()]
        self.cheapest = [
            [-table for table in _backward(steps, [float(r == i) for i in range(len(limits))], 0.0)]
            for r in range(len(limits))
        ]

    def _optimistic(self, at: int, states: NDArray[np.int64], spent: Array, value: Array) -> Array:
        """An upper bound of the value of every label's completions; shape (labels,)."""
        best = np.full(len(value), np.inf)
        for weights, ahead in self.bounds:
            best = np.minimum(best, value + ahead[at].ravel()[states] + (self.limits - spent) @ weights)
        return best

    def run(self, deadline: float, beam: int | None = None) -> tuple[dict[str, int] | None, float]:
        """(the best positions, a bound of all positions' value, without the constant).

        Args:
            deadline: when to stop with the best that is known.
            beam: how many labels are kept after every decision, the most hopeful ones: for a good solution to start
                from. The bound then is none.
        """
        count = len(self.limits)
        states, spent, value = np.zeros(1, dtype=np.int64), np.zeros((1, count)), np.zeros(1)
        history: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for at, step in enumerate(self.steps):
            options = step.gain.shape[-1]
            gain = step.gain.reshape(-1, options)
            parents = np.repeat(np.arange(len(value)), options)
            taken = np.tile(np.arange(options), len(value))
            old = states[parents]
            value = value[parents] + gain[old, taken]
            spent = spent[parents]
            for r, spend in enumerate(step.spend):
                spent[:, r] += spend.reshape(-1, options)[old, taken]
            states = self._next(step, old, taken)
            alive = np.isfinite(value)
            for r in range(count):
                alive &= spent[:, r] + self.cheapest[r][at + 1].ravel()[states] <= self.limits[r] * (1 + 1e-12)
            hope = self._optimistic(at + 1, states, spent, value)
            if self.best is not None:
                alive &= hope > self.value + TOLERANCE * max(1.0, abs(self.value))
            rows = np.flatnonzero(alive)
            states, spent, value, hope = states[rows], spent[rows], value[rows], hope[rows]
            if len(value) == 0:
                return self.best, self.value
            if beam is not None and len(value) > beam:
                few = np.sort(np.argpartition(-hope, beam)[:beam])
                states, spent, value, hope, rows = states[few], spent[few], value[few], hope[few], rows[few]
            kept = _efficient(states, spent, value, self.bounds[0][0] if self.bounds else np.zeros(count))
            states, spent, value, hope, rows = states[kept], spent[kept], value[kept], hope[kept], rows[kept]
            history.append((parents[rows], taken[rows]))
            if len(value) > MOST_LABELS or time.perf_counter() > deadline:
                return self.best, float(max(self.value, hope.max()))
        return self._finished(states, spent, value, history)

    def _finished(
        self,
        states: NDArray[np.int64],
        spent: Array,
        value: Array,
        history: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> tuple[dict[str, int] | None, float]:
        bound = float(max(self.value, value.max()))
        for label in np.argsort(-value):
            positions, at = {}, int(label)
            for step, (parents, taken) in zip(reversed(self.steps), reversed(history), strict=True):
                positions[step.choice] = int(taken[at])
                at = int(parents[at])
            if self.problem.holds(positions):
                if value[label] > self.value:
                    self.best, self.value = _improved(self.problem, positions)
                break
        return self.best, bound

    def _next(self, step: _Step, old: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.int64]:
        shape = step.gain.shape
        index = np.unravel_index(old, shape[:-1]) if len(shape) > 1 else ()
        axes = dict(zip(step.before, index, strict=True)) | {step.choice: taken}
        sizes = dict(zip([*step.before, step.choice], shape, strict=True))
        found = np.zeros(len(old), dtype=np.int64)
        for name in step.after:
            found = found * sizes[name] + axes[name]
        return found


def _efficient(states: NDArray[np.int64], spent: Array, value: Array, weights: Array) -> NDArray[np.int64]:
    """Labels that no other label of their state dominates; for several resources of those in a window of the best."""
    if spent.shape[1] == 0:
        order = np.lexsort((-value, states))
        first = np.r_[True, states[order][1:] != states[order][:-1]]
        return np.sort(order[first])
    if spent.shape[1] == 1:
        order = np.lexsort((-value, spent[:, 0], states))
        ranks = np.empty(len(value), dtype=np.int64)
        ranks[np.argsort(value, kind="stable")] = np.arange(len(value))
        same = np.unique(value, return_inverse=True)[1]
        key = states[order] * np.int64(len(value) + 1) + same[order]
        before = np.r_[np.int64(-1), np.maximum.accumulate(key)[:-1]]
        fresh = np.r_[True, states[order][1:] != states[order][:-1]]
        return np.sort(order[fresh | (key > before)])
    order = np.lexsort((-(value - spent @ weights), states))
    edges = np.flatnonzero(np.r_[True, states[order][1:] != states[order][:-1], True])
    kept = []
    for first, last in pairwise(edges):
        rows = order[first:last]
        for begin in range(0, min(len(rows), 4 * CHUNK), CHUNK):
            strong = rows[begin : begin + CHUNK]
            if not len(strong):
                break
            worse = np.zeros(len(rows), dtype=bool)
            worse |= _dominated(rows, strong, spent, value)
            rows = rows[~worse]
        kept.append(rows)
    return np.sort(np.concatenate(kept))


def _dominated(rows: NDArray[np.int64], strong: NDArray[np.int64], spent: Array, value: Array) -> NDArray[np.bool_]:
    """Which rows some strong label dominates: spends no more of anything, is worth no less, and stands earlier if equal."""
    no_worse = value[strong][None, :] >= value[rows][:, None]
    equal = value[strong][None, :] == value[rows][:, None]
    for r in range(spent.shape[1]):
        no_worse &= spent[strong, r][None, :] <= spent[rows, r][:, None]
        equal &= spent[strong, r][None, :] == spent[rows, r][:, None]
    found: NDArray[np.bool_] = (no_worse & (~equal | (strong[None, :] < rows[:, None]))).any(1)
    return found


def _improved(problem: Problem, positions: Mapping[str, int]) -> tuple[dict[str, int], float]:
    """A feasible solution, improved by changing one choice at a time."""
    best = dict(positions)
    by_choice: dict[str, list[Table]] = {name: [] for name in problem.sizes}
    for table in problem.values:
        for name in table[0]:
            by_choice[name].append(table)

    def worth(name: str, option: int) -> float:
        changed = {**best, name: option}
        return sum(float(t[tuple(changed[n] for n in names)]) for names, t in by_choice[name])

    better = True
    while better:
        better = False
        for name, size in problem.sizes.items():
            own = worth(name, best[name])
            for option in sorted(range(size), key=lambda o, n=name: -worth(n, o)):  # type: ignore[misc]
                if worth(name, option) <= own + 1e-12:
                    break
                if problem.holds({**best, name: option}):
                    best[name], better = option, True
                    break
    return best, problem.value(best) - problem.constant
