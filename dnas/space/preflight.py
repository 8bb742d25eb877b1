"""What can be known before training: layers and their shares, reachable costs, what stays fixed, memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.markup import escape
from rich.table import Table
from torch import nn

from dnas.space.choice import FLOAT_BITS, INPUT_BITS, PAIR, Choice, Layer, Position, Space
from dnas.space.conventions import LAYER_COSTS, LayerCost, bops
from dnas.space.cost import TENSOR_COSTS, Cost, adds_up, build_cost, reference_cost

FLOAT_BYTES = 4
LONG_NAME = 24
"""Longer names of layers are wrapped where a line is too short."""
NAMED = 8
"""How many names that share a reason are printed."""


@dataclass(frozen=True)
class CostRange:
    """Smallest and largest reachable value of a cost, and that of the 8-bit full-width network."""

    name: str
    smallest: float
    largest: float
    reference: float


def cost_ranges(space: Space, functions: Mapping[str, LayerCost] | None = None) -> list[CostRange]:
    """Reachable range of every cost; where the target lists legal pairs, bounds of it."""
    found = []
    for name in (*LAYER_COSTS, *TENSOR_COSTS, *(functions or {})):
        if not adds_up(space, name) and name not in (functions or {}):
            continue
        cost = build_cost(space, name, functions)
        smallest, largest = (extreme_cost(space, cost, dearest) for dearest in (False, True))
        found.append(CostRange(name, smallest, largest, reference_cost(space, name, functions=functions)))
    return found


def extreme_cost(space: Space, cost: Cost, dearest: bool) -> float:
    """The smallest or largest value of a cost over the architectures of a space; legal pairs of a target aside.

    Joint choices of two widths have no order that holds for every cost. A cost of layers is a sum in which no two of them
    meet, so that each can be tried by itself; a cost of tensors grows with the activation bits. A user's cost or a latency
    need not grow with anything, and a peak not with the blocks that run: for these it is a bound, what all tables reach by
    themselves.
    """
    position: dict[str, Position] = space.extreme(dearest)
    take: Callable[..., int] = max if dearest else min
    for choice in space.choices:
        if choice.kind == "pair_bits":
            options = range(len(choice.options))
            if cost.name in TENSOR_COSTS:
                position[choice.name] = take(options, key=choice.act_bits.__getitem__)
            else:
                values = [cost.at({**position, choice.name: option}) for option in options]
                position[choice.name] = take(options, key=values.__getitem__)
    fewer = cost.name in TENSOR_COSTS and bool(space.gates) and not dearest
    if fewer or cost.name not in (*LAYER_COSTS, *TENSOR_COSTS):
        with suppress(ValueError):  # of a table too large to hold, which is read entry by entry
            found = replace(cost, filters=None).bound(take)
            if cost.filters is not None:
                alone = replace(cost, rows=((),), constants=(0.0,), filters=cost.filters.bounded(take))
                found += alone.at(position)
            return found
    return cost.at(position)


def heaviest_choice(space: Space, cost: Cost, positions: Mapping[str, int] | None = None) -> tuple[str, float] | None:
    """The choice that enters most of an architecture's cost, and that share: a cheaper option there frees most.

    The architecture is the smallest one, or that of `positions`.

    Of choices of filters only those with several options: the others are the network's inputs and outputs. None where
    single filters decide, whose cost has no tables.
    """
    if cost.filters is not None:
        return None
    position = positions or {choice.name: 0 for choice in space.choices}
    totals = [
        constant + sum(factor.at(position) for factor in row)
        for row, constant in zip(cost.rows, cost.constants, strict=True)
    ]
    largest = max(range(len(totals)), key=totals.__getitem__)
    shares = {choice.name: 0.0 for choice in space.choices if choice.searched or choice.kind != "filters"}
    for factor in cost.rows[largest]:
        for name in set(factor.choices) & set(shares):
            shares[name] += factor.at(position) / max(totals[largest], 1e-300)
    most = max(shares.items(), key=lambda pair: pair[1], default=("", 0.0))
    return most if most[1] > 0 else None


def memory_estimate_mb(space: Space, model: nn.Module, batch_size: int) -> float:
    """Memory of one search step beyond that of the imports, in MB: an estimate.

    Parameters four times (value, gradient, momentum, copy), and for every layer its input and its quantised input, its
    output, and as much again for normalisation and activation functions, once forward and once as gradients.
    """
    parameters = sum(p.numel() for p in model.parameters())
    elements = 0
    for layer in space.layers:
        elements += 3 * layer.positions * len(layer.outputs)
    for tensor in space.tensors:
        if tensor.side == "input":
            layer = space.layer(tensor.like)
            elements += 2 * tensor.elements * len(layer.inputs)
    return FLOAT_BYTES * (4 * parameters + elements * batch_size * 1.5) / 1e6


@dataclass(frozen=True)
class LayerRow:
    """A layer, or an operation outside of the space's layers, as the table shows it.

    macs: per example, at full width. share: of the BOPs of the full-width network with everything at 8 bits. weights,
    acts: the options as text; filters: those of every group of filters. shared: a small letter for a tensor that several
    layers read. coupled: for every group a capital letter, where several layers keep the same filters.
    """

    name: str
    kind: str
    channels: tuple[int, int] | None
    macs: int
    share: float
    weights: str
    acts: str
    filters: tuple[str, ...] = ()
    shared: str = ""
    coupled: tuple[str, ...] = ()


def layer_rows(space: Space) -> list[LayerRow]:
    """The layers in the order in which they run, then the operations outside of them that multiply."""
    total = max(reference_cost(space, "bops"), 1.0)
    readers: dict[str, list[str]] = {}
    for layer in space.layers:
        readers.setdefault(layer.act_choice, []).append(layer.name)
    tensors = _letters(
        [name for name, layers in readers.items() if len(layers) > 1 and space.choice(name).searched], "a"
    )
    together = [g.choice for g in space.groups if len(set(g.members)) > 1 and space.choice(g.choice).searched]
    filters = _letters(together, "A")
    rows = []
    for layer in space.layers:
        ins, outs = len(layer.inputs), len(layer.outputs)
        weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
        groups = [space.choice(space.groups[group].choice) for group in layer.outputs.counts]
        rows.append(
            LayerRow(
                layer.name,
                _kind(layer),
                (ins, outs),
                layer.full_macs,
                bops(layer, ins, outs, INPUT_BITS, INPUT_BITS) / total,
                _options(weight),
                "the pair's" if weight.kind == "pair_bits" else _options(act),
                tuple(_options(choice) if choice.searched else "all" for choice in groups),
                tensors.get(act.name, ""),
                tuple(filters.get(choice.name, "") for choice in groups),
            )
        )
    for fixed in space.fixed:
        if fixed.macs:
            share = fixed.macs * INPUT_BITS**2 / total
            rows.append(LayerRow(fixed.name, "operation", None, fixed.macs, share, str(FLOAT_BITS), str(FLOAT_BITS)))
    return rows


def _kind(layer: Layer) -> str:
    if layer.depthwise:
        return "depthwise"
    return layer.kind if layer.groups == 1 else f"{layer.kind} /{layer.groups}"


def _letters(names: Sequence[str], first: str) -> dict[str, str]:
    """A, B, ..., Z, A1, B1, ... for these names."""
    return {name: chr(ord(first) + i % 26) + (str(i // 26) if i >= 26 else "") for i, name in enumerate(names)}


def _options(choice: Choice) -> str:
    if choice.kind == "pair_bits":
        pairs = [f"W{option // PAIR}A{option % PAIR}" for option in choice.options]
        return ",".join(pairs) if len(pairs) <= 4 else f"{pairs[0]}..{pairs[-1]} ({len(pairs)})"
    return (f"{choice.count} x " if choice.by_filter else "") + series(choice.options)


def series(numbers: Sequence[int]) -> str:
    """Ascending numbers in few characters: `2-4,6,8`, `8,16..64`."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]},{numbers[1]}..{numbers[-1]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return ",".join(parts) if len(parts) <= 6 else f"{numbers[0]}..{numbers[-1]} ({len(numbers)})"


