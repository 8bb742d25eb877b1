"""OR-tools' CP-SAT on the flow form, in integers; needs the extra `solvers`."""

import time

import numpy as np
from ortools.sat.python import cp_model

from dnas.select.highs import as_program
from dnas.select.problem import Problem, Solution, unmet

UNITS = 1_000_000
"""Integer units of a value of 1, and of a whole budget whose entries are no integers."""


def solve(problem: Problem, time_limit: float = 60.0) -> Solution:
    """The best architecture by CP-SAT, with its bound, the rounding of values to integers added.

    Args:
        problem: values of about 1.
        time_limit: seconds.

    Raises:
        BudgetError: nothing meets the budgets, or nothing was found in time.
    """
    start = time.perf_counter()
    program, objective, constant = as_program(problem, conditional=False)
    rows = program.constraints(problem.limits or {})
    matrix = rows.A.tocsr()
    model = cp_model.CpModel()
    variables = [model.NewBoolVar("") for _ in range(program.size)]
    structure = matrix.shape[0] - len(problem.rows)
    for i in range(matrix.shape[0]):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        columns, values = matrix.indices[part], matrix.data[part]
        low, high = rows.lb[i], rows.ub[i]
        if i >= structure:
            row = problem.rows[i - structure]
            limit = (problem.limits or {})[row.name]
            unit = limit if row.is_integral else float(UNITS)
            values = np.round(values * unit) if row.is_integral else np.ceil(values * unit)
            high = np.floor(high * unit + (1e-6 if row.is_integral else 0.0))
        terms = sum(int(value) * variables[column] for value, column in zip(values, columns, strict=True))
        if high < np.inf:
            model.Add(terms <= int(high))
        if low > -np.inf:
            model.Add(terms >= int(low))
    worth = np.round(objective * UNITS).astype(np.int64)
    model.Maximize(sum(int(value) * variables[i] for i, value in enumerate(worth) if value))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = 1
    solver.Solve(model)
    if solver.StatusName() not in ("OPTIMAL", "FEASIBLE"):
        raise unmet(problem, proven=solver.StatusName() == "INFEASIBLE")
    positions = program.positions(np.array([solver.Value(variable) for variable in variables], dtype=np.float64))
    if not problem.holds(positions):
        raise unmet(problem, proven=False)
    slack = (
        0.5 * (len(problem.sizes) + len(problem.values)) / UNITS
    )  # at most half a unit for every term that is chosen
    value = problem.value(positions)
    bound = solver.BestObjectiveBound() / UNITS + constant + slack
    return Solution(positions, value, max(bound, value), "cp_sat", time.perf_counter() - start)
