"""BINAS' own solver, for comparison: block-coordinate Frank-Wolfe on the relaxed problem, then rounding (Nayman et al. 2022).

A block is a set of choices no two of which meet in a table: with the other blocks fixed, value and spending are linear in it.
So a step is a linear program over simplices, and the exact line search takes it whole. At a vertex at most as many choices of a
block are fractional as there are resources. What the original lacks: rounding is repaired until the limits hold.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from scipy.optimize import linprog

from dnas.select.batch import Batch
from dnas.select.labels import Solution
from dnas.select.problem import Array, Problem, Table

STARTS, SWEEPS = 5, 30
FRACTION = 1e-7
ROUNDINGS = 4096
FORBIDDEN = 1e3
"""What a forbidden meeting costs the relaxed problem, in ranges of the values."""


def blocks_of(problem: Problem) -> list[list[str]]:
    """Choices in sets that no table holds two of, first fit in the problem's order."""
    meets: dict[str, set[str]] = {name: set() for name in problem.sizes}
    tables = [names for names, _ in problem.values] + [names for row in problem.rows for names, _ in row.tables]
    for names in [*tables, *(names for names, _ in problem.forbidden)]:
        for name in names:
            meets[name] |= set(names) - {name}
    blocks: list[list[str]] = []
    for name in problem.sizes:
        for block in blocks:
            if not meets[name] & set(block):
                block.append(name)
                break
        else:
            blocks.append([name])
    return blocks


def _gradient(tables: Sequence[Table], x: Mapping[str, Array], block: Sequence[str]) -> tuple[dict[str, Array], float]:
    """Derivative of the sum of tables with respect to every choice of a block, and what does not depend on the block."""
    own = {name: np.zeros(len(x[name])) for name in block}
    constant = 0.0
    for names, table in tables:
        value = table
        inside = [name for name in names if name in own]
        for axis in reversed(range(len(names))):
            if names[axis] not in own:
                value = np.tensordot(value, x[names[axis]], (axis, 0))
        if inside:
            own[inside[0]] += value
        else:
            constant += float(value)
    return own, constant


class _Relaxed:
    """The relaxed problem at one point: a distribution over the options of every choice."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.blocks = problem, blocks_of(problem)
        spread = sum(float(np.ptp(table)) for _, table in problem.values) or 1.0
        penalties: list[Table] = [
            (names, np.where(table, -FORBIDDEN * spread, 0.0)) for names, table in problem.forbidden
        ]
        self.values = [*problem.values, *penalties]

    def value(self, x: Mapping[str, Array]) -> float:
        """Expected value, forbidden meetings included."""
        return _gradient(self.values, x, ())[1]

    def feasible(self, x: Mapping[str, Array]) -> bool:
        """Whether the expected spending holds."""
        return all(_gradient(row.tables, x, ())[1] <= row.limit * (1 + 1e-9) for row in self.problem.rows)

    def step(self, x: dict[str, Array], block: Sequence[str]) -> int:
        """Sets a block to its best vertex; returns how many of its choices are fractional there."""
        gain, _ = _gradient(self.values, x, block)
        sizes = [len(x[name]) for name in block]
        edges = np.cumsum([0, *sizes])
        rows, limits = [], []
        for row in self.problem.rows:
            spend, constant = _gradient(row.tables, x, block)
            scale = max(abs(row.limit), 1e-12)
            rows.append(np.concatenate([spend[name] for name in block]) / scale)
            limits.append((row.limit - constant) / scale)
        ones = np.zeros((len(block), edges[-1]))
        for i in range(len(block)):
            ones[i, edges[i] : edges[i + 1]] = 1.0
        result = linprog(
            -np.concatenate([gain[name] for name in block]), A_ub=np.array(rows) if rows else None,
            b_ub=np.array(limits) + 1e-12 if rows else None, A_eq=ones, b_eq=np.ones(len(block)), bounds=(0, 1),
            method="highs-ds",
        )  # fmt: skip
        if result.x is None:
            return 0
        fractional = 0
        for i, name in enumerate(block):
            found = np.clip(result.x[edges[i] : edges[i + 1]], 0.0, 1.0)
            x[name] = found / found.sum()
            fractional += int((x[name] < 1 - FRACTION).all())
        return fractional


def relax(problem: Problem, start: dict[str, Array]) -> tuple[dict[str, Array], list[int]]:
    """Steps through the blocks until no block gains.

    Args:
        problem: the problem.
        start: a feasible point: shape (options,) per choice.

    Returns:
        the stationary point, and the number of fractional choices after every step.
    """
    relaxed, x = _Relaxed(problem), dict(start)
    fractional: list[int] = []
    last = relaxed.value(x)
    for _ in range(SWEEPS):
        for block in relaxed.blocks:
            fractional.append(relaxed.step(x, block))
        value = relaxed.value(x)
        if value <= last + 1e-9 * max(1.0, abs(last)):
            break
        last = value
    return x, fractional


def solve_by_frank_wolfe(problem: Problem, time_limit: float = 60.0, seed: int = 0) -> Solution:
    """The best of several starts between the cheapest options and random ones, rounded and repaired."""
    start, batch, relaxed = time.perf_counter(), Batch(problem), _Relaxed(problem)
    generator = np.random.default_rng(seed)
    cheapest = {name: np.eye(size)[0] for name, size in problem.sizes.items()}
    best: dict[str, int] | None = None
    value = -np.inf
    if not relaxed.feasible(cheapest):
        first, feasible = batch.repaired(np.zeros(len(batch.sizes), dtype=np.int64))
        if not feasible:
            return Solution(None, -np.inf, np.inf, time.perf_counter() - start)
        cheapest = {name: np.eye(size)[first[i]] for i, (name, size) in enumerate(problem.sizes.items())}
    for turn in range(STARTS):
        share, point = 1.0 if turn else 0.0, cheapest
        toward = {name: generator.dirichlet(np.ones(size)) for name, size in problem.sizes.items()}
        while share > 0.01:
            mixed = {name: (1 - share) * cheapest[name] + share * toward[name] for name in cheapest}
            if relaxed.feasible(mixed):
                point = mixed
                break
            share /= 2
        x, _ = relax(problem, dict(point))
        for positions in _roundings(x):
            repaired, feasible = batch.repaired(positions)
            if feasible and float(batch.value(repaired[None])[0]) > value:
                best, value = batch.named(repaired), float(batch.value(repaired[None])[0])
        if time.perf_counter() - start > time_limit:
            break
    return Solution(best, value, np.inf, time.perf_counter() - start)


def _roundings(x: Mapping[str, Array]) -> list[np.ndarray]:
    """Every choice at its most probable option, and all roundings of the fractional ones where these are few."""
    options = [np.flatnonzero(found > FRACTION) for found in x.values()]
    likely = np.array([int(np.argmax(found)) for found in x.values()], dtype=np.int64)
    if np.prod([float(len(o)) for o in options]) > ROUNDINGS:
        return [likely]
    return [likely, *(np.array(index, dtype=np.int64) for index in product(*options))]
