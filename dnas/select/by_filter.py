"""Selection where single filters decide: frontiers per layer, the same program over them, then single filters again."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dnas.search.budget import Budget
from dnas.search.scores import Scores
from dnas.select.frontier import Levels, block_sizes, kept_at, ranking
from dnas.select.program import Program
from dnas.select.settle import GAP, left_out, settle, total_score
from dnas.select.solve import solve
from dnas.space.architecture import FRONTIER, Architecture, Certificate
from dnas.space.choice import ChannelMap, Choice, Layer, Position, Space
from dnas.space.cost import Cost, Factor, tensors_by_row, unit_of
from dnas.space.filter_cost import by_filter, layer_by_filter, tensor_side

COUNTS, COARSE, FINE = 5, 6, 96
"""Filter counts of a group and levels of a layer while counts are open; levels when they are settled."""


@dataclass
class _Grid:
    """The levels of every choice by filter, and what is certain about the channels at each of them.

    counts: for a group that decides by filter the numbers of filters on offer; orders: in which order they stay.
    """

    space: Space
    levels: dict[str, Levels]
    counts: dict[str, tuple[int, ...]]
    orders: dict[str, NDArray[np.int64]]
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = {group.choice: group.size for group in self.space.groups}

    def size(self, name: str) -> int:
        """How many options a choice has in the program."""
        if name in self.counts:
            return len(self.counts[name])
        return len(self.levels[name].taken) if name in self.levels else len(self.space.choice(name).options)

    def stays(self, side: ChannelMap, only: set[int] | None = None) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """The groups' choices of a side, and for their joint options which channels stay.

        Shape (*joint options, channels); 0 for channels outside of the groups `only`.
        """
        groups = [g for g in side.counts if (only is None or g in only)]
        names = tuple(dict.fromkeys(self.space.groups[g].choice for g in groups))
        shape = tuple(self.size(name) for name in names)
        table = np.zeros((*shape, len(side)))
        for index in np.ndindex(*shape):
            kept = {name: self._kept(name, option) for name, option in zip(names, index, strict=True)}
            table[index] = [
                kept[self.space.groups[g].choice][p] if g in groups else 0.0
                for g, p in zip(side.group, side.position, strict=True)
            ]
        return names, table

    def _kept(self, name: str, option: int) -> NDArray[np.float64]:
        choice, size = self.space.choice(name), self.sizes[name]
        if name in self.counts:
            return kept_at(choice, self.orders[name], self.counts[name][option], size).astype(np.float64)
        return np.full(size, choice.options[option] / size)

    def options(self, name: str, channels: int) -> NDArray[np.int64]:
        """The option that every channel takes at every level of a choice of bits; shape (levels, channels)."""
        if name in self.levels:
            return np.stack([self.levels[name].per_channel(t, channels) for t in range(self.size(name))])
        return np.repeat(np.arange(self.size(name))[:, None], channels, axis=1)

    def counted(
        self, side: ChannelMap, name: str, only: set[int] | None = None
    ) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """How many channels of a side stay at each option of a choice of bits.

        Returns:
            the choices (groups, then bits) and the numbers for their joint options, shape (*joint options, K).
        """
        names, kept = self.stays(side, only)
        taken = self.options(name, len(side))
        marked = np.eye(len(self.space.choice(name).options))[taken]  # levels, channels, K
        return (*names, name), np.tensordot(kept, marked, (-1, 1))

    def positions(self, chosen: Mapping[str, int]) -> dict[str, Position]:
        """Positions in the space of what was chosen in the program."""
        found: dict[str, Position] = {}
        for choice in self.space.choices:
            option = chosen[choice.name]
            if choice.name in self.counts:
                size = self.sizes[choice.name]
                kept = kept_at(choice, self.orders[choice.name], self.counts[choice.name][option], size)
                found[choice.name] = tuple(int(k) for k in kept[:: choice.block])
            elif choice.name in self.levels:
                found[choice.name] = tuple(int(k) for k in self.levels[choice.name].taken[option])
            else:
                found[choice.name] = (option,) * choice.count if choice.by_filter else option
        return found


def _joined(parts: Sequence[tuple[tuple[str, ...], NDArray[np.float64]]], value: NDArray[np.float64]) -> Factor:
    """A table over the axes of several parts, with every choice once: where one stands twice, its diagonal."""
    every = [name for names, _ in parts for name in names]
    names = tuple(dict.fromkeys(every))
    sizes = {name: value.shape[axis] for axis, name in enumerate(every)}
    grid = np.indices([sizes[name] for name in names])
    return Factor(names, value[tuple(grid[names.index(name)] for name in every)])


def _layer_factors(grid: _Grid, layer: Layer, unit: NDArray[np.float64]) -> list[Factor]:
    """The cost of a layer as tables over groups, levels and options."""
    if layer.depthwise:
        names, kept = grid.stays(layer.outputs)
        weights = grid.options(layer.weight_choice, len(layer.outputs))
        acts = grid.options(layer.act_choice, len(layer.inputs))
        value = np.tensordot(kept, unit[weights[:, None], acts[None]], (-1, 2))
        return [_joined([((*names, layer.weight_choice, layer.act_choice), value)], value)]
    outs = grid.counted(layer.outputs, layer.weight_choice)
    found = []
    for group in layer.inputs.counts:
        ins = grid.counted(layer.inputs, layer.act_choice, {group})
        value = np.tensordot(np.tensordot(outs[1], unit, (-1, 0)), ins[1], (-1, -1))
        found.append(_joined([outs, ins], value))
    return found


def _surrogate_cost(grid: _Grid, cost: Cost, budget: Budget) -> Cost:
    """The cost over the program's options."""
    space = grid.space
    rows = [list(row) for row in cost.rows]
    for number, tensors in enumerate(tensors_by_row(space, cost.name)):
        for tensor in tensors:
            side = tensor_side(space, tensor)
            if by_filter(space, side, tensor.choice):
                names, counted = grid.counted(side, tensor.choice)
                bits = np.asarray(space.choice(tensor.choice).act_bits, dtype=np.float64) * tensor.elements
                rows[number].append(_joined([(names, counted)], counted @ bits))
    if not tensors_by_row(space, cost.name):
        for layer in space.layers:
            if layer_by_filter(space, layer):
                rows[0] += _layer_factors(grid, layer, unit_of(space, layer, cost.name, budget.functions))
    return Cost(cost.name, tuple(tuple(row) for row in rows), cost.constants)


