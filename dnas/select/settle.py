"""Single filters with everything else settled: what an architecture scores, and the best widths for the filters' budget."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from dnas.search.budget import Budget
from dnas.search.scores import Scores
from dnas.select.frontier import block_sizes
from dnas.space.choice import Layer, Position, Space
from dnas.space.cost import Cost, tensors_by_row, unit_of

POLISH = 40_000
"""Most variables for which single filters are settled exactly."""
TIE_BREAK = 1e-7
GAP = 1e-4


def total_score(scores: Scores, space: Space, positions: Mapping[str, Position]) -> float:
    """The score of positions: of widths by filter only where the filter stays."""
    total = 0.0
    kept = kept_decisions(space, positions)
    for choice in space.choices:
        position, rows = positions[choice.name], scores.rows(choice)
        if isinstance(position, int):
            total += rows[0][position]
            continue
        for decision, option in enumerate(position):
            row = rows[decision]
            share = kept.get(choice.name, np.ones(choice.count))[decision]
            total += row[option] if choice.kind == "filters" else row[-1] + (row[option] - row[-1]) * share
    return float(total)


def left_out(scores: Scores, space: Space) -> float:
    """What a program's objective leaves out: the dearest option's score, and that of removed filters."""
    total = 0.0
    for choice in space.choices:
        rows = scores.rows(choice)
        total += sum(row[0] if choice.by_filter and choice.kind == "filters" else row[-1] for row in rows)
    return float(total)


def kept_decisions(space: Space, positions: Mapping[str, Position]) -> dict[str, NDArray[np.float64]]:
    """For every choice of widths by filter the share of each decision's filters that stay; shape (decisions,)."""
    found = {}
    for layer in space.layers:
        for name, side in ((layer.weight_choice, layer.outputs), (layer.act_choice, layer.inputs)):
            choice = space.choice(name)
            if not choice.by_filter or name in found:
                continue
            stays = np.zeros(len(side))
            for channel, (group, position) in enumerate(zip(side.group, side.position, strict=True)):
                own = space.choice(space.groups[group].choice)
                taken = positions[own.name]
                if isinstance(taken, int):
                    stays[channel] = own.options[taken] / space.groups[group].size
                else:
                    stays[channel] = taken[position // own.block]
            sizes = block_sizes(choice, len(side))
            found[name] = np.add.reduceat(stays, np.arange(choice.count) * choice.block) / sizes
    return found


def settle(
    space: Space,
    positions: dict[str, Position],
    scores: Scores,
    costs: Sequence[Cost],
    limits: Mapping[str, float],
    budget: Budget | None,
    seconds: float,
) -> dict[str, Position]:
    """The best widths of single filters with everything else as it is; the positions as they were where none are better."""
    names = [c.name for c in space.choices if c.by_filter and c.kind == "weight_bits" and c.searched]
    size = sum(space.choice(name).count * space.choice(name).width for name in names)
    rows_only = [cost for cost in costs if tensors_by_row(space, cost.name)]
    if not names or size > POLISH or budget is None:
        return positions
    kept = kept_decisions(space, positions)
    layers = {layer.weight_choice: layer for layer in space.layers}
    objective, first = np.zeros(size), 0
    coefficients = {cost.name: np.zeros(size) for cost in costs if cost not in rows_only}
    blocks: list[tuple[str, int, int]] = []
    for name in names:
        choice, layer = space.choice(name), layers[name]
        sizes = block_sizes(choice, len(layer.outputs))
        for decision, row in enumerate(scores.rows(choice)):
            columns = slice(first, first + choice.width)
            share = kept[name][decision]
            bits = np.asarray(choice.weight_bits)
            objective[columns] = (np.asarray(row) - row[-1]) * share + TIE_BREAK * bits * share
            if space.pairs is not None:
                acts = {space.choice(layer.act_choice).act_bits[k] for k in _taken(positions[layer.act_choice])}
                legal = [all((int(w), a) in space.pairs for a in acts) for w in bits]
                objective[columns] -= np.where(legal, 0.0, 1e6) * share
            for cost_name, column in coefficients.items():
                per_act = _per_filter(
                    space, layer, positions, unit_of(space, layer, cost_name, budget.functions), decision
                )
                column[columns] = per_act * share * sizes[decision]
            blocks.append((name, decision, first))
            first += choice.width
    used = {name: float(column[_columns(blocks, positions)].sum()) for name, column in coefficients.items()}
    rest = {cost.name: cost.at(positions) - used[cost.name] for cost in costs if cost.name in used}
    ones = csr_matrix(
        (np.ones(size), np.arange(size), np.append([start for _, _, start in blocks], size)), shape=(len(blocks), size)
    )
    matrix = [ones, *(csr_matrix(column / limits[name]) for name, column in coefficients.items())]
    upper = [*np.ones(len(blocks)), *(1 - rest[name] / limits[name] for name in coefficients)]
    lower = [*np.ones(len(blocks)), *([-np.inf] * len(coefficients))]
    scale = float(np.abs(objective).max()) or 1.0
    result = milp(
        -objective / scale * 1e3,
        integrality=np.ones(size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(vstack(matrix), lower, upper),
        options={"time_limit": max(seconds, 1.0), "mip_rel_gap": GAP},
    )
    if result.x is None:
        return positions
    settled: dict[str, list[int]] = {}
    for name, _, start in blocks:
        settled.setdefault(name, []).append(int(np.argmax(result.x[start : start + space.choice(name).width])))
    found = positions | {name: tuple(options) for name, options in settled.items()}
    holds = all(cost.at(found) <= limits[cost.name] for cost in costs)
    return found if holds and total_score(scores, space, found) >= total_score(scores, space, positions) else positions


def _taken(position: Position) -> set[int]:
    return {position} if isinstance(position, int) else set(position)


def _columns(blocks: Sequence[tuple[str, int, int]], positions: Mapping[str, Position]) -> list[int]:
    return [start + positions[name][decision] for name, decision, start in blocks]  # type: ignore[index]


def _per_filter(
    space: Space, layer: Layer, positions: Mapping[str, Position], unit: NDArray[np.float64], decision: int
) -> NDArray[np.float64]:
    """What one filter costs at every weight option, given the input channels that stay and their widths; shape (W,)."""
    act, position = space.choice(layer.act_choice), positions[layer.act_choice]
    options = [position if isinstance(position, int) else position[j // act.block] for j in range(len(layer.inputs))]
    if layer.depthwise:
        block = space.choice(layer.weight_choice).block
        own = range(decision * block, min((decision + 1) * block, len(layer.inputs)))
        found: NDArray[np.float64] = np.mean([unit[:, options[j]] for j in own], axis=0)
        return found
    count = np.zeros(unit.shape[1])
    for j, (group, channel) in enumerate(zip(layer.inputs.group, layer.inputs.position, strict=True)):
        own_choice = space.choice(space.groups[group].choice)
        taken = positions[own_choice.name]
        if isinstance(taken, int):
            count[options[j]] += own_choice.options[taken] / space.groups[group].size
        else:
            count[options[j]] += taken[channel // own_choice.block]
    result: NDArray[np.float64] = unit @ count
    return result
