"""The selector: from scores and budgets to the best architecture that meets every budget, with a certificate."""

import time

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores, no_scores
from dnas.select.by_filter import select_by_filter
from dnas.select.infeasible import SECONDS, explained
from dnas.select.problem import Problem
from dnas.select.solvers import check_solver, solve_problem
from dnas.space.architecture import Architecture, Certificate
from dnas.space.choice import Space
from dnas.space.cost import build_cost


def select(
    scores: Scores, space: Space, budget: Budget | None = None, time_limit: float = 60.0, solver: str = "auto"
) -> Architecture:
    """Maximises the total score under every budget, exactly where the solver is exact.

    Args:
        scores: one number per option, and tables over joint options.
        space: the space that they are of.
        budget: upper bounds; None selects the best-scored option everywhere.
        time_limit: seconds; when it runs out, the certificate's gap says how far from proven the result is.
        solver: one of `dnas.select.solvers.SOLVERS`, or `auto`: `labels` where its graph is small enough, else `highs`.
            Where single filters decide it is `highs`, whose program is another one then.

    Returns:
        an architecture that meets the budget in integers, with its certificate. Ties go to the dearer option.

    Raises:
        BudgetError: no architecture of the space meets the budget, or none was found; of budgets that do not hold together
            with how far each would have to be raised.
        ValueError: scores that do not fit the space, or a solver that cannot take it.
        ModuleNotFoundError: a solver that is not installed.
    """
    check_solver(solver)
    scores.check(space)
    start = time.perf_counter()
    limits = budget.limits(space) if budget else {}
    if budget:
        budget.check(space)
    costs = [build_cost(space, name, budget.functions if budget else None) for name in limits]
    if any(choice.by_filter for choice in space.searched()):
        if solver not in ("auto", "highs"):
            raise ValueError(
                f"select.solver is {solver!r}, but single filters decide in this space; allowed there: 'auto', 'highs'"
            )
        if scores.joint:
            raise ValueError(
                f"scores of method {scores.method!r} have tables over several choices, but single filters decide in this "
                "space; leave space.granularity and space.act_granularity at layer"
            )
        return select_by_filter(scores, space, budget, costs, limits, time_limit)
    problem = Problem.of(space, scores, costs, limits)
    try:
        found = solve_problem(problem, solver, time_limit)
    except BudgetError as error:
        raise explained(error, problem, space, min(time_limit, SECONDS)) from error
    positions = found.positions
    spent = {cost.name: cost.at(positions) for cost in costs}
    certificate = Certificate(
        found.value, found.bound, found.gap, found.method, time.perf_counter() - start, spent, limits
    )
    options = {choice.name: choice.options[positions[choice.name]] for choice in space.choices}
    return Architecture(space, options, None, certificate, budget.functions if budget else {})


def any_architecture(space: Space, budget: Budget, time_limit: float = 60.0, solver: str = "auto") -> Architecture:
    """One that meets every budget, whichever; arguments and errors as of `select`."""
    nothing = {choice.name: no_scores(choice) for choice in space.choices}
    return select(Scores(nothing, "none"), space, budget, time_limit, solver)
