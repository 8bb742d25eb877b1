"""An exported network without its quantisers: what the same filters, kernels and depth cost in floats."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper


def without_quantisers(content: bytes) -> bytes:
    """A QCDQ file with float weights, at the values of their codes, and with activations that are not rounded.

    Args:
        content: an ONNX file as `export` writes it in the format `qcdq`.

    Returns:
        the file without QuantizeLinear, DequantizeLinear, and the Clip of codes between them.

    Raises:
        ValueError: a DequantizeLinear whose codes are neither constants nor come from a QuantizeLinear.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    real: dict[str, str] = {}  # what stands for a tensor from here on
    weights: list[TensorProto] = []
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            source = _codes(node.input[0], made_by)
            if source in constants:
                name = node.output[0]
                weights.append(numpy_helper.from_array(_values(node, source, constants, made_by), name))
            elif source in made_by and made_by[source].op_type == "QuantizeLinear":
                read = made_by[source].input[0]
                real[node.output[0]] = real.get(read, read)
            else:
                raise ValueError(f"{node.name}: codes are neither constants nor of a QuantizeLinear; export as qcdq")
        else:
            node.input[:] = [real.get(name, name) for name in node.input]
            kept.append(node)
    kept = _read(kept, {output.name for output in graph.output})
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    tensors = [tensor for tensor in (*graph.initializer, *weights) if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    onnx.checker.check_model(model)
    found: bytes = model.SerializeToString()
    return found


def _codes(name: str, made_by: dict[str, NodeProto]) -> str:
    """The tensor of codes behind a clip to fewer than eight bits."""
    while name in made_by and made_by[name].op_type == "Clip":
        name = made_by[name].input[0]
    return name


def _values(
    node: NodeProto, source: str, constants: dict[str, TensorProto], made_by: dict[str, NodeProto]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Codes times steps; clips on the way are applied."""
    codes = numpy_helper.to_array(constants[source]).astype(np.float32)
    name, clips = node.input[0], []
    while name != source:
        clips.append(made_by[name])
        name = made_by[name].input[0]
    for clip in reversed(clips):
        lower, upper = (float(numpy_helper.to_array(constants[bound])) for bound in clip.input[1:3])
        codes = codes.clip(lower, upper)
    scale, zero = (numpy_helper.to_array(constants[name]).astype(np.float32) for name in node.input[1:3])
    if scale.ndim:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % codes.ndim
        shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((codes - zero) * scale, dtype=np.float32)


def _read(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """The nodes whose results are read, in their order."""
    found = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            found.append(node)
            wanted |= set(node.input)
    return found[::-1]
