"""Evolutionary and random search among architectures within the budgets, for comparison.

Evolution as in BINAS (Nayman et al. 2021) and Once-for-All (Cai et al. 2020): population 100, a quarter are parents, half of
the children are mutations (each choice with probability 0.1), half crossovers. Where those reject children that break the
budget, and may do so for ever, a child here takes random choices of an architecture that holds until it holds too.
"""

import time

import numpy as np

from dnas.select.feasible import Indices, best_of, draw, first_within, repaired
from dnas.select.problem import Problem, Solution

POPULATION, PARENTS, MUTATION, GENERATIONS = 100, 0.25, 0.1, 500
SAMPLES, BATCH = 20_000, 500


def solve_evolution(
    problem: Problem, time_limit: float = 60.0, seed: int = 0, generations: int = GENERATIONS
) -> Solution:
    """The best architecture of an evolution; its bound is infinite.

    Args:
        problem: the problem.
        time_limit: seconds.
        seed: of all its random numbers.
        generations: at most so many.

    Raises:
        BudgetError: no first architecture within the budgets was found.
    """
    start, generator = time.perf_counter(), np.random.default_rng(seed)
    base = first_within(problem, generator)
    population = repaired(problem, draw(problem, generator, POPULATION), base, generator)
    parents = round(POPULATION * PARENTS)
    for _ in range(generations):
        if time.perf_counter() - start > time_limit:
            break
        order = np.argsort(-problem.total_values(population), kind="stable")
        best = population[order[:parents]]
        half = (POPULATION - parents) // 2
        mutated = best[generator.integers(parents, size=half)]
        fresh = draw(problem, generator, half)
        mutated = np.where(generator.random(mutated.shape) < MUTATION, fresh, mutated)
        crossed = POPULATION - parents - half
        one, two = (best[generator.integers(parents, size=crossed)] for _ in range(2))
        children = np.concatenate([mutated, np.where(generator.random(one.shape) < 0.5, one, two)])
        population = np.concatenate([best, repaired(problem, children, base, generator)])
    return _finished(problem, best_of(problem, population, base), "evolution", start)


def solve_random(problem: Problem, time_limit: float = 60.0, seed: int = 0, samples: int = SAMPLES) -> Solution:
    """The best of random architectures, each repaired to hold; its bound is infinite.

    Args:
        problem: the problem.
        time_limit: seconds.
        seed: of all its random numbers.
        samples: at most so many.

    Raises:
        BudgetError: no first architecture within the budgets was found.
    """
    start, generator = time.perf_counter(), np.random.default_rng(seed)
    base = best = first_within(problem, generator)
    for _ in range(-(-samples // BATCH)):
        if time.perf_counter() - start > time_limit:
            break
        best = best_of(problem, repaired(problem, draw(problem, generator, BATCH), base, generator), best)
    return _finished(problem, best, "random", start)


def _finished(problem: Problem, indices: Indices, method: str, start: float) -> Solution:
    positions = problem.position(indices)
    return Solution(positions, problem.value(positions), float("inf"), method, time.perf_counter() - start)