def short_number(value: float) -> str:
    """Three digits and a unit: 884,736 is `885k`."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            break
        value /= 1000
    text = f"{value:.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


def percent(share: float) -> str:
    """A share in per cent, in at least two digits."""
    if share >= 0.0995 or share == 0:
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.00995 else f"{100 * share:.2g}%"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def _table(title: str, columns: Mapping[str, str], caption: str = "", wrap: Sequence[str] = ()) -> Table:
    """A table without lines between columns, so that it fits 80 characters.

    Args:
        title: above it.
        columns: name to justification.
        caption: below it.
        wrap: the columns that may be wrapped.
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False,
        caption=caption or None, caption_justify="left", header_style="bold",
    )  # fmt: skip
    for column, justify in columns.items():
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in wrap)  # type: ignore[arg-type]
    return table


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """The layers with their shares of the BOPs and the options of each choice, and their sum."""
    legend = ["BOPs: share of the full-width network with everything at 8 bits. Weights and inputs: bits."]
    if any(letter for row in rows for letter in row.coupled):
        legend.append("Layers with the same capital letter keep the same filters.")
    if any(row.shared for row in rows):
        legend.append("Layers with the same small letter read one tensor and share its bits.")
    if any(" x " in cell for row in rows for cell in (row.weights, row.acts, *row.filters)):
        legend.append("16 x: 16 filters, channels or blocks of them choose; of filters, how many may stay.")
    columns = {
        "layer": "left", "kind": "left", "in": "right", "out": "right", "MACs": "right", "BOPs": "right",
        "weights": "left", "inputs": "left", "filters": "left",
    }  # fmt: skip
    long = any(len(row.name) > LONG_NAME for row in rows)
    table = _table(
        "Layers", columns, " ".join(legend), ("layer", "filters", "weights") if long else ("filters", "weights")
    )
    for row in rows:
        ins, outs = map(str, row.channels) if row.channels else ("", "")
        letters = row.coupled or ("",) * len(row.filters)
        filters = [f"{options} {letter}".strip() for options, letter in zip(row.filters, letters, strict=True)]
        table.add_row(
            escape(row.name), row.kind, ins, outs, short_number(row.macs), _share(row.share), row.weights,
            f"{row.acts} {row.shared}".strip(), " + ".join(filters),
        )  # fmt: skip
    total = sum(row.macs for row in rows)
    table.add_row("all", "", "", "", short_number(total), _share(sum(row.share for row in rows)), style="bold")
    return table


