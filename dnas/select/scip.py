"""SCIP on the flow form; needs the extra `solvers`."""

import time

import numpy as np
from pyscipopt import Model, quicksum

from dnas.select.highs import as_program
from dnas.select.problem import Problem, Solution, unmet

TIGHTENINGS = 20


def solve(problem: Problem, time_limit: float = 60.0) -> Solution:
    """The best architecture by SCIP, with its dual bound.

    Args:
        problem: values of about 1.
        time_limit: seconds.

    Raises:
        BudgetError: nothing meets the budgets, or nothing was found in time.
    """
    start = time.perf_counter()
    program, objective, constant = as_program(problem, conditional=False)
    limits, bound = dict(problem.limits or {}), np.inf
    for _ in range(TIGHTENINGS):
        rows = program.constraints(limits)
        matrix = rows.A.tocsr()
        model = Model()
        model.hideOutput()
        model.setParam("limits/time", max(time_limit - (time.perf_counter() - start), 1e-3))
        variables = [
            model.addVar(vtype="B" if i < program.binaries else "C", lb=0.0, ub=1.0) for i in range(program.size)
        ]
        for i in range(matrix.shape[0]):
            part = slice(matrix.indptr[i], matrix.indptr[i + 1])
            terms = quicksum(v * variables[c] for v, c in zip(matrix.data[part], matrix.indices[part], strict=True))
            if rows.ub[i] < np.inf:
                model.addCons(terms <= rows.ub[i])
            if rows.lb[i] > -np.inf:
                model.addCons(terms >= rows.lb[i])
        model.setObjective(quicksum(v * variables[i] for i, v in enumerate(objective) if v), "maximize")
        model.optimize()
        if bound == np.inf:  # of the limits as they are
            bound = model.getDualbound()
        if not model.getNSols():
            raise unmet(problem, proven=model.getStatus() == "infeasible")
        positions = program.positions(np.array([model.getVal(variable) for variable in variables]))
        if problem.holds(positions):
            value = problem.value(positions)
            return Solution(positions, value, max(bound + constant, value), "scip", time.perf_counter() - start)
        limits = {
            name: limit * (1 - 1e-7) for name, limit in limits.items()
        }  # within SCIP's tolerance, but not exactly
    raise unmet(problem, proven=False)
