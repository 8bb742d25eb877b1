"""The layered graph of a selection: choices come and go in an order, and a state is the joint option of the open ones.

A path decomposition of the tables. Each step takes in the choices of one set of tables that touch each other, and lets go
of those that no later table touches. Options of an open choice that all later tables treat alike are one state. Arcs between
the same two states that cost no less and are worth no more than another one are left out. On a chain of layers a
state is the number of filters between two of them; where an add couples filters, their choice stays open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod

import numpy as np
from numpy.typing import NDArray

from dnas.select.dominance import Indices, Numbers, efficient
from dnas.select.problem import Problem, Row
from dnas.space.cost import Factor

MOST_CELLS = 4_000_000
"""Joint options of all steps together above which a graph is not built."""
MOST_FORBIDDEN = 200_000
"""Joint options of one row of a maximum up to which it becomes a table of what must not meet."""
MOST_RESOURCES = 3
"""Budgets that labels carry at once."""


class TooLargeError(ValueError):
    """A problem whose layered graph would have too many joint options or too many budgets."""


@dataclass(frozen=True)
class Step:
    """The arcs of one step, sorted by the state that they leave.

    leave, enter: states before and after, shape (arcs,). value: shape (arcs,). cost: shape (arcs, resources). cell: the
    joint option, to be read by `Graph.positions`. first: where the arcs of every state start, shape (states + 1,).
    names, shape: the choices of a cell and their numbers of options or classes. fresh: those that come in here.
    """

    leave: Indices
    enter: Indices
    value: Numbers
    cost: Numbers
    cell: Indices
    first: Indices
    states: int
    names: tuple[str, ...]
    shape: tuple[int, ...]
    fresh: tuple[str, ...]

    def arcs_of(self, state: int) -> slice:
        """The arcs that leave a state."""
        return slice(int(self.first[state]), int(self.first[state + 1]))


@dataclass(frozen=True)
class Graph:
    """Steps from one state to one state: every path is an architecture, with the sum of its arcs' values and costs.

    constant: value of what is not searched. resources: the rows that paths add up; `limits` theirs, shape (R,).
    """

    steps: tuple[Step, ...]
    constant: float
    resources: tuple[Row, ...]
    limits: Numbers
    single: Mapping[str, int]

    @property
    def arcs(self) -> int:
        """The number of arcs."""
        return sum(len(step.value) for step in self.steps)

    def positions(self, path: Sequence[int]) -> dict[str, int]:
        """The option (by index) of every choice on a path, given as one arc per step."""
        found = dict(self.single)
        for step, arc in zip(self.steps, path, strict=True):
            options = np.unravel_index(int(step.cell[arc]), step.shape)
            found |= {name: int(o) for name, o in zip(step.names, options, strict=True) if name in step.fresh}
        return found


def _squeezed(factor: Factor, sizes: Mapping[str, int]) -> Factor:
    keep = [i for i, name in enumerate(factor.choices) if sizes[name] > 1]
    names = tuple(factor.choices[i] for i in keep)
    return Factor(names, factor.table.reshape([factor.table.shape[i] for i in keep]))


def _largest(factors: Sequence[Factor]) -> float:
    return float(sum(factor.table.max() for factor in factors))


def _sum_over(factors: Sequence[Factor], names: Sequence[str], sizes: Mapping[str, int]) -> Numbers:
    total = np.zeros([sizes[name] for name in names])
    for factor in factors:
        total += placed(factor, names)
    return total


def placed(factor: Factor, names: Sequence[str]) -> Numbers:
    """The table with its axes in the order of `names`, of length 1 where a name is not the factor's."""
    ranks = sorted(range(len(factor.choices)), key=lambda i: names.index(factor.choices[i]))
    table = np.transpose(factor.table, ranks)
    lengths = dict(zip(factor.choices, factor.table.shape, strict=True))
    return table.reshape([lengths.get(name, 1) for name in names])


def _split_rows(problem: Problem, sizes: Mapping[str, int]) -> tuple[list[Row], list[Factor]]:
    """The rows that paths add up, and the tables of joint options that some row of a maximum rules out."""
    resources, forbidden = [], []
    several = {cost.name for cost in problem.costs if len(cost.rows) > 1}
    for row in problem.rows:
        factors = tuple(_squeezed(factor, sizes) for factor in row.factors)
        slack = 0.0 if row.is_integral else 1e-9 * abs(row.limit)  # the order of a sum must not decide
        row = Row(row.name, factors, row.limit + slack)
        if row.name in several and _largest(factors) <= row.limit:
            continue
        names = tuple(dict.fromkeys(chain.from_iterable(factor.choices for factor in factors)))
        if row.name in several and prod(sizes[name] for name in names) <= MOST_FORBIDDEN:
            over = _sum_over(factors, names, sizes) > row.limit
            if over.any():
                forbidden.append(Factor(names, over.astype(np.float64)))
        else:
            resources.append(row)
    return resources, forbidden


