"""The selection as tables over small sets of choices: what is maximised, what is bounded, what must not meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnas.select.program import illegal_pairs, searched_factor
from dnas.space.choice import Space
from dnas.space.cost import Cost, Factor

Array = NDArray[np.float64]
Table = tuple[tuple[str, ...], Array]
"""Choices, and one entry per joint option of theirs."""

LARGEST = 300_000
"""Entries of a table that forbids."""


@dataclass(frozen=True)
class Row:
    """An additive resource: its tables must sum to no more than the limit."""

    tables: tuple[Table, ...]
    limit: float


@dataclass(frozen=True)
class Problem:
    """A selection problem over the searched choices of a space.

    sizes: options per choice, in an order in which layers follow each other. values: tables that are added up and
    maximised, and `constant` on top. rows: resources. forbidden: tables that are true where options must not meet.
    """

    sizes: Mapping[str, int]
    values: tuple[Table, ...]
    constant: float
    rows: tuple[Row, ...]
    forbidden: tuple[tuple[tuple[str, ...], NDArray[np.bool_]], ...] = ()

    def value(self, positions: Mapping[str, int]) -> float:
        """What positions are worth."""
        return self.constant + sum(_at(table, positions) for table in self.values)

    def holds(self, positions: Mapping[str, int]) -> bool:
        """Whether positions keep all limits and nothing forbidden meets."""
        return all(sum(_at(t, positions) for t in row.tables) <= row.limit for row in self.rows) and not any(
            table[tuple(positions[name] for name in names)] for names, table in self.forbidden
        )


def _at(table: Table, positions: Mapping[str, int]) -> float:
    names, entries = table
    return float(entries[tuple(positions[name] for name in names)])


def build_problem(
    space: Space,
    values: Mapping[str, Sequence[float]],
    joint: Sequence[Factor],
    costs: Sequence[Cost],
    limits: Mapping[str, float],
) -> Problem:
    """The problem of one selection.

    Args:
        space: the space.
        values: of every choice's options.
        joint: tables that add to the values.
        costs: the costs that have a budget.
        limits: by cost name.
    """
    sizes = {name: len(space.choice(name).options) for name in layer_order(space)}
    tables: list[Table] = [((name,), np.asarray(values[name], dtype=float)) for name in sizes]
    constant = sum(values[choice.name][0] for choice in space.choices if not choice.searched)
    for factor in joint:
        names, table = searched_factor(space, factor)
        if names:
            tables.append((names, table))
        else:
            constant += float(table)
    rows, forbidden = [], [(names, table > 0) for names, table in illegal_pairs(space)]
    for cost in costs:
        for factors, base in zip(cost.rows, cost.constants, strict=True):
            own = merged([searched_factor(space, factor) for factor in factors])
            fixed = base + sum(float(table) for names, table in own if not names)
            own = [(names, table) for names, table in own if names]
            limit = limits[cost.name] - fixed
            union = [name for name in sizes if any(name in names for names, _ in own)]
            if len(cost.rows) > 1 and np.prod([float(sizes[n]) for n in union]) <= LARGEST:
                total = sum((spread(t, union, sizes) for t in own), np.zeros([sizes[n] for n in union]))
                if (total > limit).any():
                    forbidden.append((tuple(union), total > limit))
            else:
                rows.append(Row(tuple(own), limit))
    return Problem(sizes, tuple(tables), constant, tuple(rows), tuple(forbidden))


def merged(tables: Sequence[Table]) -> list[Table]:
    """Tables over the same choices as one."""
    found: dict[tuple[str, ...], Array] = {}
    for names, table in tables:
        found[names] = found[names] + table if names in found else table
    return list(found.items())


def spread(table: tuple[tuple[str, ...], NDArray[np.generic]], over: Sequence[str], sizes: Mapping[str, int]) -> Array:
    """A table with one axis for each of these choices, of length 1 where it does not depend on it."""
    names, entries = table
    order = sorted(range(len(names)), key=lambda i: over.index(names[i]))
    moved = np.transpose(entries, order)
    found: Array = moved.reshape([sizes[name] if name in names else 1 for name in over])
    return found


def layer_order(space: Space) -> list[str]:
    """The searched choices in the order in which the layers that they decide about run."""
    names: list[str] = []
    for layer in space.layers:
        names += [gate.choice for gate in space.gates_of(layer.name)]
        names += [space.groups[group].choice for group in layer.inputs.counts]
        names += [layer.act_choice]
        names += [space.groups[group].choice for group in layer.outputs.counts]
        names += [*([layer.kernel_choice] if layer.kernel_choice else []), layer.weight_choice]
    names += [choice.name for choice in space.choices]
    return [name for name in dict.fromkeys(names) if space.choice(name).searched]
