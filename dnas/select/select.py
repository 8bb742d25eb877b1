"""The selector: from scores and budgets to the best architecture that meets every budget, with a certificate."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores
from dnas.select.by_filter import select_by_filter
from dnas.select.evolution import solve_by_evolution, solve_by_random
from dnas.select.frank_wolfe import solve_by_frank_wolfe
from dnas.select.labels import MOST_STATES, dual_bound, solve_by_labels, state_count
from dnas.select.problem import build_problem
from dnas.select.program import Program
from dnas.select.solve import SCALE, solve
from dnas.space.architecture import Architecture, Certificate
from dnas.space.choice import Space
from dnas.space.cost import Cost, Factor, build_cost

HEURISTICS = {"frank_wolfe": solve_by_frank_wolfe, "evolution": solve_by_evolution, "random": solve_by_random}
SOLVERS = ("auto", "labels", "highs", *HEURISTICS)
TIE_BREAK = 1e-6
"""Share of the range of scores that the dearest option of a choice is worth on top, so that ties go to the dearer."""


def select(
    scores: Scores, space: Space, budget: Budget | None = None, time_limit: float = 60.0, solver: str = "auto"
) -> Architecture:
    """Maximises the total score under every budget, exactly.

    Args:
        scores: one number per option, and tables for options of several choices together.
        space: the space that they are of.
        budget: upper bounds; None selects the best-scored option everywhere.
        time_limit: seconds; when it runs out, the certificate's gap says how far from proven the result is.
        solver: `labels` (label setting, see `dnas.select.labels`), `highs` (mixed-integer program), or `auto`: labels where
            the choices can be decided one after the other with few enough states. For comparison `frank_wolfe` (BINAS'
            own), `evolution` and `random`: their bound is that of the Lagrangian dual, or infinite without such a
            decomposition. Where single filters decide, always HiGHS.

    Returns:
        an architecture that meets the budget in integers, with its certificate. Ties go to the dearer option.

    Raises:
        BudgetError: no architecture of the space meets the budget.
        ValueError: scores that do not fit the space, or an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"select.solver is {solver!r}; allowed: {list(SOLVERS)}")
    scores.check(space)
    start = time.perf_counter()
    limits = budget.limits(space) if budget else {}
    if budget:
        budget.check(space)
    costs = [build_cost(space, name, budget.functions if budget else None) for name in limits]
    if any(choice.by_filter for choice in space.searched()):
        return select_by_filter(scores, space, budget, costs, limits, time_limit)
    values, scale = _with_tie_break(scores, space, costs, limits)
    joint = [Factor(factor.choices, factor.table / scale) for factor in scores.factors()]
    problem = build_problem(space, values, joint, costs, limits)
    positions, bound, method = None, float("inf"), "labels"
    if solver == "labels" or (solver == "auto" and state_count(problem) <= MOST_STATES):
        found = solve_by_labels(problem, time_limit)
        if found.positions is not None:
            positions = {choice.name: 0 for choice in space.choices} | found.positions
            bound = found.bound
            if any(
                cost.at(positions) > limits[cost.name] for cost in costs
            ):  # by rounding: costs that are not integers
                positions = None
    if solver in HEURISTICS:
        found = HEURISTICS[solver](problem, time_limit)
        if found.positions is None:
            raise BudgetError(
                f"select.solver={solver} found no architecture within {dict(limits)}; use select.solver=auto"
            )
        positions, method = {choice.name: 0 for choice in space.choices} | found.positions, solver
        bound = dual_bound(problem) if state_count(problem) <= MOST_STATES else float("inf")
    if positions is None:
        positions, bound, method = *_by_highs(scores, space, costs, limits, values, joint, scale, time_limit), "highs"
    spent = {cost.name: cost.at(positions) for cost in costs}
    value = sum(scores.values[name][option] for name, option in positions.items())
    value += sum(factor.at(positions) for factor in scores.factors())
    best = max(bound * scale, value)
    certificate = Certificate(value, best, best - value, method, time.perf_counter() - start, spent, limits)
    options = {choice.name: choice.options[positions[choice.name]] for choice in space.choices}
    return Architecture(space, options, None, certificate, budget.functions if budget else {})


