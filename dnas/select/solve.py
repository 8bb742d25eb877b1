"""A program handed to HiGHS until its solution holds in integers."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, milp

from dnas.search.budget import BudgetError
from dnas.select.program import Program

LEAST_TIME = 1.0
"""Seconds that every attempt gets, however many came before."""
SCALE = 1e4
"""Of the objective that HiGHS sees: its absolute gap of 1e-6 is then finer than the tie-break."""


def solve(
    program: Program, objective: NDArray[np.float64], limits: Mapping[str, float], time_limit: float, gap: float = 0.0
) -> tuple[dict[str, int], float]:
    """Positions of a best solution that holds in integers, and an upper bound of the objective.

    Args:
        program: the program.
        objective: coefficient of every variable, to be maximised; best scaled to about 1.
        limits: by cost name.
        time_limit: seconds.
        gap: relative gap at which HiGHS may stop.

    Raises:
        BudgetError: nothing meets the budgets.
    """
    integrality = np.zeros(program.size)
    integrality[: program.binaries] = 1
    tightened, bound = dict(limits), -float("inf")
    deadline = time.perf_counter() + time_limit

    def attempt(presolve: bool) -> Any:
        return milp(
            -SCALE * objective,
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=program.constraints(tightened),
            options={
                "time_limit": max(deadline - time.perf_counter(), LEAST_TIME),
                "mip_rel_gap": gap,
                "presolve": presolve,
            },
        )

    for _ in range(20):
        result = attempt(presolve=True)
        if result.x is None and result.status != 1:  # presolve has called limits that can be met infeasible
            result = attempt(presolve=False)
        if result.x is None and result.status not in (1, 2):  # neither out of time nor infeasible
            raise RuntimeError(f"HiGHS failed on the selection: {result.message}")
        if result.x is None:
            found = "was found in time to meet" if result.status == 1 else "meets"
            raise BudgetError(
                f"no architecture {found} the budgets {dict(limits)} together with the target's legal pairs "
                f"(HiGHS: {result.message}); raise one of them, or give the selection more time (select.time_limit)"
            )
        if bound == -float("inf"):  # of the limits as they are: those of tightened ones would bound less
            dual = result.mip_dual_bound
            bound = float("inf") if dual is None else -dual / SCALE
        positions = program.positions(result.x)
        over = [cost.name for cost in program.costs if cost.at(positions) > limits[cost.name]]
        if not over:
            return positions, float(bound)
        for name in over:  # within HiGHS' tolerance, but not in integers
            tightened[name] = tightened[name] * (1 - 1e-7)
    raise BudgetError(f"HiGHS returned no solution that holds {dict(limits)} in integers; change the budget slightly")
