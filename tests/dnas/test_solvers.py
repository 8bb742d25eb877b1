"""Every solver against enumeration on small problems, and the exact ones against each other on larger ones."""

import functools
import importlib
import itertools
import time

import numpy as np
import pytest

from dnas.search.budget import BudgetError
from dnas.select.decomposition import TooLargeError, build_graph
from dnas.select.dominance import efficient
from dnas.select.evolution import solve_evolution, solve_random
from dnas.select.frank_wolfe import Relaxed, solve_frank_wolfe
from dnas.select.highs import as_program, solve_highs
from dnas.select.labels import solve_labels
from dnas.select.lagrangian import minimise_dual
from dnas.select.problem import Problem, Solution
from dnas.select.rank_one import split_rank_one
from dnas.select.solvers import SOLVERS, check_solver, dual_bound, solve_problem
from dnas.space.choice import Choice
from dnas.space.cost import Cost, Factor


def random_problem(seed: int) -> Problem:
    """Up to seven choices, joint values, up to three budgets of one or several rows, and sometimes forbidden pairs."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=int(rng.integers(3, 8)))
    choices = tuple(Choice(f"c{i}", "option", tuple(range(k))) for i, k in enumerate(sizes))

    def factor(most: int, draw: str) -> Factor:
        axes = sorted(rng.choice(len(sizes), size=min(most, len(sizes)), replace=False).tolist())
        shape = [sizes[i] for i in axes]
        names = tuple(f"c{i}" for i in axes)
        if draw == "value":
            return Factor(names, rng.normal(size=shape) / 2)
        if draw == "forbidden":
            return Factor(names, (rng.random(shape) < 0.3).astype(float))
        if rng.random() < 0.5:  # of rank one, as costs of layers are
            vectors = [rng.integers(1, 6, size=k).astype(float) for k in shape]
            return Factor(names, functools.reduce(np.multiply.outer, vectors))
        return Factor(names, rng.integers(0, 30, size=shape).astype(float))

    values = [Factor((c.name,), rng.normal(size=len(c.options))) for c in choices]
    values += [factor(2, "value") for _ in range(rng.integers(0, 3))]
    costs = []
    for number in range(rng.integers(0, 4)):
        factors = tuple(factor(int(rng.integers(1, 4)), "cost") for _ in range(rng.integers(1, 5)))
        rows = tuple((f,) for f in factors) if rng.random() < 0.3 else (factors,)
        costs.append(Cost(f"b{number}", rows, (3.0,) * len(rows)))
    forbidden = (factor(2, "forbidden"),) if rng.random() < 0.5 else ()
    every = everything(Problem(choices, tuple(values)))
    limits = {c.name: float(np.quantile([c.at(p) for p in every], rng.uniform(0.1, 0.6))) for c in costs}
    return Problem(choices, tuple(values), tuple(costs), limits, forbidden)


def everything(problem: Problem) -> list[dict[str, int]]:
    names = list(problem.sizes)
    return [dict(zip(names, p, strict=True)) for p in itertools.product(*map(range, problem.sizes.values()))]


def best_value(problem: Problem) -> float | None:
    return max((problem.value(p) for p in everything(problem) if problem.holds(p)), default=None)


def chain(layers: int, options: int, budgets: int, share: float, seed: int) -> Problem:
    """Layers with neighbours in cost tables of rank one; every entry of the first option is the least."""
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(layers)]
    values = [Factor((n,), np.sort(rng.normal(size=options)) * rng.lognormal()) for n in names]
    costs, limits = [], {}
    for number in range(budgets):
        width = [np.sort(rng.integers(1, 50, size=options)).astype(float) for _ in names]
        own = [np.sort(rng.integers(1, 50, size=options)).astype(float) for _ in names]
        tables = [Factor((a, b), np.outer(u, v)) for a, b, u, v in zip(names, names[1:], width, own[1:], strict=False)]
        costs.append(Cost(f"b{number}", (tuple(tables),), (0.0,)))
        least, most = (sum(float(take(t.table)) for t in tables) for take in (np.min, np.max))
        limits[f"b{number}"] = float(int(least + share * (most - least)))
    return Problem(
        tuple(Choice(n, "option", tuple(range(options))) for n in names), tuple(values), tuple(costs), limits
    )


HEURISTICS = {
    "frank_wolfe": lambda problem: solve_frank_wolfe(problem, starts=2),
    "evolution": lambda problem: solve_evolution(problem, generations=20),
    "random": lambda problem: solve_random(problem, samples=500),
}


@pytest.mark.parametrize("seed", range(200))
def test_solvers_equal_enumeration(seed: int) -> None:
    problem = random_problem(seed)
    best = best_value(problem)
    if best is None:
        for solve in (solve_labels, solve_highs, *HEURISTICS.values()):
            with pytest.raises(BudgetError):
                solve(problem)
        return
    found = solve_labels(problem)
    assert problem.holds(found.positions)
    assert found.value == pytest.approx(best, abs=1e-9)
    assert found.value == problem.value(found.positions)
    assert best - 1e-9 <= found.bound <= best + 1e-6
    found = solve_problem(problem)
    assert problem.holds(found.positions)
    assert found.value == pytest.approx(best, abs=1e-9)
    assert found.gap <= 1e-7
    assert found.bound >= best - 1e-9
    for conditional in (False, True):
        found = solve_highs(problem, conditional=conditional)
        assert problem.holds(found.positions)
        assert found.value == pytest.approx(best, abs=2e-5)
        assert best - 1e-6 <= found.bound <= best + 2e-4
    assert dual_bound(problem) >= best - 1e-6
    for solve in HEURISTICS.values():
        try:
            found = solve(problem)
        except BudgetError:  # a heuristic may miss what there is
            continue
        assert problem.holds(found.positions)
        assert found.value == pytest.approx(problem.value(found.positions))
        assert found.value <= best + 1e-9


def test_heuristics_mostly_find_something() -> None:
    problems = [problem for problem in map(random_problem, range(40)) if best_value(problem) is not None]
    for solve in HEURISTICS.values():
        found = 0
        for problem in problems:
            try:
                found += bool(solve(problem).positions)
            except BudgetError:
                continue
        assert found >= 0.9 * len(problems)


@pytest.mark.parametrize("name", ["cp_sat", "scip"])
def test_optional_solvers_equal_enumeration(name: str) -> None:
    try:
        check_solver(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    for seed in range(25):
        problem = random_problem(seed)
        best = best_value(problem)
        if best is None:
            with pytest.raises(BudgetError):
                solve_problem(problem, name)
            continue
        found = solve_problem(problem, name)
        assert problem.holds(found.positions)
        assert found.value == pytest.approx(best, abs=1e-4)
        assert best - 1e-6 <= found.bound <= best + 1e-3


@pytest.mark.parametrize("budgets", [1, 2, 3])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_exact_solvers_agree_on_chains(budgets: int, share: float) -> None:
    problem = chain(15, 8, budgets, share, seed=budgets)
    labels = solve_problem(problem, "labels")
    assert labels.gap == 0
    for conditional in (False, True):
        highs = solve_highs(problem, 60.0, conditional=conditional)
        assert highs.value <= labels.bound + 1e-6
        assert labels.value <= highs.bound + 1e-6
    for name in HEURISTICS:
        found = solve_problem(problem, name)
        assert problem.holds(found.positions)
        assert found.value <= labels.value + 1e-9 <= found.bound + 2e-9


def test_labels_on_a_long_chain() -> None:
    problem = chain(60, 20, 1, 0.3, seed=0)
    labels = solve_problem(problem, "labels")
    assert labels.gap == 0
    assert problem.holds(labels.positions)
    graph = build_graph(problem)
    assert labels.value <= minimise_dual(graph, graph.limits).bound + graph.constant + 1e-9
    assert labels.value >= solve_problem(problem, "frank_wolfe").value - 1e-9


@pytest.mark.parametrize("costs", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_efficient_labels_are_those_that_none_dominates(costs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, cost = rng.integers(0, 3, size=80), rng.integers(0, 6, size=(80, costs)).astype(float)
    values = rng.integers(0, 6, size=80).astype(float)
    expected = set()
    for i in range(80):
        alike = [
            j for j in range(80) if groups[j] == groups[i] and (cost[j] <= cost[i]).all() and values[j] >= values[i]
        ]
        strictly = [j for j in alike if (cost[j] < cost[i]).any() or values[j] > values[i]]
        if not strictly:
            expected.add((groups[i], *cost[i], values[i]))
    found = efficient(groups, cost, values)
    assert [(groups[i], *cost[i], values[i]) for i in found].count(None) == 0
    assert len(found) == len(expected)  # of equal labels one stays
    assert {(groups[i], *cost[i], values[i]) for i in found} == expected
    assert (np.diff(groups[found]) >= 0).all()


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_vertices_have_at_most_as_many_fractions_as_budgets(budgets: int) -> None:
    problem = chain(12, 6, budgets, 0.3, seed=4)
    relaxed, rng, seen = Relaxed(problem), np.random.default_rng(0), 0
    assert sorted(name for block in relaxed.blocks for name in block) == sorted(problem.sizes)
    for block in relaxed.blocks:
        for factor in (*problem.values, *(f for row in problem.rows for f in row.factors)):
            assert len(set(factor.choices) & set(block)) <= 1
    for _ in range(10):
        point = {name: np.eye(6)[0] * 0.9 + rng.dirichlet(np.ones(6)) * 0.1 for name in problem.sizes}
        for block in relaxed.blocks:
            found = relaxed.step(point, block)
            if found is None:
                continue
            fractional = [name for name, x in found.items() if ((x > 1e-7) & (x < 1 - 1e-7)).any()]
            assert len(fractional) <= budgets
            seen += len(fractional)
            point |= found
    assert seen > 0


def test_infeasible_budgets_end() -> None:
    a, b = Factor(("a",), np.array([0.0, 9.0])), Factor(("a",), np.array([9.0, 0.0]))
    costs = (Cost("one", ((a,),), (0.0,)), Cost("two", ((b,),), (0.0,)))
    choices = tuple(Choice(name, "option", (0, 1)) for name in "ab")
    problem = Problem(choices, (Factor(("b",), np.array([0.0, 1.0])),), costs, {"one": 5.0, "two": 5.0})
    for solver in ("auto", "labels", "highs", "frank_wolfe", "evolution", "random"):
        with pytest.raises(BudgetError, match="no architecture"):
            solve_problem(problem, solver)
    with pytest.raises(BudgetError, match="proven"):
        solve_labels(problem)
    forbidden = Factor(("b",), np.ones(2))
    with pytest.raises(BudgetError):
        solve_problem(Problem(choices, (), (), {}, (forbidden,)))


@pytest.mark.parametrize("solver", ["labels", "highs", "frank_wolfe", "evolution"])
def test_ties_go_to_the_dearer(solver: str) -> None:
    problem = chain(8, 4, 1, 0.4, seed=1)
    level = Problem(problem.choices, (), problem.costs, problem.limits)
    found = solve_problem(level, solver)
    assert level.holds(found.positions)
    assert found.value == 0
    for name, option in found.positions.items():
        assert option == 3 or not level.holds({**found.positions, name: option + 1})


def test_a_time_limit_leaves_an_honest_gap() -> None:
    problem = chain(40, 12, 3, 0.3, seed=2)
    proven = solve_problem(problem, "labels", 120.0)
    assert proven.gap == 0
    start = time.perf_counter()
    hurried = solve_problem(problem, "labels", 1e-3)
    assert time.perf_counter() - start < 30  # it does end
    assert problem.holds(hurried.positions)
    assert hurried.value <= proven.value + 1e-9
    assert hurried.bound >= proven.value - 1e-9
    assert hurried.gap > 0


def test_auto_takes_highs_where_the_graph_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(6, 4, 1, 0.4, seed=3)
    assert solve_problem(problem).method == "labels"
    monkeypatch.setattr(importlib.import_module("dnas.select.decomposition"), "MOST_CELLS", 10)
    found = solve_problem(problem)
    assert found.method == "highs"
    assert found.value == pytest.approx(best_value(problem), abs=2e-5)
    with pytest.raises(TooLargeError, match=r"select\.solver=highs"):
        solve_problem(problem, "labels")
    assert solve_problem(problem, "evolution").bound == float("inf")


def test_more_budgets_than_labels_carry() -> None:
    problem = chain(5, 4, 4, 0.4, seed=5)
    with pytest.raises(TooLargeError, match="4 rows"):
        solve_labels(problem)
    assert solve_problem(problem).value == pytest.approx(best_value(problem), abs=2e-5)


def test_merged_options_and_parallel_arcs() -> None:
    """Options that cost alike and enter no later table alike are one arc: the best of them."""
    names = ("a", "b", "c")
    choices = tuple(Choice(n, "option", tuple(range(10))) for n in names)
    width = np.repeat([1.0, 2.0], 5)  # two classes of ten options
    tables = tuple(Factor(pair, np.outer(width, width)) for pair in (names[:2], names[1:]))
    rng = np.random.default_rng(0)
    values = tuple(Factor((n,), rng.normal(size=10)) for n in names)
    problem = Problem(choices, values, (Cost("b", (tables,), (0.0,)),), {"b": 4.0})
    graph = build_graph(problem)
    assert max(step.states for step in graph.steps) == 2
    assert graph.arcs <= 2 * (2 + 2 * 2 * 2)
    assert solve_labels(problem).value == pytest.approx(best_value(problem))


def test_splits_of_rank_one() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.random((3, 2)), rng.random((4, 5))
    table = np.einsum("ac,bd->abcd", left, right)
    split = split_rank_one(("a", "b", "c", "d"), table)
    assert split is not None
    assert split.left.max() == 1
    value = dict(zip((split.left_names, split.right_names), (split.left, split.right), strict=True))
    assert set(value) == {("a", "c"), ("b", "d")}
    assert np.allclose(np.einsum("ac,bd->abcd", value["a", "c"], value["b", "d"]), table)
    assert split_rank_one(("a", "b"), rng.random((3, 3))) is None


def test_the_conditional_form_is_smaller() -> None:
    problem = chain(10, 20, 1, 0.3, seed=6)
    flow, conditional = (as_program(problem, form)[0].size for form in (False, True))
    assert flow == 10 * 20 + 9 * 400
    assert conditional == 10 * 20 + 9 * 20


def test_unknown_and_missing_solvers(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(3, 2, 1, 0.5, seed=0)
    with pytest.raises(ValueError, match=r"select\.solver is 'cplex'; allowed: auto, labels, highs"):
        solve_problem(problem, "cplex")

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.import_module("dnas.select.solvers"), "import_module", missing)
    for name in ("cp_sat", "scip"):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'dnas\[solvers\]'"):
            solve_problem(problem, name)
    assert set(SOLVERS) == {"auto", "labels", "highs", "frank_wolfe", "evolution", "random", "cp_sat", "scip"}


def test_seeds_decide_the_heuristics() -> None:
    problem = chain(10, 6, 1, 0.3, seed=7)

    def run(solve: object, seed: int) -> Solution:
        return solve(problem, seed=seed)  # type: ignore[operator]

    for solve in (solve_evolution, solve_random, solve_frank_wolfe):
        assert run(solve, 3).positions == run(solve, 3).positions


def rank_one_problem(seed: int) -> Problem:
    """Costs that are mostly products of one factor per choice, up to 10,000 times as large as others, under tight budgets."""
    rng = np.random.default_rng(seed)
    sizes = {f"c{i}": int(rng.integers(2, 5)) for i in range(int(rng.integers(3, 6)))}
    choices = tuple(Choice(name, "option", tuple(range(size))) for name, size in sizes.items())

    def factor() -> Factor:
        names = tuple(str(name) for name in rng.choice(list(sizes), int(rng.integers(2, 4)), replace=False))
        vectors = [rng.integers(1, 9, size=sizes[name]).astype(float) for name in names]
        return Factor(names, functools.reduce(np.multiply.outer, vectors) * 10.0 ** rng.integers(0, 5))

    values = tuple(Factor((name,), np.sort(rng.random(size))) for name, size in sizes.items())
    rows = [tuple(factor() for _ in range(rng.integers(1, 4))) for _ in range(rng.integers(1, 5))]
    cost = Cost("bops", tuple(rows), (0.0,) * len(rows))
    reached = sorted(cost.at(found) for found in everything(Problem(choices, values)))
    limit = reached[int(rng.choice([0.0, 0.05, 0.3]) * (len(reached) - 1))]
    return Problem(choices, values, (cost,), {"bops": limit})


def test_limits_that_can_be_met_are_never_called_infeasible() -> None:
    """HiGHS' presolve does so at times, in the conditional form."""
    for seed in (*range(30), 1149, 1501, 2041):
        problem = rank_one_problem(seed)
        best = max(problem.value(found) for found in everything(problem) if problem.holds(found))
        for conditional in (True, False):
            found = solve_highs(problem, 20.0, 0.0, conditional)
            assert problem.holds(found.positions)
            assert found.value == pytest.approx(best, abs=1e-6), (seed, conditional)


@pytest.mark.parametrize("solver", ["labels", "highs"])
def test_constant_parts_that_use_a_budget_up(solver: str) -> None:
    """What is left is 0: no unit to measure costs in."""
    choices = (Choice("a", "option", (0, 1, 2)), Choice("b", "option", (0, 1)))
    values = (Factor(("a",), np.array([0.0, 1.0, 3.0])), Factor(("b",), np.array([0.0, 2.0])))
    table = np.array([[0.0, 0.0], [0.0, 5.0], [4.0, 4.0]])
    problem = Problem(choices, values, (Cost("bops", ((Factor(("a", "b"), table),),), (2.0,)),), {"bops": 2.0})
    found = solve_problem(problem, solver, 20.0)
    assert found.positions == {"a": 0, "b": 1}
    assert found.value == pytest.approx(2.0)
    assert found.bound == pytest.approx(2.0)