def _values(grid: _Grid, scores: Scores) -> tuple[dict[str, list[float]], list[Factor]]:
    """Scores per option of single choices, and those that depend on which filters stay, as joint tables."""
    space, values, joint = grid.space, {}, []
    sides = {layer.weight_choice: layer.outputs for layer in space.layers}
    sides |= {layer.act_choice: layer.inputs for layer in reversed(space.layers)}
    for choice in space.choices:
        name = choice.name
        values[name] = [0.0] * grid.size(name)
        if name in grid.counts:
            rows, size = np.asarray(scores.rows(choice)), grid.sizes[name]
            per_channel = np.repeat((rows[:, 1] - rows[:, 0]) / block_sizes(choice, size), choice.block)[:size]
            for option, count in enumerate(grid.counts[name]):
                stays = kept_at(choice, grid.orders[name], count, size)
                values[name][option] = float(per_channel[stays].sum())
        elif name in grid.levels:
            side = sides[name]
            names, kept = grid.stays(side)
            sizes = block_sizes(choice, len(side))
            per_channel = grid.levels[name].scores / sizes
            per_channel = np.repeat(per_channel, choice.block, axis=1)[:, : len(side)]
            value = np.tensordot(kept, per_channel, (-1, 1))
            joint.append(_joined([((*names, name), value)], value))
        else:
            row = scores.rows(choice)[0]
            values[name] = [score - row[-1] for score in row]
    return values, joint


def _illegal(grid: _Grid) -> list[Factor]:
    """For every layer the table that is 1 where a filter that stays would have an illegal pair of widths."""
    space, found = grid.space, []
    for layer in space.layers if space.pairs is not None else ():
        weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
        if weight.name == act.name:
            continue
        forbidden = np.array(
            [[float((w, a) not in (space.pairs or ())) for a in act.act_bits] for w in weight.weight_bits]
        )
        outs, ins = grid.counted(layer.outputs, weight.name), grid.counted(layer.inputs, act.name)
        value = np.tensordot(np.tensordot(outs[1] > 0, forbidden, (-1, 0)), ins[1] > 0, (-1, -1))
        found.append(_joined([outs, ins], (value > 0).astype(np.float64)))
    return found


class _Problem:
    """The program over one grid."""

    def __init__(self, grid: _Grid, scores: Scores, costs: Sequence[Cost], budget: Budget | None) -> None:
        self.grid = grid
        options = {c.name: tuple(range(grid.size(c.name))) for c in grid.space.choices}
        choices = tuple(Choice(c.name, c.kind, options[c.name]) for c in grid.space.choices)
        self.space = Space(choices, (), (), (), {})
        self.values, self.joint = _values(grid, scores)
        self.costs = [_surrogate_cost(grid, cost, budget) for cost in costs] if budget else []
        self.illegal = _illegal(grid)

    def solve(self, limits: Mapping[str, float], seconds: float) -> tuple[dict[str, int], float]:
        """What is chosen, and an upper bound of the score over this grid."""
        program = Program(self.space, self.costs, self.illegal, self.joint)
        if not program.binaries:
            return {choice.name: 0 for choice in self.space.choices}, self.score(dict.fromkeys(self.values, 0))
        objective = program.objective(self.values)
        scale = float(np.abs(objective).max()) or 1.0
        chosen, bound = solve(program, objective / scale, limits, seconds, GAP)
        fixed = sum(self.values[c.name][0] for c in self.space.choices if not c.searched)
        return chosen, bound * scale + program.constant + fixed

    def score(self, chosen: Mapping[str, int]) -> float:
        """The score of what is chosen."""
        return sum(self.values[name][option] for name, option in chosen.items()) + sum(t.at(chosen) for t in self.joint)

    def optimistic(self) -> "_Problem":
        """Every option stands for all up to the next one: it costs what the cheapest of them costs and scores the best."""
        found = copy.copy(self)
        found.values = dict(self.values)
        for name in self.grid.counts:
            best = np.maximum.accumulate(self.values[name])
            found.values[name] = [*best[1:].tolist(), float(best[-1])]
        found.joint = []
        for factor in self.joint:
            axis = next(i for i, name in enumerate(factor.choices) if name in self.grid.levels)
            last = factor.table.shape[axis]
            found.joint.append(
                Factor(factor.choices, np.take(factor.table, np.minimum(np.arange(last) + 1, last - 1), axis))
            )
        found.illegal = []
        return found


