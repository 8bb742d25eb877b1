"""Evolutionary and random search, for comparison: no bound of their own, feasible solutions only."""

import time

import numpy as np

from dnas.select.batch import Batch, Positions
from dnas.select.labels import Solution
from dnas.select.problem import Problem

POPULATION, PARENTS, MUTATION, GENERATIONS = 100, 0.25, 0.1, 200
ATTEMPTS = 20


def _start(batch: Batch, generator: np.random.Generator, count: int) -> Positions:
    """Random feasible solutions: drawn between the cheapest options and all alike, repaired where they spend too much."""
    found = []
    for i in range(ATTEMPTS * count):
        cheap = generator.random(len(batch.sizes)) < (i % 10) / 10
        drawn = np.where(cheap, 0, generator.integers(0, batch.sizes))
        positions, feasible = (
            batch.repaired(drawn) if i % 10 == 0 else (drawn, float(batch.excess(drawn[None])[0]) == 0)
        )
        if feasible:
            found.append(positions)
        if len(found) == count:
            break
    return np.array(found, dtype=np.int64).reshape(-1, len(batch.sizes))


def _solution(batch: Batch, population: Positions, start: float) -> Solution:
    seconds = time.perf_counter() - start
    if not len(population):
        return Solution(None, -np.inf, np.inf, seconds)
    best = population[int(np.argmax(batch.value(population)))]
    return Solution(batch.named(best), float(batch.value(best[None])[0]), np.inf, seconds)


def solve_by_random(problem: Problem, time_limit: float = 60.0, seed: int = 0, draws: int = 500) -> Solution:
    """The best of random feasible solutions."""
    start, batch = time.perf_counter(), Batch(problem)
    generator = np.random.default_rng(seed)
    found = np.zeros((0, len(batch.sizes)), dtype=np.int64)
    while len(found) < draws and time.perf_counter() - start < time_limit:
        more = _start(batch, generator, POPULATION)
        if not len(more):
            break
        found = np.concatenate([found, more])
    return _solution(batch, found, start)


def solve_by_evolution(problem: Problem, time_limit: float = 60.0, seed: int = 0) -> Solution:
    """As BINAS (after Cai et al. 2020): the best quarter are parents, half of the children mutate, half cross over.

    Children that are not feasible are dropped; a generation without feasible ones keeps its parents.
    """
    start, batch = time.perf_counter(), Batch(problem)
    generator = np.random.default_rng(seed)
    population = _start(batch, generator, POPULATION)
    for _ in range(GENERATIONS if len(population) else 0):
        parents = population[np.argsort(-batch.value(population), kind="stable")[: max(1, int(PARENTS * POPULATION))]]
        first, second = (parents[generator.integers(0, len(parents), 2 * POPULATION)] for _ in range(2))
        mutate = generator.random(first.shape) < MUTATION
        mutated = np.where(mutate, generator.integers(0, batch.sizes, first.shape), first)
        crossed = np.where(generator.random(first.shape) < 0.5, first, second)
        children = np.concatenate([mutated[:POPULATION], crossed[:POPULATION]])
        children = children[batch.excess(children) == 0]
        population = np.concatenate([parents, children])
        if time.perf_counter() - start > time_limit:
            break
    return _solution(batch, population, start)
