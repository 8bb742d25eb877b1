"""Ties between options: they go to the dearer one."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dnas.select.problem import Problem
from dnas.space.cost import Factor


def scaled(problem: Problem, share: float) -> tuple[Problem, float]:
    """The problem with values of about 1 plus a bonus for dearer options, and the scale that was divided by.

    The bonus of a choice is at most `share` and never negative: an upper bound stays one. It goes to the option that spends
    more of the budgets, and where there are none to the later one.

    Args:
        problem: the problem.
        share: of the largest range of a table.
    """
    scale = max((float(np.ptp(factor.table)) for factor in problem.values), default=0.0) or 1.0
    values = [Factor(factor.choices, factor.table / scale) for factor in problem.values]
    spent, full = _spent(problem)
    for choice in problem.choices:
        rank = np.arange(len(choice.options)) / max(len(choice.options) - 1, 1)
        more = np.maximum(spent[choice.name] - spent[choice.name][0], 0.0) / full
        values.append(Factor((choice.name,), share * (0.01 * rank + 0.99 * more)))
    return replace(problem, values=tuple(values)), scale


def _spent(problem: Problem) -> tuple[dict[str, NDArray[np.float64]], float]:
    """For every option of every choice, all others at their last, the largest share of a budget; and with that one, too."""
    last = {name: size - 1 for name, size in problem.sizes.items()}
    spent = {name: np.zeros(size) for name, size in problem.sizes.items()}
    full = 0.0
    for row in problem.rows:
        total = sum(factor.at(last) for factor in row.factors)
        own = {name: np.full(size, total) for name, size in problem.sizes.items()}
        for factor in row.factors:
            for axis, name in enumerate(factor.choices):
                index: list[int | slice] = [last[other] for other in factor.choices]
                index[axis] = slice(None)
                own[name] = own[name] + factor.table[tuple(index)] - factor.at(last)
        spent = {name: np.maximum(found, own[name] / row.unit) for name, found in spent.items()}
        full = max(full, total / row.unit)
    return spent, full or 1.0


def dearer(problem: Problem, positions: dict[str, int]) -> dict[str, int]:
    """Moves single choices to a later option while that is worth no less and everything holds."""
    tables: dict[str, list[Factor]] = {name: [] for name in problem.sizes}
    for factor in problem.values:
        for name in factor.choices:
            tables[name].append(factor)
    found, moved = dict(positions), True
    while moved:
        moved = False
        for name, size in problem.sizes.items():
            now = sum(factor.at(found) for factor in tables[name])
            for option in reversed(range(found[name] + 1, size)):
                other = {**found, name: option}
                if sum(factor.at(other) for factor in tables[name]) >= now and problem.holds(other):
                    found, moved = other, True
                    break
    return found
