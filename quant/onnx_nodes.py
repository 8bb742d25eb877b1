"""Expands the placeholder operators of a traced network into the ONNX operators of either format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quant.brevitas import QuantisedLayer, channel_axis, filter_axis
from quant.spec import QuantSpec, one_or_each

PLACEHOLDERS = "quant.placeholder"
"""Operator domain of the placeholders; never in a finished file."""
WEIGHT, ACTIVATION, NORM = "Weight", "Activation", "Norm"
QONNX_DOMAIN, QONNX_VERSION = "qonnx.custom_op.general", 2


def _along(values: NDArray[np.float32], ndim: int, axis: int) -> NDArray[np.float32]:
    """Values of shape () or (entries,), shaped to broadcast against a tensor of `ndim` dimensions."""
    return values if values.ndim == 0 else values.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


class _Writer:
    """Collects nodes and initialisers of the new graph."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.nodes: list[NodeProto] = []
        self.initialisers: dict[str, TensorProto] = {}

    def store(self, name: str, values: NDArray[np.generic]) -> str:
        """Adds an initialiser once; returns its name."""
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a standard operator that is named after its output; returns that."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def clip(self, source: str, target: str, name: str, spec: QuantSpec) -> str:
        """Clips codes to the grid where the 8-bit type alone does not; returns the tensor of clipped codes."""
        if spec.bits == 8 and not spec.narrow:
            return source
        kind = np.int8 if spec.signed else np.uint8
        lower = self.store(f"{name}.lower", np.array(spec.lower, kind))
        upper = self.store(f"{name}.upper", np.array(spec.upper, kind))
        return self.node("Clip", [source, lower, upper], target)

    def quant(self, source: str, target: str, name: str, scale: NDArray[np.float32], spec: QuantSpec) -> str:
        """One Quant node of QONNX; scale broadcasts against the tensor."""
        inputs = [
            source,
            self.store(f"{name}.scale", scale),
            self.store(f"{name}.zero_point", np.zeros((), np.float32)),
            self.store(f"{name}.bits", np.array(spec.bits, np.float32)),
        ]
        return self.node(
            "Quant", inputs, target, domain=QONNX_DOMAIN,
            signed=int(spec.signed), narrow=int(spec.narrow), rounding_mode="ROUND",
        )  # fmt: skip

    def quant_by_width(
        self,
        part: Callable[[NDArray[np.int64], str, str], str],
        target: str,
        name: str,
        scale: NDArray[np.float32],
        specs: Sequence[QuantSpec],
        axis: int,
        ndim: int,
    ) -> None:
        """One Quant node for the entries of each width, joined along `axis` and put back in order.

        Args:
            part: adds what selects some entries; takes their numbers, and names for a node and for an initialiser.
            target: the result.
            name: prefix of initialisers.
            scale: shape (entries,).
            specs: a grid for each entry.
            axis: dimension of the entries.
            ndim: dimensions of the tensor.
        """
        bits = np.array([spec.bits for spec in specs])
        order, parts = [], []
        for width in np.unique(bits).tolist():
            entries = np.flatnonzero(bits == width)
            prefix, output = f"{name}.{width}bits", f"{target}.{width}bits"
            source = part(entries, f"{output}.selected", prefix)
            chosen = _along(scale[entries], ndim, axis)
            parts.append(self.quant(source, output, prefix, chosen, specs[entries[0]]))
            order.append(entries)
        back = self.store(f"{name}.order", np.argsort(np.concatenate(order)))
        self.node("Gather", [self.node("Concat", parts, f"{target}.joined", axis=axis), back], target, axis=axis)

    def weight(self, layer: QuantisedLayer, name: str, target: str) -> None:
        """The weights of a layer, stored as integers (QCDQ) or as multiples of the step (QONNX)."""
        codes = layer.codes.numpy()
        steps = layer.weight_step.numpy()
        axis = filter_axis(layer.module)
        specs = one_or_each(layer.weights)
        prefix = f"{name}.weight"
        if self.format == "qonnx":
            scale = _along(steps, codes.ndim, axis)
            values = codes.astype(np.float32) * scale
            if len(specs) == 1:
                self.quant(self.store(f"{prefix}.values", values), target, prefix, scale, specs[0])
                return

            def part(filters: NDArray[np.int64], selected: str, prefix: str) -> str:
                return self.store(f"{prefix}.values", values.take(filters, axis))

            self.quant_by_width(part, target, prefix, steps, specs, axis, codes.ndim)
            return
        stored = self.store(f"{prefix}.codes", codes)
        # Clip has one pair of bounds: where filters differ, the integers lie within their grids, which metadata tells
        clipped = self.clip(stored, f"{prefix}.clipped", prefix, specs[0]) if len(specs) == 1 else stored
        if layer.activation_step.dim() and channel_axis(layer.module) == -1:
            # onnxruntime fuses DequantizeLinear with MatMul, and then rounds the input again: steps stand outside
            one, zero = self.store(f"{prefix}.scale", np.ones((), np.float32)), np.zeros((), np.int8)
            inputs = [clipped, one, self.store(f"{prefix}.zero_point", zero)]
            codes_name = self.node("DequantizeLinear", inputs, f"{target}.dequantised")
            self.node("Mul", [codes_name, self.store(f"{prefix}.steps", _along(steps, codes.ndim, axis))], target)
            return
        scale_name = self.store(f"{prefix}.scale", steps)
        zero_name = self.store(f"{prefix}.zero_point", np.zeros(steps.shape, np.int8))
        self.node("DequantizeLinear", [clipped, scale_name, zero_name], target, axis=axis)

    def activation(self, layer: QuantisedLayer, name: str, source: str, target: str) -> None:
        """The quantiser of a layer's input."""
        prefix = f"{name}.input"
        specs, axis = one_or_each(layer.activations), channel_axis(layer.module)
        # a linear layer's input may have any number of dimensions before its features
        ndim = 1 if axis == -1 else layer.codes.ndim
        step = layer.activation_step.numpy()
        along = _along(step, ndim, axis)
        if self.format == "qonnx":
            if len(specs) == 1:
                self.quant(source, target, prefix, along, specs[0])
                return

            def part(channels: NDArray[np.int64], selected: str, prefix: str) -> str:
                return self.node("Gather", [source, self.store(f"{prefix}.channels", channels)], selected, axis=axis)

            self.quant_by_width(part, target, prefix, step, specs, axis, ndim)
        elif step.ndim == 0:
            self.quantise_and_back(source, target, prefix, self.store(f"{prefix}.scale", along), specs[0])
        else:
            # onnxruntime takes steps per channel for those of a whole tensor when it fuses, so they stand outside
            steps = self.store(f"{prefix}.steps", along)
            source = self.node("Div", [source, steps], f"{target}.divided")
            for op, bound, codes in (
                ("Max", "lower", [spec.lower for spec in specs]), ("Min", "upper", [spec.upper for spec in specs])
            ):  # fmt: skip
                if len(specs) > 1:
                    stored = self.store(f"{prefix}.{bound}", _along(np.array(codes, np.float32), ndim, axis))
                    source = self.node(op, [source, stored], f"{target}.{bound}")
            one = self.store(f"{prefix}.scale", np.ones((), np.float32))
            whole = specs[0] if len(specs) == 1 else QuantSpec(8, specs[0].signed)
            self.quantise_and_back(source, f"{target}.dequantised", prefix, one, whole)
            self.node("Mul", [f"{target}.dequantised", steps], target)

    def quantise_and_back(self, source: str, target: str, name: str, scale: str, spec: QuantSpec) -> None:
        """QuantizeLinear, Clip and DequantizeLinear of a tensor with one scale."""
        zero = self.store(f"{name}.zero_point", np.zeros((), np.int8 if spec.signed else np.uint8))
        codes = self.node("QuantizeLinear", [source, scale, zero], f"{target}.codes")
        clipped = self.clip(codes, f"{target}.clipped", name, spec)
        self.node("DequantizeLinear", [clipped, scale, zero], target)


