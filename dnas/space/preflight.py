"""What can be known before training: reachable costs, what stays fixed, memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from dnas.space.choice import Space
from dnas.space.cost import LAYER_COSTS, TENSOR_COSTS, LayerCost, build_cost, reference_cost

FLOAT_BYTES = 4


@dataclass(frozen=True)
class CostRange:
    """Smallest and largest reachable value of a cost, and that of the 8-bit full-width network."""

    name: str
    smallest: float
    largest: float
    reference: float


def cost_ranges(space: Space, functions: Mapping[str, LayerCost] | None = None) -> list[CostRange]:
    """Reachable range of every cost."""
    cheapest = {choice.name: 0 for choice in space.choices}
    dearest = {choice.name: len(choice.options) - 1 for choice in space.choices}
    found = []
    for name in (*LAYER_COSTS, *TENSOR_COSTS, *(functions or {})):
        cost = build_cost(space, name, functions)
        found.append(
            CostRange(name, cost.at(cheapest), cost.at(dearest), reference_cost(space, name, functions=functions))
        )
    return found


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


def layer_table(space: Space) -> Table:
    """The layers with their shares of the cost and the number of options of each choice."""
    table = Table(title="Layers", title_justify="left")
    for column, justify in (
        ("layer", "left"), ("kind", "left"), ("in", "right"), ("out", "right"), ("MACs", "right"), ("share", "right"),
        ("weight bits", "left"), ("act bits", "left"), ("filters (coupled with)", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    total = max(sum(layer.full_macs for layer in space.layers), 1)
    for layer in space.layers:
        groups = [space.groups[group] for group in layer.outputs.counts]
        filters = []
        for group in groups:
            others = [name for name in group.members if name != layer.name]
            options = ",".join(map(str, space.choice(group.choice).options))
            filters.append(options + (f" ({', '.join(others)})" if others and "," in options else ""))
        table.add_row(
            layer.name, layer.kind, str(len(layer.inputs)), str(len(layer.outputs)), f"{layer.full_macs:,}",
            f"{layer.full_macs / total:.1%}", ",".join(map(str, space.choice(layer.weight_choice).options)),
            ",".join(map(str, space.choice(layer.act_choice).options)), "; ".join(filters),
        )  # fmt: skip
    return table


def range_table(ranges: list[CostRange], limits: Mapping[str, float]) -> Table:
    """Reachable range of every cost, relative to the 8-bit network, and the budgets."""
    table = Table(title="Reachable costs", title_justify="left")
    for column in ("cost", "smallest", "largest", "8-bit, full width", "smallest / 8-bit", "budget"):
        table.add_column(column, justify="left" if column == "cost" else "right", overflow="fold")
    for found in ranges:
        limit = limits.get(found.name)
        table.add_row(
            found.name, f"{found.smallest:,.0f}", f"{found.largest:,.0f}", f"{found.reference:,.0f}",
            f"{found.smallest / max(found.reference, 1e-12):.4f}", "" if limit is None else f"{limit:,.0f}",
        )  # fmt: skip
    return table
