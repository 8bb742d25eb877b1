"""Every solver of a problem by its name."""

import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import numpy as np

from dnas.search.budget import BudgetError
from dnas.select.decomposition import Graph, TooLargeError, build_graph
from dnas.select.dominance import Numbers
from dnas.select.evolution import solve_evolution, solve_random
from dnas.select.frank_wolfe import solve_frank_wolfe
from dnas.select.highs import solve_highs
from dnas.select.labels import nothing_above, solve_labels
from dnas.select.lagrangian import minimise_dual
from dnas.select.problem import Problem, Solution
from dnas.select.ties import dearer, scaled

HEURISTICS: dict[str, Callable[[Problem, float], Solution]] = {
    "frank_wolfe": solve_frank_wolfe,
    "evolution": solve_evolution,
    "random": solve_random,
}
EXTRAS = {"cp_sat": "ortools", "scip": "pyscipopt"}
"""Solvers that another package brings."""
SOLVERS = ("auto", "labels", "highs", *HEURISTICS, *EXTRAS)
EXACT_TIE, TIE = 1e-9, 1e-6
"""Share of the range of scores that the dearest option of a choice is worth on top: with label setting, and with others."""
PRECISION = 1e-10
"""Of scaled scores: differences that label setting leaves alone."""


def check_solver(name: str) -> None:
    """Raises ValueError for an unknown solver, ModuleNotFoundError for one whose package is not installed."""
    if name not in SOLVERS:
        raise ValueError(f"select.solver is {name!r}; allowed: {', '.join(SOLVERS)}")
    if name in EXTRAS:
        try:
            import_module(EXTRAS[name])
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"select.solver={name} needs the package {EXTRAS[name]}: pip install 'dnas[solvers]'; or use select.solver=auto"
            ) from error


def solve_problem(problem: Problem, solver: str = "auto", time_limit: float = 60.0) -> Solution:
    """The best architecture that a solver finds; ties go to the dearer option.

    Args:
        problem: the problem, values in any unit.
        solver: one of `SOLVERS`; `auto` is `labels`, or `highs` where the layered graph is too large.
        time_limit: seconds.

    Returns:
        positions that hold exactly. The heuristics' bound is the Lagrangian one, or infinite where there is no graph.

    Raises:
        BudgetError: nothing meets the budgets, or nothing was found.
        ValueError: an unknown solver, or `labels` where the layered graph is too large.
        ModuleNotFoundError: a solver that is not installed.
    """
    check_solver(solver)
    exact, scale = scaled(problem, EXACT_TIE)
    loose, _ = scaled(problem, TIE)
    if solver in ("auto", "labels"):
        try:
            found = solve_labels(exact, time_limit, PRECISION)
            graph = build_graph(problem)
            return proven(unscaled(found, problem, scale), scale, graph, graph.limits, time_limit)
        except TooLargeError:
            if solver == "labels":
                raise
            found = solve_highs(loose, time_limit)
    elif solver == "highs":
        found = solve_highs(loose, time_limit)
    elif solver in EXTRAS:
        found = import_module(f"dnas.select.{solver}").solve(loose, time_limit)
    else:
        found = HEURISTICS[solver](exact, time_limit)
        found = replace(found, bound=max(min(found.bound, dual_bound(exact)), found.value))
    return unscaled(found, problem, scale)


def unscaled(found: Solution, problem: Problem, scale: float) -> Solution:
    """The solution of `dnas.select.ties.scaled` as one of the problem itself, ties settled by single moves."""
    positions = dearer(problem, dict(found.positions))
    value = problem.value(positions)
    return replace(found, positions=positions, value=value, bound=max(found.bound * scale, value))


def proven(found: Solution, scale: float, graph: Graph, limits: Numbers, time_limit: float) -> Solution:
    """The solution with its own value as bound where label setting without a bonus for dearer options proves it.

    Args:
        found: a solution of the problem, its bound that of the problem with the bonus.
        scale: of the problem's values, see `dnas.select.ties.scaled`.
        graph: of the problem without the bonus.
        limits: of the graph's resources, shape (R,).
        time_limit: seconds for both; where the solution took them all, or is far from its bound, it stays as it is.
    """
    start = time.perf_counter()
    if found.gap <= TIE * scale * max(len(found.positions), 1):
        deadline = start + time_limit - found.seconds
        if nothing_above(graph, limits, found.value - graph.constant, deadline):
            found = replace(found, bound=found.value)
    return replace(found, seconds=found.seconds + time.perf_counter() - start)


def dual_bound(problem: Problem) -> float:
    """The Lagrangian bound of a problem: no positions that hold are worth more; infinite where the graph is too large.

    Raises:
        BudgetError: it proves that nothing holds.
    """
    try:
        graph = build_graph(problem)
    except TooLargeError:
        return float("inf")
    bound = minimise_dual(graph, graph.limits).bound + graph.constant
    if bound == -np.inf:
        raise BudgetError(f"no architecture meets the budgets {dict(problem.limits or {})}; raise one of them")
    return float(bound)