def placed_name(node: NodeProto) -> str:
    """Path of the module that a placeholder stands for."""
    value: bytes = next(a.s for a in node.attribute if a.name == "name")
    return value.decode()


def placed_rank(node: NodeProto) -> int:
    """Number of dimensions of a placeholder's tensor."""
    return next(int(a.i) for a in node.attribute if a.name == "rank")


def _name_operators(nodes: list[NodeProto], weights: Mapping[str, str]) -> None:
    """Gives the operator that uses a layer's weights the layer's name; later uses get #1, #2, ... appended.

    Args:
        nodes: the new graph's nodes, in order; renamed in place.
        weights: layer name by tensor of dequantised weights.
    """
    layers = dict(weights)
    uses: dict[str, int] = {}
    for node in nodes:
        used = next((layers[i] for i in node.input if i in layers), None)
        if used is None:
            continue
        if node.op_type in ("Transpose", "Identity"):
            layers[node.output[0]] = used
            continue
        count = uses.get(used, 0)
        uses[used] = count + 1
        node.name = used if count == 0 else f"{used}#{count}"


def expand(
    template: onnx.ModelProto, layers: list[QuantisedLayer], format: str, names: Mapping[str, str]
) -> onnx.ModelProto:
    """Replaces the placeholders of a traced network.

    Args:
        template: graph with placeholders that name layers.
        layers: the layers, by whose name the placeholders refer to them.
        format: "qcdq" or "qonnx".
        names: name to write, by layer name.

    Returns:
        a new model; equal quantisers of one tensor are merged.
    """
    by_name = {layer.name: layer for layer in layers}
    writer = _Writer(format)
    alias: dict[str, str] = {}
    merged: dict[tuple[str, ...], str] = {}
    weights: dict[str, str] = {}
    stored = {t.name for t in template.graph.initializer}
    counts: dict[str, int] = {}
    for node in template.graph.node:
        inputs = [alias.get(i, i) for i in node.input]
        if node.op_type == "Identity" and inputs[0] in stored:
            alias[node.output[0]] = inputs[0]
            continue
        if node.domain != PLACEHOLDERS:
            copied = NodeProto()
            copied.CopyFrom(node)
            del copied.input[:]
            copied.input.extend(inputs)
            writer.nodes.append(copied)
            continue
        layer = by_name[placed_name(node)]
        name = names[layer.name]
        key = (WEIGHT, name) if node.op_type == WEIGHT else (ACTIVATION, name, inputs[0])
        if key in merged:
            alias[node.output[0]] = merged[key]
            continue
        if node.op_type == WEIGHT:
            target = f"{name}.weight_quant"
            weights[target] = name
            writer.weight(layer, name, target)
        else:
            counts[name] = counts.get(name, 0) + 1
            target = f"{name}.input_quant" + (f"#{counts[name] - 1}" if counts[name] > 1 else "")
            writer.activation(layer, name, inputs[0], target)
        merged[key] = alias[node.output[0]] = target
    _name_operators(writer.nodes, weights)
    used = {i for node in writer.nodes for i in node.input} | {o.name for o in template.graph.output}
    kept = [t for t in template.graph.initializer if t.name in used]
    graph = helper.make_graph(
        writer.nodes, "quantised", template.graph.input, template.graph.output, [*kept, *writer.initialisers.values()]
    )
    opsets = [o for o in template.opset_import if o.domain != PLACEHOLDERS]
    if format == "qonnx":
        opsets.append(helper.make_opsetid(QONNX_DOMAIN, QONNX_VERSION))
    return helper.make_model(graph, opset_imports=opsets, ir_version=template.ir_version, producer_name="quant")
