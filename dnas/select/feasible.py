"""Architectures within the budgets, for solvers that search among them: a first one, repairs and single moves."""

import numpy as np
from numpy.typing import NDArray

from dnas.search.budget import BudgetError
from dnas.select.problem import Problem

Indices = NDArray[np.int64]
RESTARTS = 30
SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of its choices that a repair takes from an architecture that holds."""


def neighbours(problem: Problem, indices: Indices) -> Indices:
    """All architectures that differ in one choice; shape (n, choices), of indices of shape (choices,)."""
    sizes = [len(choice.options) for choice in problem.choices]
    rows = []
    for column, size in enumerate(sizes):
        for option in range(size):
            if option != indices[column]:
                row = indices.copy()
                row[column] = option
                rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, len(sizes))


def draw(problem: Problem, generator: np.random.Generator, count: int) -> Indices:
    """Uniform architectures, shape (count, choices)."""
    columns = [generator.integers(len(choice.options), size=count) for choice in problem.choices]
    return np.stack(columns, 1).astype(np.int64)


def first_within(problem: Problem, generator: np.random.Generator) -> Indices:
    """An architecture that holds: violations go down move by move, from the cheapest one, then from random ones.

    Raises:
        BudgetError: none was found after `RESTARTS` starts; there may be one.
    """
    start = np.zeros(len(problem.choices), dtype=np.int64)
    for _ in range(RESTARTS):
        found = lowered(problem, start)
        if problem.holds(problem.position(found)):
            return found
        start = draw(problem, generator, 1)[0]
    raise BudgetError(
        f"no architecture that meets the budgets {dict(problem.limits or {})} was found in {RESTARTS} attempts; raise one of "
        "them, or use an exact solver (select.solver=auto)"
    )


def lowered(problem: Problem, indices: Indices) -> Indices:
    """Single moves that lower what is violated, each at the least loss of value, until nothing is or none does."""
    violation = float(problem.violations(indices[None])[0])
    while violation > 0:
        others = neighbours(problem, indices)
        found = problem.violations(others)
        less = np.flatnonzero(found < violation * (1 - 1e-12))
        if not len(less):
            return indices
        gain = problem.total_values(others[less]) - problem.total_values(indices[None])[0]
        saved = violation - found[less]
        best = less[np.argmax(np.where(gain >= 0, 1e12 + gain, gain / saved))]
        indices, violation = others[best], float(found[best])
    return indices


def improved(problem: Problem, indices: Indices, most: int = 1000) -> Indices:
    """Single moves that raise the value of an architecture that holds, the best first, until none does."""
    value = float(problem.total_values(indices[None])[0])
    for _ in range(most):
        others = neighbours(problem, indices)
        values = np.where(problem.violations(others) > 0, -np.inf, problem.total_values(others))
        for best in np.argsort(-values)[:10]:
            if values[best] > value and problem.holds(problem.position(others[best])):
                break
        else:
            return indices
        indices, value = others[best], float(values[best])
    return indices


def repaired(problem: Problem, indices: Indices, base: Indices, generator: np.random.Generator) -> Indices:
    """Architectures that hold up to rounding: random choices of each are taken from `base`, as few as it needs.

    Args:
        problem: the problem.
        indices: shape (n, choices).
        base: one that holds, shape (choices,).
        generator: of the random numbers.
    """
    found = indices.copy()
    order = generator.random(indices.shape)
    for share in SHARES:
        broken = np.flatnonzero(problem.violations(found) > 0)
        if not len(broken):
            break
        found[broken] = np.where(order[broken] < share, base, indices[broken])
    return found


def best_of(problem: Problem, indices: Indices, base: Indices) -> Indices:
    """The best of many architectures, `base` among them, that holds exactly."""
    every = np.concatenate([indices, base[None]])
    for i in np.argsort(-problem.total_values(every), kind="stable"):
        if problem.holds(problem.position(every[i])):
            found: Indices = every[i]
            return found
    return base
