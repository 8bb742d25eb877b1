"""The selection as data: value tables to maximise, cost rows under budgets, and options that must not meet.

Every solver of this package takes a `Problem` and returns a `Solution`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dnas.search.budget import BudgetError
from dnas.search.scores import Scores
from dnas.space.choice import Choice, Space
from dnas.space.cost import Cost, Factor

TINY = 1e-9
"""Of the largest cost: a smaller limit is no unit to measure in."""


@dataclass(frozen=True)
class Row:
    """One upper bound: factors that add up to at most `limit`. name: of the cost; a maximum has several rows."""

    name: str
    factors: tuple[Factor, ...]
    limit: float

    @cached_property
    def is_integral(self) -> bool:
        """Whether every entry is an integer, so that sums are exact in any order."""
        return all(bool((factor.table == np.round(factor.table)).all()) for factor in self.factors)

    @cached_property
    def unit(self) -> float:
        """What its sums are measured in: the limit, or the largest sum where constant parts leave nothing of the limit."""
        largest = sum(float(np.abs(factor.table).max(initial=0.0)) for factor in self.factors)
        return abs(self.limit) if abs(self.limit) > TINY * largest else largest or 1.0


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    positions: the option (by index) of every choice; everything holds for them. value: their total value.
    bound: no positions that hold have a larger value; infinite where the method has none. seconds: wall time.
    """

    positions: Mapping[str, int]
    value: float
    bound: float
    method: str
    seconds: float

    @property
    def gap(self) -> float:
        """bound - value, never negative; infinite where there is no bound."""
        return max(self.bound - self.value, 0.0)


@dataclass(frozen=True, eq=False)
class Problem:
    """Maximise the sum of `values` over one option per choice, every cost within its limit, nothing forbidden.

    choices: whose decision is one per layer. values: tables over one or several choices. costs: each the largest of its
    rows. limits: by cost name. forbidden: tables that are 1 where options must not meet, else 0.
    """

    choices: tuple[Choice, ...]
    values: tuple[Factor, ...]
    costs: tuple[Cost, ...] = ()
    limits: Mapping[str, float] | None = None
    forbidden: tuple[Factor, ...] = ()

    @staticmethod
    def of(
        space: Space, scores: Scores, costs: Sequence[Cost] = (), limits: Mapping[str, float] | None = None
    ) -> "Problem":
        """The problem of a space where no single filters decide.

        Args:
            space: the space; its legal pairs become forbidden tables.
            scores: unary and joint values.
            costs: those that have a budget.
            limits: by cost name, in absolute units.
        """
        values = [Factor((c.name,), np.array(scores.values[c.name], dtype=np.float64)) for c in space.choices]
        values += [Factor(names, np.array(table, dtype=np.float64)) for names, table in scores.joint]
        return Problem(space.choices, tuple(values), tuple(costs), dict(limits or {}), tuple(illegal_pairs(space)))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many options every choice has."""
        return {choice.name: len(choice.options) for choice in self.choices}

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of every cost, constants moved to the limit."""
        limits = self.limits or {}
        return tuple(
            Row(cost.name, factors, limits[cost.name] - constant)
            for cost in self.costs
            for factors, constant in zip(cost.rows, cost.constants, strict=True)
        )

    def value(self, positions: Mapping[str, int]) -> float:
        """The total value of one option (by index) per choice."""
        return float(sum(factor.at(positions) for factor in self.values))

    def holds(self, positions: Mapping[str, int]) -> bool:
        """Whether nothing forbidden meets and every cost, read exactly from its tables, is within its limit."""
        limits = self.limits or {}
        return not any(factor.at(positions) for factor in self.forbidden) and all(
            cost.at(positions) <= limits[cost.name] for cost in self.costs
        )

    @cached_property
    def _column(self) -> dict[str, int]:
        return {choice.name: i for i, choice in enumerate(self.choices)}

    def _read(self, factors: Sequence[Factor], indices: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(len(indices))
        for factor in factors:
            total += factor.table[tuple(indices[:, self._column[name]] for name in factor.choices)]
        return total

    def total_values(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Total values of many architectures at once, shape (n,); indices: options by column of `choices`, (n, choices)."""
        return self._read(self.values, indices)

    def violations(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """By how much many architectures miss their budgets, as shares of them, and pairs that must not meet; shape (n,).

        0 where everything holds up to rounding: a single architecture is tested exactly by `holds`.
        """
        total = self._read(self.forbidden, indices)
        for row in self.rows:
            total += np.maximum((self._read(row.factors, indices) - row.limit) / row.unit, 0.0)
        return total

    def position(self, indices: NDArray[np.int64]) -> dict[str, int]:
        """One architecture's row of indices by name of the choice."""
        return {choice.name: int(i) for choice, i in zip(self.choices, indices, strict=True)}


def illegal_pairs(space: Space) -> list[Factor]:
    """For every layer the table that is 1 where its (weight, activation) pair is illegal on the target."""
    tables = []
    for layer in space.layers if space.pairs is not None else ():
        weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
        if weight.name == act.name:
            continue  # a joint choice has legal pairs alone
        illegal = np.array([[float((w, a) not in (space.pairs or ())) for a in act.options] for w in weight.options])
        if illegal.any() and (weight.searched or act.searched):
            tables.append(Factor((weight.name, act.name), illegal))
    return tables


def unmet(problem: Problem, proven: bool) -> BudgetError:
    """The error of a problem without a solution."""
    budgets = f"the budgets {dict(problem.limits or {})} together with the target's legal pairs"
    if proven:
        return BudgetError(f"no architecture meets {budgets}, proven; raise one of them")
    return BudgetError(
        f"no architecture was found in time to meet {budgets}; raise one of them, or give the selection more time "
        "(select.time_limit)"
    )
