"""Where no architecture meets all budgets together: how far each would have to be raised, and what takes most of it."""

from dataclasses import replace

from dnas.search.budget import BudgetError
from dnas.select.problem import Problem
from dnas.select.solvers import solve_problem
from dnas.space.choice import Space
from dnas.space.cost import Cost, Factor
from dnas.space.preflight import heaviest_choice

SECONDS = 5.0
"""For each budget."""


def smallest(problem: Problem, cost: Cost, time_limit: float = SECONDS) -> dict[str, int] | None:
    """The architecture of the smallest cost while all other budgets hold and nothing forbidden meets.

    Returns:
        positions by choice; None where the others cannot be held, nothing was found in time, or the cost is a maximum over
        layers, which is no sum to be minimised.
    """
    if len(cost.rows) != 1:
        return None
    values = tuple(Factor(factor.choices, -factor.table) for factor in cost.rows[0])
    others = tuple(one for one in problem.costs if one.name != cost.name)
    limits = {name: limit for name, limit in (problem.limits or {}).items() if name != cost.name}
    try:
        found = solve_problem(replace(problem, values=values, costs=others, limits=limits), time_limit=time_limit)
    except BudgetError:
        return None
    return dict(found.positions)


def explained(error: BudgetError, problem: Problem, space: Space, time_limit: float = SECONDS) -> BudgetError:
    """The error of a problem without a solution, with the smallest value of every cost that the other budgets leave."""
    parts = []
    for cost in problem.costs:
        positions = smallest(problem, cost, time_limit)
        if positions is None:
            continue
        reached, limit = cost.at(positions), (problem.limits or {})[cost.name]
        if reached <= limit:  # found by the way: a solver without a proof had given up
            continue
        most = heaviest_choice(space, cost, positions)
        parts.append(
            f"budget.{cost.name} would have to allow {reached:.6g} (it allows {limit:.6g}"
            + (f"; {most[0]} enters most of it, {most[1]:.0%}" if most else "")
            + ")"
        )
    if not parts:
        return error
    return BudgetError(
        f"{error}. With all others as they are, {', or '.join(parts)}; or allow fewer bits or filters (space.weight_bits, "
        "space.act_bits, space.filters, space.exclude)"
    )