def range_table(ranges: Sequence[CostRange], limits: Mapping[str, float], space: Space) -> Table:
    """Reachable range of every cost, relative to the 8-bit network, and the budgets."""
    outside = sum(fixed.macs for fixed in space.fixed) * FLOAT_BITS**2
    notes = ["In per cent: of the full-width network with everything at 8 bits, as budgets up to 1 are."]
    if outside:
        notes.append(f"{short_number(outside)} bops are operations outside of the layers, at {FLOAT_BITS} bits.")
    if space.pairs is not None:
        notes.append("The target's legal pairs may narrow these ranges.")
    columns = {"cost": "left", "smallest": "right", "largest": "right", "8 bits": "right", "reachable": "right"}
    table = _table("Reachable costs", columns | ({"budget": "left"} if limits else {}), " ".join(notes), ("budget",))
    for found in ranges:
        reference, limit = max(found.reference, 1e-12), limits.get(found.name)
        cells = [
            escape(found.name), short_number(found.smallest), short_number(found.largest), short_number(found.reference),
            f"{percent(found.smallest / reference)} to {percent(found.largest / reference)}",
        ]  # fmt: skip
        if limit is not None:
            verdict = "[red]out of reach[/]" if limit < found.smallest else "no limit" if limit >= found.largest else ""
            cells.append(f"{short_number(limit)} ({percent(limit / reference)}) {verdict}".strip())
        table.add_row(*cells)
    return table


def fixed_by_reason(space: Space) -> dict[str, tuple[str, ...]]:
    """For every reason the names of what is not searched because of it."""
    found: dict[str, list[str]] = {}
    for fixed in space.fixed:
        found.setdefault(fixed.reason, []).append(fixed.name)
    return {reason: tuple(names) for reason, names in found.items()}


def fixed_table(reasons: Mapping[str, Sequence[str]]) -> Table:
    """What is not searched, and why."""
    table = _table("Not searched", {"why": "left", "what": "left"}, wrap=("why", "what"))
    for reason, names in reasons.items():
        more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
        table.add_row(escape(reason), escape(", ".join(names[:NAMED])) + more)
    return table
