"""What an exported file costs, from its own shapes and widths: a second opinion on the cost of its architecture."""

from collections import Counter
from itertools import product
from typing import Any

from dnas.space.architecture import Architecture
from dnas.space.choice import Layer
from dnas.space.conventions import LAYER_COSTS, LayerCost
from dnas.space.cost import adds_up, operations_cost
from quant.graph import ExportedLayer
from quant.verify import VerificationError


def check_costs(architecture: Architecture, exported: list[ExportedLayer]) -> dict[str, Any]:
    """Costs recomputed from a file's own shapes and widths; they must equal the architecture's.

    Raises:
        VerificationError: they do not.
    """
    space = architecture.space
    found: dict[str, float] = {}
    for name, function in LAYER_COSTS.items():
        if not adds_up(space, name):  # not defined where filters differ
            continue
        constant = operations_cost(space, name, architecture.positions())
        per_layer: dict[str, float] = {}
        for use in exported:
            layer = _geometry(space.layer(use.layer), use)
            value = _mean_over_widths(function, layer, use)
            per_layer[use.layer] = value + (0.0 if name == "weight_bits" else per_layer.get(use.layer, 0.0))
        found[name] = sum(per_layer.values()) + constant
        wanted = architecture.cost(name)
        if abs(found[name] - wanted) > 1e-9 * max(wanted, 1):
            raise VerificationError(f"{name} of the exported file is {found[name]}, the architecture's is {wanted}")
    return found


def _mean_over_widths(function: LayerCost, layer: Layer, use: ExportedLayer) -> float:
    """The cost of a layer, averaged over the pairs of a filter's width and that of an input channel which it reads."""
    weights, acts = [s.bits for s in use.weights], [s.bits for s in use.activations]
    if len(set(weights)) == len(set(acts)) == 1:
        return function(layer, use.in_channels, use.out_channels, weights[0], acts[0])
    filters = weights * (use.out_channels // len(weights))  # a transposed layer with groups lists those of one group
    channels = acts * (use.in_channels // len(acts))
    apart, per_group = use.out_channels // use.groups, use.in_channels // use.groups
    pairs = Counter(
        pair
        for group in range(use.groups)
        for pair in product(filters[group * apart :][:apart], channels[group * per_group :][:per_group])
    )
    total = sum(function(layer, use.in_channels, use.out_channels, w, a) * n for (w, a), n in pairs.items())
    return total / pairs.total()


def _geometry(layer: Layer, use: ExportedLayer) -> Layer:
    """The layer as the file has it."""
    kernel = 1
    for size in use.weight_shape[2:]:
        kernel *= size
    positions = use.input_positions if use.op == "ConvTranspose" else use.output_positions
    depthwise = use.groups > 1 and use.groups == use.in_channels == use.out_channels
    return Layer(
        layer.name, layer.kind, positions, kernel, use.groups, depthwise or layer.depthwise, layer.inputs, layer.outputs,
        layer.weight_choice, layer.act_choice,
    )  # fmt: skip