def _grid(space: Space, scores: Scores, counts: Mapping[str, tuple[int, ...]], most: int) -> _Grid:
    levels, orders = {}, {}
    for choice in space.choices:
        if choice.by_filter and choice.kind == "filters":
            orders[choice.name] = ranking(scores, choice)
        elif choice.by_filter and choice.searched:
            bits = choice.weight_bits if choice.kind == "weight_bits" else choice.act_bits
            levels[choice.name] = Levels.of(choice, bits, scores.rows(choice), most)
    return _Grid(space, levels, dict(counts), orders)


def _spread(options: Sequence[int], most: int) -> tuple[int, ...]:
    last = len(options) - 1
    return tuple(options[i] for i in sorted({round(last * part / (most - 1)) for part in range(most)}))


def select_by_filter(
    scores: Scores,
    space: Space,
    budget: Budget | None,
    costs: Sequence[Cost],
    limits: Mapping[str, float],
    time_limit: float,
) -> Architecture:
    """Maximises the total score under every budget where single filters decide; see `dnas.select.select.select`.

    A group keeps filters in the order of their own benefit. The filters of a layer take widths on its frontier. Counts
    are settled first on a coarse grid, then between its points; then every layer has its whole frontier; at last, with
    everything else settled, single filters are settled together. The bound is that of the grid whose options stand for
    all that lies between them, so the certificate's gap holds against every architecture that keeps filters in this
    order. A user's own cost need not grow with the width: the bound is then the score of all best options together.
    """
    start = time.perf_counter()
    counts = {c.name: c.options for c in space.choices if c.by_filter and c.kind == "filters"}
    bound, chosen_counts = float("inf"), {name: _spread(options, COUNTS) for name, options in counts.items()}
    if counts:
        problem = _Problem(_grid(space, scores, chosen_counts, COARSE), scores, costs, budget)
        chosen, _ = problem.solve(limits, time_limit / 4)
        _, bound = problem.optimistic().solve(limits, time_limit / 4)
        while max(len(_between(counts[n], chosen_counts[n], chosen[n])) for n in counts) > 1:
            chosen_counts = {n: _spread(_between(counts[n], chosen_counts[n], chosen[n]), COUNTS) for n in counts}
            problem = _Problem(_grid(space, scores, chosen_counts, COARSE), scores, costs, budget)
            chosen, _ = problem.solve(limits, time_limit / 8)
            if all(len(_between(counts[n], chosen_counts[n], chosen[n])) <= COUNTS for n in counts):
                break
        chosen_counts = {n: (chosen_counts[n][chosen[n]],) for n in counts}
    problem = _Problem(_grid(space, scores, chosen_counts, FINE), scores, costs, budget)
    chosen, _ = problem.solve(limits, time_limit / 2)
    if not counts:
        _, bound = problem.optimistic().solve(limits, time_limit / 4)
    positions = settle(space, problem.grid.positions(chosen), scores, costs, limits, budget, time_limit / 4)
    value = total_score(scores, space, positions)
    bound += left_out(scores, space)
    if budget and any(name in budget.functions for name in limits):
        bound = sum(max(row) for choice in space.choices for row in scores.rows(choice))
    bound = max(bound, value)
    found = {cost.name: cost.at(positions) for cost in costs}
    certificate = Certificate(value, bound, bound - value, FRONTIER, time.perf_counter() - start, found, limits)
    return Architecture.at(space, positions, certificate=certificate, functions=budget.functions if budget else {})


def _between(options: Sequence[int], offered: Sequence[int], chosen: int) -> tuple[int, ...]:
    """The counts around a chosen one, up to its neighbours among those that were on offer."""
    low = offered[max(chosen - 1, 0)]
    high = offered[min(chosen + 1, len(offered) - 1)]
    return tuple(count for count in options if low <= count <= high)
