"""Block-coordinate Frank-Wolfe on the relaxed selection, as in HardCoRe-NAS and BINAS (Nayman et al. 2021), for comparison.

Every choice becomes a point of a simplex. Choices that stand in no table together form a block; values and costs are linear
in each block, so that a step is a linear program over a product of simplices with one row per budget. A vertex of it has at
most as many simplices with fractional entries as rows. On a function that is linear in the block an exact line search takes
the whole step, or none where it gains nothing: the method is alternating maximisation. What it ends with is stationary, not
proven best; it is rounded, and repaired to hold.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from dnas.select.feasible import Indices, best_of, draw, first_within, improved, lowered, repaired
from dnas.select.problem import Problem, Solution
from dnas.space.cost import Factor

Numbers = NDArray[np.float64]
Point = dict[str, Numbers]
STARTS, SWEEPS = 8, 100


class Relaxed:
    """A problem over a product of simplices: tables are read as expectations under independent choices."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tables = [("value", problem.values), ("forbidden", problem.forbidden)]
        self.rows: list[tuple[str, Sequence[Factor]]] = [("row", row.factors) for row in problem.rows]
        self.blocks = self._blocks()

    def _blocks(self) -> list[tuple[str, ...]]:
        """Greedy colouring: every choice joins the first block with none that stands in a table with it."""
        meets: dict[str, set[str]] = {name: set() for name in self.problem.sizes}
        for _, factors in (*self.tables, *self.rows):
            for factor in factors:
                for name in factor.choices:
                    meets[name] |= set(factor.choices)
        blocks: list[list[str]] = []
        for name, others in meets.items():
            free = next((block for block in blocks if not others & set(block)), None)
            if free is None:
                blocks.append([name])
            else:
                free.append(name)
        return [tuple(block) for block in blocks]

    def expectation(self, factors: Sequence[Factor], point: Mapping[str, Numbers]) -> float:
        """The expected sum of tables at a point."""
        return float(sum(_contracted(factor, point, None) for factor in factors))

    def gradient(
        self, factors: Sequence[Factor], point: Mapping[str, Numbers], block: Sequence[str]
    ) -> tuple[Numbers, float]:
        """What each option of a block's choices adds to the expected sum, side by side, and what does not depend on them."""
        parts, rest = {name: np.zeros(self.problem.sizes[name]) for name in block}, 0.0
        for factor in factors:
            own = next((name for name in factor.choices if name in parts), None)
            found = _contracted(factor, point, own)
            if own is None:
                rest += float(found)
            else:
                parts[own] = parts[own] + found
        return np.concatenate([parts[name] for name in block]), rest

    def step(self, point: Mapping[str, Numbers], block: Sequence[str]) -> Point | None:
        """The best vertex of a block with all others as they are; None where the program has no solution."""
        gain, _ = self.gradient(self.problem.values, point, block)
        sizes = [self.problem.sizes[name] for name in block]
        starts = np.cumsum([0, *sizes])
        ones = csr_matrix((np.ones(starts[-1]), np.arange(starts[-1]), starts), shape=(len(block), starts[-1]))
        unwanted, _ = self.gradient(self.problem.forbidden, point, block)
        matrix, upper = [], []
        for row in self.problem.rows:
            spent, rest = self.gradient(row.factors, point, block)
            matrix.append(spent / row.unit)
            upper.append((row.limit - rest) / row.unit)
        result = linprog(
            -gain,
            A_ub=np.array(matrix) if matrix else None,
            b_ub=np.array(upper) if matrix else None,
            A_eq=ones,
            b_eq=np.ones(len(block)),
            bounds=np.column_stack([np.zeros(starts[-1]), np.where(unwanted > 1e-9, 0.0, 1.0)]),
            method="highs-ds",
        )
        if result.x is None:
            return None
        return {name: result.x[starts[i] : starts[i + 1]] for i, name in enumerate(block)}

    def maximise(self, point: Point, generator: np.random.Generator, deadline: float) -> Point:
        """Steps over the blocks in random order until a whole sweep gains nothing."""
        value = self.expectation(self.problem.values, point)
        for _ in range(SWEEPS):
            before = value
            for number in generator.permutation(len(self.blocks)):
                found = self.step(point, self.blocks[number])
                if found is not None:
                    other = {**point, **found}
                    reached = self.expectation(self.problem.values, other)
                    if reached > value:  # the line search
                        point, value = other, reached
                if time.perf_counter() > deadline:
                    return point
            if value <= before + 1e-12 * max(abs(before), 1.0):
                break
        return point


def _contracted(factor: Factor, point: Mapping[str, Numbers], kept: str | None) -> NDArray[np.float64]:
    """The table's expectation over all of its choices, but one that is kept; shape () or (K,)."""
    table, names = factor.table, factor.choices
    if kept is not None:
        table = np.moveaxis(table, names.index(kept), 0)
        names = (kept, *(name for name in names if name != kept))
    for name in reversed(names[0 if kept is None else 1 :]):
        table = table @ point[name]
    return table


def solve_frank_wolfe(problem: Problem, time_limit: float = 60.0, seed: int = 0, starts: int = STARTS) -> Solution:
    """The best architecture of several starts; its bound is infinite.

    Args:
        problem: the problem.
        time_limit: seconds.
        seed: of the starts and of the order of the blocks.
        starts: the cheapest architecture found and random ones that hold.

    Raises:
        BudgetError: no first architecture within the budgets was found.
    """
    begun, generator = time.perf_counter(), np.random.default_rng(seed)
    relaxed = Relaxed(problem)
    base = first_within(problem, generator)
    found = [base]
    for number in range(starts):
        if number and time.perf_counter() - begun > time_limit:
            break
        start = repaired(problem, draw(problem, generator, 1), base, generator)[0] if number else base
        point = relaxed.maximise(_one_hot(problem, start), generator, begun + time_limit)
        found.append(_rounded(problem, point))
    positions = problem.position(best_of(problem, np.array(found), base))
    return Solution(positions, problem.value(positions), float("inf"), "frank_wolfe", time.perf_counter() - begun)


def _one_hot(problem: Problem, indices: Indices) -> Point:
    return {c.name: np.eye(len(c.options))[i] for c, i in zip(problem.choices, indices, strict=True)}


def _rounded(problem: Problem, point: Mapping[str, Numbers]) -> Indices:
    """The most probable options, lowered until they hold, then improved move by move."""
    indices = lowered(problem, np.array([int(np.argmax(point[c.name])) for c in problem.choices], dtype=np.int64))
    return improved(problem, indices) if problem.holds(problem.position(indices)) else indices
