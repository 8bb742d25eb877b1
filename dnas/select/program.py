"""The selection as a mixed-integer linear program: marginal-consistency ("flow") form over the cost tables.

Binary x[c, o]: choice c takes option o. For every set of choices that enters a cost table together, continuous y over
its joint options whose marginals are x. At a vertex with x one-hot, y is one-hot too, so each row is the exact cost.
(`bilinear-estimator.md`, formulation F: its bound is that of the Lagrangian dual on a chain.)

Conditional form (formulation R): a cost table that is a product of two vectors, left over some of its choices and right
over the others, needs no joint options of both. Continuous z[v] is `left` where the right side takes v, else 0: the z add
up to the expectation of `left` and lie between its extremes times x[v]. Far smaller, with a weaker bound.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint
from scipy.sparse import csr_matrix

from dnas.select.rank_one import split_rank_one
from dnas.space.choice import Space
from dnas.space.cost import Cost, Factor


def searched_factor(space: Space, factor: Factor) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The factor without the axes of choices that have a single option; choices in the order of the space."""
    keep = [i for i, name in enumerate(factor.choices) if space.choice(name).searched]
    table = factor.table.reshape([factor.table.shape[i] for i in keep])
    order = {choice.name: i for i, choice in enumerate(space.choices)}
    names = [factor.choices[i] for i in keep]
    ranks = np.argsort([order[name] for name in names]).tolist()
    return tuple(names[i] for i in ranks), np.transpose(table, ranks)


