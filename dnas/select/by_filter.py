"""Selection where single filters decide: frontiers per layer, the same program over them, then single filters again."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores
from dnas.select.frontier import Levels, block_sizes, kept_at, ranking
from dnas.select.program import Program
from dnas.select.settle import GAP, left_out, settle, total_score
from dnas.select.solve import solve
from dnas.space.architecture import FRONTIER, Architecture, Certificate
from dnas.space.choice import ActTensor, ChannelMap, Choice, Layer, Position, Space
from dnas.space.cost import Cost, Factor, tensors_by_row, unit_of
from dnas.space.filter_cost import by_filter, layer_by_filter, tensor_parts, tensor_side

COUNTS, COARSE, FINE = 5, 6, 96
"""Filter counts of a group and levels of a layer while counts are open; levels when they are settled."""
TIGHTENED = 8
"""Most times that a program is solved until its solution meets the budgets as the space counts costs."""


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

    def options(self, name: str, channels: Sequence[int]) -> NDArray[np.int64]:
        """The option that these channels take at every level of a choice of bits; shape (levels, channels)."""
        if name in self.levels:
            return self.levels[name].per_channel(channels)
        return np.repeat(np.arange(self.size(name))[:, None], len(channels), axis=1)

    def counted(
        self, side: ChannelMap, name: str, only: set[int] | None = None, channels: Sequence[int] | None = None
    ) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """How many channels of a side stay at each option of a choice of bits.

        Args:
            side: the side.
            name: the choice of bits.
            only: the groups whose channels count; by default all.
            channels: the choice's channels that the side's are; by default the same.

        Returns:
            the choices (groups, then bits) and the numbers for their joint options, shape (*joint options, K).
        """
        names, kept = self.stays(side, only)
        taken = self.options(name, range(len(side)) if channels is None else channels)
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


def _layer_factors(grid: _Grid, layer: Layer, unit: NDArray[np.float64], least: bool) -> list[Factor]:
    """The cost of a layer as tables over groups, levels and options; with `least` see `_surrogate_cost`."""
    if layer.depthwise:
        names, kept = grid.stays(layer.outputs)
        weights = grid.options(layer.weight_choice, range(len(layer.outputs)))
        acts = grid.options(layer.act_choice, range(len(layer.inputs)))
        tables = [unit]
        if least and {layer.weight_choice, layer.act_choice} <= grid.levels.keys():
            tables = _planes_below(unit, counts_open=any(len(grid.counts.get(name, ())) > 1 for name in names))
        values = [np.tensordot(kept, table[weights[:, None], acts[None]], (-1, 2)) for table in tables]
        value: NDArray[np.float64] = np.max(values, axis=0)
        return [_joined([((*names, layer.weight_choice, layer.act_choice), value)], value)]
    outs = grid.counted(layer.outputs, layer.weight_choice)
    found = []
    for group in layer.inputs.counts:
        ins = grid.counted(layer.inputs, layer.act_choice, {group})
        value = np.tensordot(np.tensordot(outs[1], unit, (-1, 0)), ins[1], (-1, -1))
        found.append(_joined([outs, ins], value))
    return found


def _planes_below(unit: NDArray[np.float64], counts_open: bool) -> list[NDArray[np.float64]]:
    """McCormick's planes below what a channel costs at both of its widths; shape (W, A) each.

    A sum of w a over channels is not a function of the two total widths, which is all that levels bound; the sum of
    a_min w + w_min a - w_min a_min is, and so is that at the largest widths: it is no larger, as
    (w_max - w) (a_max - a) >= 0. The latter may fall as a channel is added, so it bounds nothing while counts are open.
    """
    corners = (0,) if counts_open else (0, -1)
    return [unit[:, [k]] + unit[[k], :] - unit[k, k] for k in corners]


def _tensor_factors(grid: _Grid, tensor: ActTensor, least: bool) -> list[Factor]:
    """The bits of a stored tensor as tables over groups, levels and options; with `least` see `_surrogate_cost`."""
    choice, found = grid.space.choice(tensor.choice), []
    bits = np.asarray(choice.act_bits, dtype=np.float64) * tensor.elements
    for part, channels in tensor_parts(grid.space, tensor):
        levels = grid.levels.get(choice.name)
        some = levels is not None and channels is not None and len(channels) < levels.channels
        if channels is None or (least and some):
            names, kept = grid.stays(part)
            value = kept.sum(-1) * (bits[-1] if channels is None else bits[0])
        else:
            names, counted = grid.counted(part, choice.name, channels=channels)
            value = counted @ bits
        found.append(_joined([(names, value)], value))
    return found


def _surrogate_cost(grid: _Grid, cost: Cost, budget: Budget, least: bool = False) -> Cost:
    """The cost over the program's options.

    Args:
        grid: the options.
        cost: the cost over the space.
        budget: holds the user's own costs.
        least: instead of an option's cost a lower bound for every architecture whose total widths, over the filters of
            each layer that stay, are at least the option's. Where the cost is a function of these the two are the same.
            Else single widths enter: of a depthwise layer, or of a tensor that only some channels are part of.
    """
    space = grid.space
    rows = [list(row) for row in cost.rows]
    for number, tensors in enumerate(tensors_by_row(space, cost.name)):
        for tensor in tensors:
            if by_filter(space, tensor_side(space, tensor), tensor.choice):
                rows[number] += _tensor_factors(grid, tensor, least)
    if not tensors_by_row(space, cost.name):
        for layer in space.layers:
            if layer_by_filter(space, layer):
                unit = unit_of(space, layer, cost.name, budget.functions)
                rows[0] += _layer_factors(grid, layer, unit, least)
    return Cost(cost.name, tuple(tuple(row) for row in rows), cost.constants)


def _sides(space: Space) -> dict[str, ChannelMap]:
    """The filters (channels) that every choice of bits is about."""
    sides = {layer.weight_choice: layer.outputs for layer in space.layers}
    return sides | {layer.act_choice: layer.inputs for layer in reversed(space.layers)}


def _values(grid: _Grid, scores: Scores) -> tuple[dict[str, list[float]], list[Factor]]:
    """Scores per option of single choices, and those that depend on which filters stay, as joint tables."""
    space, values, joint = grid.space, {}, []
    sides = _sides(space)
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
        self.grid, self._costs, self._budget = grid, costs, budget
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
        """Every option stands for all up to the next one: it costs no more than any of them and scores as the best.

        The scores must not fall towards the dearer options.
        """
        found = copy.copy(self)
        if self._budget:
            found.costs = [_surrogate_cost(self.grid, cost, self._budget, least=True) for cost in self._costs]
        found.values = dict(self.values)
        for name in self.grid.counts:
            found.values[name] = [*self.values[name][1:], self.values[name][-1]]
        found.joint = []
        for factor in self.joint:
            axis = next(i for i, name in enumerate(factor.choices) if name in self.grid.levels)
            last = factor.table.shape[axis]
            found.joint.append(
                Factor(factor.choices, np.take(factor.table, np.minimum(np.arange(last) + 1, last - 1), axis))
            )
        found.illegal = []
        return found


def _grid(
    space: Space,
    scores: Scores,
    counts: Mapping[str, tuple[int, ...]],
    most: int,
    ranked: Scores | None = None,
    legal: bool = True,
) -> _Grid:
    """The options of the program; filters stay in the order of `ranked`, by default of the scores themselves.

    legal: with levels for the widths that a target's pairs allow beside each other.
    """
    levels, orders = {}, {}
    sides = _sides(space)
    for choice in space.choices:
        if choice.by_filter and choice.kind == "filters":
            orders[choice.name] = ranking(ranked or scores, choice)
        elif choice.by_filter and choice.searched:
            bits = choice.weight_bits if choice.kind == "weight_bits" else choice.act_bits
            found = Levels.of(choice, bits, scores.rows(choice), most, len(sides[choice.name]))
            subsets = _legal_subsets(space, choice, bits) if legal else set()
            levels[choice.name] = found.within(bits, scores.rows(choice), most, subsets) if subsets else found
    return _Grid(space, levels, dict(counts), orders)


def _legal_subsets(space: Space, choice: Choice, bits: Sequence[int]) -> set[tuple[int, ...]]:
    """For every width of the other side the options, by position, that a target's pairs allow beside it."""
    place = 0 if choice.kind == "weight_bits" else 1
    found = set()
    for other in {pair[1 - place] for pair in space.pairs or ()}:
        fitting = {pair[place] for pair in space.pairs or () if pair[1 - place] == other}
        found.add(tuple(i for i, width in enumerate(bits) if width in fitting))
    return found - {(), tuple(range(len(bits)))}