def _ordered(scopes: list[frozenset[str]], rank: Mapping[str, int], sizes: Mapping[str, int]) -> list[frozenset[str]]:
    """The order of the sets with the fewest joint options: their own, or a greedy one from either end."""
    natural = sorted(scopes, key=lambda scope: sorted(rank[name] for name in scope))
    candidates = [natural, *(_greedy(natural, start, sizes) for start in {0, len(natural) - 1} if natural)]
    return min(candidates, key=lambda order: _cells(order, sizes))


def _spans(order: Sequence[frozenset[str]]) -> dict[str, int]:
    return {name: i for i, scope in enumerate(order) for name in scope}


def _cells(order: Sequence[frozenset[str]], sizes: Mapping[str, int]) -> int:
    last, opened, total = _spans(order), set[str](), 0
    for i, scope in enumerate(order):
        opened |= scope
        total += prod(sizes[name] for name in opened)
        opened = {name for name in opened if last[name] > i}
    return total


def _greedy(scopes: list[frozenset[str]], start: int, sizes: Mapping[str, int]) -> list[frozenset[str]]:
    """Next is always the set, of those that touch what is open, after which the fewest joint options are open."""
    uses: dict[str, int] = {}
    for name in chain.from_iterable(scopes):
        uses[name] = uses.get(name, 0) + 1
    left, order, opened = list(range(len(scopes))), [], set[str]()
    following = start
    while True:
        left.remove(following)
        order.append(scopes[following])
        opened |= scopes[following]
        for name in scopes[following]:
            uses[name] -= 1
        opened = {name for name in opened if uses[name]}
        if not left:
            return order
        near = [i for i in left if scopes[i] & opened] or [min(left, key=lambda i: abs(i - following))]

        def size(i: int, opened: set[str] = opened) -> tuple[int, int, int]:
            joint = opened | scopes[i]
            stays = [sizes[name] for name in joint if uses[name] > (name in scopes[i])]
            return prod(stays), prod(sizes[name] for name in joint), i

        following = min(near, key=size)


def _equal_rows(tables: Sequence[Numbers]) -> Indices:
    """For every row of the tables side by side the number of its class: those that are equal."""
    classes: dict[bytes, int] = {}
    rows = np.concatenate(tables, 1)
    return np.array([classes.setdefault(row.tobytes(), len(classes)) for row in rows + 0.0])


