"""Expands the placeholder operators of a traced network into the ONNX operators of either format."""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quant.brevitas import QuantisedLayer, filter_axis
from quant.spec import QuantSpec

PLACEHOLDERS = "quant.placeholder"
"""Operator domain of the placeholders; never in a finished file."""
WEIGHT, ACTIVATION = "Weight", "Activation"
QONNX_DOMAIN, QONNX_VERSION = "qonnx.custom_op.general", 2


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

    def clip(self, source: str, target: str, name: str, spec: QuantSpec) -> str:
        """Clips codes to the grid where the 8-bit type alone does not; returns the tensor of clipped codes."""
        if spec.bits == 8 and not spec.narrow:
            return source
        kind = np.int8 if spec.signed else np.uint8
        lower = self.store(f"{name}.lower", np.array(spec.lower, kind))
        upper = self.store(f"{name}.upper", np.array(spec.upper, kind))
        self.nodes.append(helper.make_node("Clip", [source, lower, upper], [target], name=target))
        return target

    def quant(self, source: str, target: str, name: str, scale: NDArray[np.float32], spec: QuantSpec) -> None:
        """One Quant node of QONNX; scale broadcasts against the tensor."""
        inputs = [
            source,
            self.store(f"{name}.scale", scale),
            self.store(f"{name}.zero_point", np.zeros((), np.float32)),
            self.store(f"{name}.bits", np.array(spec.bits, np.float32)),
        ]
        self.nodes.append(
            helper.make_node(
                "Quant", inputs, [target], name=target, domain=QONNX_DOMAIN,
                signed=int(spec.signed), narrow=int(spec.narrow), rounding_mode="ROUND",
            )
        )  # fmt: skip

    def weight(self, layer: QuantisedLayer, name: str, target: str) -> None:
        """The weights of a layer, stored as integers (QCDQ) or as multiples of the step (QONNX)."""
        codes = layer.codes.numpy()
        steps = layer.weight_step.numpy()
        axis = filter_axis(layer.module)
        prefix = f"{name}.weight"
        if self.format == "qonnx":
            scale = steps.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
            stored = self.store(f"{prefix}.values", codes.astype(np.float32) * scale)
            self.quant(stored, target, prefix, scale, layer.weight)
            return
        stored = self.store(f"{prefix}.codes", codes)
        clipped = self.clip(stored, f"{prefix}.clipped", prefix, layer.weight)
        scale_name = self.store(f"{prefix}.scale", steps)
        zero = self.store(f"{prefix}.zero_point", np.zeros(steps.shape, np.int8))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [clipped, scale_name, zero], [target], name=target, axis=axis)
        )

    def activation(self, layer: QuantisedLayer, name: str, source: str, target: str) -> None:
        """The quantiser of a layer's input."""
        prefix = f"{name}.input"
        step = layer.activation_step.numpy().reshape(())
        spec = layer.activation
        if self.format == "qonnx":
            self.quant(source, target, prefix, step, spec)
            return
        scale = self.store(f"{prefix}.scale", step)
        zero = self.store(f"{prefix}.zero_point", np.zeros((), np.int8 if spec.signed else np.uint8))
        codes = f"{target}.codes"
        self.nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [codes], name=codes))
        clipped = self.clip(codes, f"{target}.clipped", prefix, spec)
        self.nodes.append(helper.make_node("DequantizeLinear", [clipped, scale, zero], [target], name=target))


def _attribute(node: NodeProto, name: str) -> str:
    value: bytes = next(a.s for a in node.attribute if a.name == name)
    return value.decode()


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
        layer = by_name[_attribute(node, "name")]
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
