"""An exported network without its quantisers: what the same filters, kernels and depth cost in floats."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from quant.graph import LAYERS_KEY, listed_layers


def without_quantisers(content: bytes) -> bytes:
    """A QCDQ file with float weights, at the values of their codes, and with activations that are neither rounded nor clipped.

    Args:
        content: an ONNX file as `export` writes it in the format `qcdq`, with one step for each activation tensor.

    Returns:
        the file without QuantizeLinear, DequantizeLinear, the Clip of codes between them, and the list of widths.

    Raises:
        ValueError: a file of another kind, or one whose activations have a step for every channel.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    for name, listed in listed_layers(model).items():
        if isinstance(listed["act_bits"], list):
            raise ValueError(
                f"layer {name}: activations with a step for every channel; one step for a tensor is allowed"
            )
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    real: dict[str, str] = {}  # what stands for a dequantised tensor
    weights: list[TensorProto] = []
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            node.input[:] = [real.get(name, name) for name in node.input]
            kept.append(node)
            continue
        source, clips = _codes(node.input[0], made_by)
        if source in constants:
            weights.append(numpy_helper.from_array(_values(node, source, clips, constants), node.output[0]))
        elif source in made_by and made_by[source].op_type == "QuantizeLinear":
            real[node.output[0]] = made_by[source].input[0]
        else:
            raise ValueError(
                f"DequantizeLinear {node.name!r} reads {source!r}, which is neither a constant nor made by a "
                "QuantizeLinear; give a file that export(format='qcdq') wrote"
            )
    kept = _read(kept, {output.name for output in graph.output})
    for node in kept:
        if "Quant" in node.op_type or node.domain.startswith("qonnx"):
            raise ValueError(
                f"{node.op_type} {node.name!r} is left; give a file that export(format='qcdq') wrote, unoptimised"
            )
    used = {name for node in kept for name in node.input}
    tensors = [tensor for tensor in (*graph.initializer, *weights) if tensor.name in used]
    properties = [entry for entry in model.metadata_props if entry.key != LAYERS_KEY]
    del graph.node[:], graph.value_info[:], graph.initializer[:], model.metadata_props[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    model.metadata_props.extend(properties)
    onnx.checker.check_model(model)
    found: bytes = model.SerializeToString()
    return found


def _codes(name: str, made_by: Mapping[str, NodeProto]) -> tuple[str, list[NodeProto]]:
    """The tensor of codes behind clips to fewer than eight bits, and these, the first one first."""
    clips: list[NodeProto] = []
    while name in made_by and made_by[name].op_type == "Clip":
        clips.insert(0, made_by[name])
        name = made_by[name].input[0]
    return name, clips


def _values(
    node: NodeProto, source: str, clips: Sequence[NodeProto], constants: Mapping[str, TensorProto]
) -> NDArray[np.float32]:
    """Codes times steps; clips on the way are applied."""
    codes = numpy_helper.to_array(constants[source]).astype(np.float32)
    for clip in clips:
        lower, upper = (float(numpy_helper.to_array(constants[bound])) for bound in clip.input[1:3])
        codes = codes.clip(lower, upper)
    scale, zero = (numpy_helper.to_array(constants[name]).astype(np.float32) for name in node.input[1:3])
    if scale.ndim:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % codes.ndim
        shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((codes - zero) * scale, dtype=np.float32)


def _read(nodes: Sequence[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """The nodes whose results are read, in their order."""
    found = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            found.append(node)
            wanted |= set(node.input)
    return found[::-1]