class _Builder:
    """Lays the steps out one after the other."""

    def __init__(
        self, sizes: Mapping[str, int], values: list[Factor], forbidden: list[Factor], rows: list[Row]
    ) -> None:
        self.sizes, self.values, self.forbidden, self.rows = sizes, values, forbidden, rows
        tables = [*values, *forbidden, *(factor for row in rows for factor in row.factors)]
        rank = {name: i for i, name in enumerate(sizes)}
        sets = {frozenset(factor.choices) for factor in tables} | {frozenset([name]) for name in sizes}
        sets = {scope for scope in sets if scope}
        outer = [scope for scope in sets if not any(scope < other for other in sets)]
        self.order = _ordered(outer, rank, sizes)
        first = {name: len(self.order) - 1 - i for name, i in _spans(self.order[::-1]).items()}
        self.first, self.last, self.rank = first, _spans(self.order), rank
        self.step_of: dict[frozenset[str], int] = {}
        for scope in sets:  # a table belongs to the first step at which all its choices are open
            self.step_of[scope] = max(first[name] for name in scope)
        for i, scope in enumerate(self.order):
            self.step_of[scope] = i
        self.cells = _cells(self.order, sizes)

    def steps(self) -> list[Step]:
        """The steps, first to last."""
        if self.cells > MOST_CELLS:
            raise TooLargeError(
                f"the layered graph of this space and its budgets has {self.cells} joint options; allowed: {MOST_CELLS}; "
                "use select.solver=highs, or auto"
            )
        classes = self._classes()
        found: list[Step] = []
        opened: tuple[str, ...] = ()
        for i, scope in enumerate(self.order):
            fresh = tuple(sorted(scope - set(opened), key=self.rank.__getitem__))
            stays = tuple(name for name in (*opened, *fresh) if self.last[name] > i)
            found.append(self._step(i, opened, fresh, stays, classes))
            opened = stays
        return found

    def _classes(self) -> list[dict[str, Indices]]:
        """After every step the class of each option of the choices that stay open: equal in all later tables."""
        later: dict[str, list[Numbers]] = {name: [] for name in self.sizes}
        found: list[dict[str, Indices]] = [{} for _ in self.order]
        by_step: list[list[Factor]] = [[] for _ in self.order]
        for factor in (*self.values, *self.forbidden, *(factor for row in self.rows for factor in row.factors)):
            if factor.choices:
                by_step[self.step_of[frozenset(factor.choices)]].append(factor)
        for i in reversed(range(len(self.order))):
            for name, tables in later.items():
                if self.first[name] <= i < self.last[name]:
                    found[i][name] = _equal_rows(tables) if tables else np.zeros(self.sizes[name], dtype=np.int64)
            for factor in by_step[i]:
                for axis, name in enumerate(factor.choices):
                    rows = np.moveaxis(factor.table, axis, 0).reshape(self.sizes[name], -1)
                    later[name].append(rows)
        return found

    def _step(
        self,
        i: int,
        opened: tuple[str, ...],
        fresh: tuple[str, ...],
        stays: tuple[str, ...],
        classes: list[dict[str, Indices]],
    ) -> Step:
        names = (*opened, *fresh)
        before = classes[i - 1] if i else {}
        option = {name: np.unique(before[name], return_index=True)[1] for name in opened}
        option |= {name: np.arange(self.sizes[name]) for name in fresh}
        shape = tuple(len(option[name]) for name in names)

        def table(factors: Sequence[Factor]) -> Numbers:
            total = np.zeros(shape)
            for factor in factors:
                if factor.choices and self.step_of[frozenset(factor.choices)] == i:
                    own = Factor(factor.choices, factor.table[np.ix_(*(option[name] for name in factor.choices))])
                    total += placed(own, names)
            return total.ravel()

        value = table(self.values)
        cost = np.stack([table(row.factors) for row in self.rows], 1) if self.rows else np.zeros((value.size, 0))
        cell = np.flatnonzero(table(self.forbidden) == 0)
        at = dict(zip(names, np.unravel_index(cell, shape), strict=True)) if names else {}
        leave = self._index([at[name] for name in opened], [len(option[name]) for name in opened], len(cell))
        after = [classes[i][name] for name in stays]
        enter = self._index(
            [found[option[name][at[name]]] for name, found in zip(stays, after, strict=True)],
            [int(found.max()) + 1 for found in after],
            len(cell),
        )
        entered = prod(int(found.max()) + 1 for found in after)
        kept = efficient(leave * entered + enter, cost[cell], value[cell])
        leave = leave[kept]
        states = prod(len(option[name]) for name in opened)
        first = np.searchsorted(leave, np.arange(states + 1))
        cell = cell[kept]
        return Step(leave, enter[kept], value[cell], cost[cell], cell, first, states, names, shape, fresh)

    @staticmethod
    def _index(columns: Sequence[NDArray[np.int64]], sizes: Sequence[int], length: int) -> Indices:
        found = np.zeros(length, dtype=np.int64)
        for column, size in zip(columns, sizes, strict=True):
            found = found * size + column
        return found


def build_graph(problem: Problem) -> Graph:
    """The layered graph of a problem, exact in value and in every budget.

    Raises:
        TooLargeError: too many joint options or budgets.
    """
    sizes = {name: size for name, size in problem.sizes.items() if size > 1}
    every = problem.sizes
    rows, forbidden = _split_rows(problem, every)
    if len(rows) > MOST_RESOURCES:
        raise TooLargeError(
            f"labels would carry {len(rows)} rows of budgets at once; allowed: {MOST_RESOURCES}; "
            "use select.solver=highs, or auto"
        )
    values = [_squeezed(factor, every) for factor in problem.values]
    forbidden += [_squeezed(factor, every) for factor in problem.forbidden]
    fixed = [float(sum(f.table.sum() for f in row.factors if not f.choices)) for row in rows]
    limits = np.array([row.limit - constant for row, constant in zip(rows, fixed, strict=True)])
    if any(factor.table.any() for factor in forbidden if not factor.choices):  # nothing holds, whatever is chosen
        rows, limits = [*rows, Row("forbidden", (), -1.0)], np.append(limits, -1.0)
    steps = _Builder(sizes, values, forbidden, rows).steps() if sizes else []
    constant = float(sum(factor.table.sum() for factor in values if not factor.choices))
    single = {name: 0 for name, size in every.items() if size == 1}
    return Graph(tuple(steps), constant, tuple(rows), limits, single)
