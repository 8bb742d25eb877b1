"""HiGHS on a problem: the flow form, or the conditional form where the flow form is too large."""

import time
from itertools import chain
from math import prod

import numpy as np
from numpy.typing import NDArray

from dnas.select.problem import Problem, Solution, unmet
from dnas.select.program import Program
from dnas.select.solve import solve
from dnas.space.choice import Space

MOST_FLOW = 200_000
"""Joint options of all tables above which cost tables of rank one take the conditional form."""


def flow_size(problem: Problem) -> int:
    """Joint options of all sets of choices that stand in a table together: the variables of the flow form."""
    sizes = problem.sizes
    rows = chain.from_iterable(row.factors for row in problem.rows)
    sets = {frozenset(factor.choices) for factor in chain(problem.values, problem.forbidden, rows)}
    return sum(prod(sizes[name] for name in names) for names in sets if len(names) > 1)


def as_program(problem: Problem, conditional: bool | None = None) -> tuple[Program, NDArray[np.float64], float]:
    """The program of a problem, its objective, and the value that the objective leaves out.

    Args:
        problem: the problem.
        conditional: form of the cost tables of rank one; by default what the size of the flow form asks for.

    Raises:
        BudgetError: what is not searched is forbidden as it is.
    """
    for factor in problem.forbidden:
        if factor.table.size == 1 and factor.table.any():
            raise unmet(problem, proven=True)
    if conditional is None:
        conditional = flow_size(problem) > MOST_FLOW
    space = Space(problem.choices, (), (), (), {})
    joint = [factor for factor in problem.values if len(factor.choices) > 1]
    program = Program(space, problem.costs, problem.forbidden, joint, conditional)
    values = {name: np.zeros(size) for name, size in problem.sizes.items()}
    for factor in problem.values:
        if len(factor.choices) == 1:
            values[factor.choices[0]] = values[factor.choices[0]] + factor.table
    fixed = sum(float(values[name][0]) for name, size in problem.sizes.items() if size == 1)
    objective = program.objective({name: found.tolist() for name, found in values.items()})
    return program, objective, program.constant + fixed


def solve_highs(
    problem: Problem, time_limit: float = 60.0, precision: float = 0.0, conditional: bool | None = None
) -> Solution:
    """The best architecture by HiGHS, with its dual bound.

    Args:
        problem: values of about 1: HiGHS' own absolute tolerance is 1e-6.
        time_limit: seconds.
        precision: relative gap at which it may stop.
        conditional: see `as_program`.

    Raises:
        BudgetError: nothing meets the budgets, or nothing was found in time.
    """
    start = time.perf_counter()
    program, objective, constant = as_program(problem, conditional)
    if not program.binaries:
        positions, bound = {choice.name: 0 for choice in problem.choices}, 0.0
        if not problem.holds(positions):
            raise unmet(problem, proven=True)
    else:
        positions, bound = solve(program, objective, problem.limits or {}, time_limit, precision)
    value = problem.value(positions)
    return Solution(positions, value, max(bound + constant, value), "highs", time.perf_counter() - start)