@dataclass
class _Block:
    """Joint options of a set of choices: the variables from `start` on, in row-major order."""

    choices: tuple[str, ...]
    shape: tuple[int, ...]
    start: int

    def columns(
        self, names: Sequence[str], table: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Variables and coefficients that express a table over a subset of the block's choices."""
        shape = [self.shape[i] if name in names else 1 for i, name in enumerate(self.choices)]
        values = np.broadcast_to(table.reshape(shape), self.shape).ravel()
        return self.start + np.arange(values.size), values


class Program:
    """Columns and rows of the program for one space, costs and legal pairs."""

    def __init__(
        self,
        space: Space,
        costs: Iterable[Cost],
        illegal: Iterable[Factor] = (),
        joint: Iterable[Factor] = (),
        conditional: bool = False,
    ) -> None:
        """Lays out the variables.

        Args:
            space: the space.
            costs: the costs that have a budget.
            illegal: tables that are 1 where options must not meet.
            joint: tables over the joint options of several choices that are added to every objective.
            conditional: cost tables of rank one in conditional form.
        """
        self.space = space
        self.first: dict[str, int] = {}
        self.size = 0
        for choice in space.searched():
            self.first[choice.name] = self.size
            self.size += len(choice.options)
        self.binaries = self.size
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.float64], float, float]] = []
        for choice in space.searched():
            columns = self.first[choice.name] + np.arange(len(choice.options))
            self._rows.append((columns, np.ones(columns.size), 1.0, 1.0))
        self.costs = list(costs)
        self._factors = [
            [[searched_factor(space, factor) for factor in row] for row in cost.rows] for cost in self.costs
        ]
        pairs = [searched_factor(space, table) for table in illegal if table.table.any()]
        self._joint = [searched_factor(space, factor) for factor in joint]
        self._conditional: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        entries = [(names, table) for cost in self._factors for row in cost for names, table in row if len(names) > 1]
        splits = {id(table): split_rank_one(names, table) for names, table in entries} if conditional else {}
        sets = {names for names, table in entries if splits.get(id(table)) is None}
        for split in splits.values():
            sets |= {names for names in (split.left_names, split.right_names) if len(names) > 1} if split else set()
        sets |= {names for names, _ in self._joint if len(names) > 1}
        sets |= {names for names, _ in pairs if len(names) > 1}
        self._blocks: list[_Block] = []
        for names in sorted(sets, key=lambda names: (-len(names), names)):
            if not any(set(names) <= set(block.choices) for block in self._blocks):
                self._add_block(names)
        for names, unwanted in pairs:
            columns, values = self._express(names, unwanted)
            self._rows.append((columns[values > 0], values[values > 0], 0.0, 0.0))
        for _, table in entries:
            split = splits.get(id(table))
            if split is not None:
                left = self._express(split.left_names, split.left)
                right = self._express(split.right_names, split.right)
                self._conditional[id(table)] = self._add_conditional(left, right, float(split.left.min()))

    def _add_conditional(
        self,
        left: tuple[NDArray[np.int64], NDArray[np.float64]],
        right: tuple[NDArray[np.int64], NDArray[np.float64]],
        least: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Variables z, one per joint option of the right side, and the coefficients with which they add up to the table."""
        options, worth = right
        columns = self.size + np.arange(options.size)
        self.size += options.size
        values = np.append(np.ones(options.size), -left[1])
        self._rows.append((np.append(columns, left[0]), values, 0.0, 0.0))
        for column, option in zip(columns, options, strict=True):
            self._rows.append((np.array([column, option]), np.array([1.0, -1.0]), -np.inf, 0.0))
            self._rows.append((np.array([column, option]), np.array([1.0, -least]), 0.0, np.inf))
        return columns, worth

    def _add_block(self, names: tuple[str, ...]) -> None:
        shape = tuple(len(self.space.choice(name).options) for name in names)
        block = _Block(names, shape, self.size)
        self.size += int(np.prod(shape))
        self._blocks.append(block)
        grid = np.arange(int(np.prod(shape))).reshape(shape)
        for axis, name in enumerate(names):
            for option in range(shape[axis]):
                columns = block.start + np.take(grid, option, axis=axis).ravel()
                values = np.append(np.ones(columns.size), -1.0)
                self._rows.append((np.append(columns, self.first[name] + option), values, 0.0, 0.0))

    def _express(
        self, names: tuple[str, ...], table: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if len(names) == 1:
            return self.first[names[0]] + np.arange(table.size), table.ravel()
        block = next(block for block in self._blocks if set(names) <= set(block.choices))
        return block.columns(names, table)

    def constraints(self, limits: Mapping[str, float]) -> LinearConstraint:
        """All rows, the budgets scaled to an upper bound of 1."""
        rows = list(self._rows)
        for cost, factors in zip(self.costs, self._factors, strict=True):
            for row, constant in zip(factors, cost.constants, strict=True):
                columns, values = [np.empty(0, dtype=np.int64)], [np.empty(0)]
                for names, table in row:
                    if not names:
                        constant += float(table)
                        continue
                    found = self._conditional.get(id(table)) or self._express(names, table)
                    columns.append(found[0])
                    values.append(found[1])
                limit = limits[cost.name]
                rows.append((np.concatenate(columns), np.concatenate(values) / limit, -np.inf, 1.0 - constant / limit))
        indices = np.concatenate([row[0] for row in rows])
        data = np.concatenate([row[1] for row in rows])
        lengths = np.concatenate([[0], np.cumsum([row[0].size for row in rows])])
        matrix = csr_matrix((data, indices, lengths), shape=(len(rows), self.size))
        matrix.sum_duplicates()  # two factors of a row may stand on one block; HiGHS takes no column twice
        return LinearConstraint(matrix, np.array([row[2] for row in rows]), np.array([row[3] for row in rows]))

    def objective(self, values: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
        """Coefficient of every variable for these values per option."""
        result = np.zeros(self.size)
        for name, start in self.first.items():
            result[start : start + len(values[name])] = values[name]
        for names, table in self._joint:
            if names:
                columns, found = self._express(names, table)
                result[columns] += found
        return result

    @property
    def constant(self) -> float:
        """What the joint tables add to every objective whatever is chosen."""
        return float(sum(table.sum() for names, table in self._joint if not names))

    def positions(self, solution: NDArray[np.float64]) -> dict[str, int]:
        """The option (by position) of every choice in a solution."""
        found = {choice.name: 0 for choice in self.space.choices}
        for name, start in self.first.items():
            found[name] = int(np.argmax(solution[start : start + len(self.space.choice(name).options)]))
        return found


def enumerate_positions(space: Space) -> Iterable[dict[str, int]]:
    """Every architecture of a space, as option positions: for spaces small enough, and for tests."""
    names = [choice.name for choice in space.choices]
    for index in product(*(range(len(choice.options)) for choice in space.choices)):
        yield dict(zip(names, index, strict=True))