def _upper_bound(
    space: Space,
    scores: Scores,
    counts: Mapping[str, tuple[int, ...]],
    most: int,
    costs: Sequence[Cost],
    budget: Budget | None,
    limits: Mapping[str, float],
    seconds: float,
) -> float:
    """No architecture within the budget that keeps filters in the order of their benefit scores above this."""
    if budget and any(name in budget.functions for name in limits):
        return float(sum(max(row) for choice in space.choices for row in scores.rows(choice)))
    best = _never_falling(scores, space)
    grid = _grid(space, best, counts, most, ranked=scores, legal=False)
    _, bound = _Problem(grid, best, costs, budget).optimistic().solve(limits, seconds)
    return bound + left_out(best, space)


def _never_falling(scores: Scores, space: Space) -> Scores:
    """The least scores above these that do not fall towards the dearer options of a choice by filter."""
    values = dict(scores.values)
    for choice in space.choices:
        if choice.by_filter:
            rows = np.maximum.accumulate(np.asarray(scores.rows(choice), dtype=np.float64), axis=1)
            values[choice.name] = tuple(tuple(row) for row in rows.tolist())
    return Scores(values, scores.method)


def _solve_within(
    problem: _Problem,
    scores: Scores,
    costs: Sequence[Cost],
    limits: Mapping[str, float],
    budget: Budget | None,
    seconds: float,
) -> dict[str, Position]:
    """The program's best architecture, its single filters settled, that meets the budgets as the space counts costs.

    The program counts the same up to rounding; where its solution costs more, it is solved with tighter limits.

    Raises:
        BudgetError: none was found.
    """
    tightened = dict(limits)
    for _ in range(TIGHTENED):
        try:
            chosen, _ = problem.solve(tightened, seconds * 2 / 3)
        except BudgetError:
            if tightened == dict(limits):
                raise
            break
        start = problem.grid.positions(chosen)
        positions = settle(problem.grid.space, start, scores, costs, limits, budget, seconds / 3)
        spent = {cost.name: cost.at(positions) for cost in costs}
        if all(spent[name] <= limit for name, limit in limits.items()):
            return positions
        for name, limit in limits.items():
            tightened[name] *= min(1.0, limit / spent[name] * (1 - 1e-7)) if spent[name] > limit else 1.0
    raise BudgetError(
        f"no architecture was found whose costs hold the budgets {dict(limits)}; the last one costs {spent}; raise the "
        "budget slightly, or let whole layers decide (space.granularity, space.act_granularity)"
    )


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
    Where a cost depends on more than total widths, as that of a depthwise layer whose filters and channels both decide,
    the bound is that of a lower bound of the cost.

    Raises:
        BudgetError: no architecture of the space meets the budget, or none was found.
    """
    start = time.perf_counter()
    counts = {c.name: c.options for c in space.choices if c.by_filter and c.kind == "filters"}
    bound, chosen_counts = float("inf"), {name: _spread(options, COUNTS) for name, options in counts.items()}
    if counts:
        problem = _Problem(_grid(space, scores, chosen_counts, COARSE), scores, costs, budget)
        chosen, _ = problem.solve(limits, time_limit / 4)
        bound = _upper_bound(space, scores, chosen_counts, COARSE, costs, budget, limits, time_limit / 4)
        while max(len(_between(counts[n], chosen_counts[n], chosen[n])) for n in counts) > 1:
            chosen_counts = {n: _spread(_between(counts[n], chosen_counts[n], chosen[n]), COUNTS) for n in counts}
            problem = _Problem(_grid(space, scores, chosen_counts, COARSE), scores, costs, budget)
            chosen, _ = problem.solve(limits, time_limit / 8)
            if all(len(_between(counts[n], chosen_counts[n], chosen[n])) <= COUNTS for n in counts):
                break
        chosen_counts = {n: (chosen_counts[n][chosen[n]],) for n in counts}
    problem = _Problem(_grid(space, scores, chosen_counts, FINE), scores, costs, budget)
    positions = _solve_within(problem, scores, costs, limits, budget, time_limit * 3 / 4)
    if not counts:
        bound = _upper_bound(space, scores, {}, FINE, costs, budget, limits, time_limit / 4)
    value = total_score(scores, space, positions)
    bound = max(bound, value)
    found = {cost.name: cost.at(positions) for cost in costs}
    certificate = Certificate(value, bound, bound - value, FRONTIER, time.perf_counter() - start, found, limits)
    return Architecture.at(space, positions, certificate=certificate, functions=budget.functions if budget else {})


def _between(options: Sequence[int], offered: Sequence[int], chosen: int) -> tuple[int, ...]:
    """The counts around a chosen one, up to its neighbours among those that were on offer."""
    low = offered[max(chosen - 1, 0)]
    high = offered[min(chosen + 1, len(offered) - 1)]
    return tuple(count for count in options if low <= count <= high)