def _by_highs(
    scores: Scores,
    space: Space,
    costs: Sequence[Cost],
    limits: Mapping[str, float],
    values: Mapping[str, Sequence[float]],
    joint: Sequence[Factor],
    scale: float,
    time_limit: float,
) -> tuple[dict[str, int], float]:
    """Positions and a bound of the scaled score."""
    program = Program(space, costs, joint=joint)
    fixed = sum(scores.values[choice.name][0] for choice in space.choices if not choice.searched) / scale
    if not program.binaries:
        return {choice.name: 0 for choice in space.choices}, program.constant + fixed
    positions, bound = solve(program, program.objective(values), limits, time_limit)
    if limits:
        pure = {name: [score / scale for score in found] for name, found in scores.values.items()}
        best = _total(pure, [factor.at(positions) for factor in joint], positions, space) - program.constant
        positions = _spend(program, pure, best, limits, positions, time_limit)
    return positions, bound + program.constant + fixed


def _with_tie_break(
    scores: Scores, space: Space, costs: Sequence[Cost], limits: Mapping[str, float]
) -> tuple[dict[str, list[float]], float]:
    """Scores scaled to a largest range of 1, plus the tie-break, which is never negative: bounds stay bounds.

    A tie goes to the option that spends more of the budgets, and where there are none to the later one.
    """
    dearest = {choice.name: len(choice.options) - 1 for choice in space.choices}

    def spent(name: str, option: int) -> float:
        return max((cost.at({**dearest, name: option}) / limits[cost.name] for cost in costs), default=0.0)

    full = max((cost.at(dearest) / limits[cost.name] for cost in costs), default=1.0)
    ranges = [np.ptp(scores.values[choice.name]) for choice in space.choices]
    ranges += [np.ptp(factor.table) for factor in scores.factors()]
    scale = float(max(ranges, default=0.0)) or 1.0
    values = {}
    for choice in space.choices:
        top = max(len(choice.options) - 1, 1)
        least = spent(choice.name, 0)
        values[choice.name] = [
            score / scale + TIE_BREAK * (0.01 * rank / top + 0.99 * max(spent(choice.name, rank) - least, 0.0) / full)
            for rank, score in enumerate(scores.values[choice.name])
        ]
    return values, scale


def _total(
    values: Mapping[str, Sequence[float]], joint: Sequence[float], positions: Mapping[str, int], space: Space
) -> float:
    """The score of positions, without that of choices that have one option."""
    return sum(values[choice.name][positions[choice.name]] for choice in space.searched()) + sum(joint)


def _spend(
    program: Program,
    values: Mapping[str, Sequence[float]],
    best: float,
    limits: Mapping[str, float],
    positions: dict[str, int],
    time_limit: float,
) -> dict[str, int]:
    """Of all solutions that score as much as `best` (within the tie-break), one that spends most of the budgets."""
    rows = program.constraints(limits)
    budgets = sum(len(cost.rows) for cost in program.costs)
    objective = program.objective(values)
    integrality = np.zeros(program.size)
    integrality[: program.binaries] = 1
    result = milp(
        -SCALE * np.asarray(rows.A[-budgets:].sum(axis=0)).ravel(),
        integrality=integrality,
        bounds=Bounds(0, 1),
        constraints=[rows, LinearConstraint(objective[None, :], best - TIE_BREAK, np.inf)],
        options={"time_limit": time_limit, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        return positions
    found = program.positions(result.x)
    holds = all(cost.at(found) <= limits[cost.name] for cost in program.costs)
    more = sum(cost.at(found) / limits[cost.name] for cost in program.costs) > sum(
        cost.at(positions) / limits[cost.name] for cost in program.costs
    )
    return found if holds and more else positions
