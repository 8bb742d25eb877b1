"""Reads the quantised layers back from an exported ONNX file: integers, steps, widths and shapes, from its graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from quant.spec import QuantSpec

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVES = {"Transpose", "Identity", "Pad", "Slice"}
"""Operators that only move values (circular padding is Slice and Concat), so that codes stay codes."""


@dataclass(frozen=True)
class ExportedLayer:
    """One use of a quantised layer in a file.

    Attributes:
        name: the layer's name, with #1, #2, ... appended for its later uses.
        op: Conv, ConvTranspose, Gemm or MatMul.
        weight_shape: as in torch: (out, in / groups, ...), transposed convolutions (in, out / groups, ...).
        weight_bits, weight_narrow: grid of the (signed) weights.
        act_bits, act_signed, act_narrow: grid of the input.
        groups: groups of a convolution, else 1.
        in_channels, out_channels: channels or features.
        input_positions, output_positions: spatial positions (or tokens) of one image.
        weight_codes: integers, int64, shape weight_shape.
        weight_steps: float32, shape (filters,).
        act_step: float32, shape ().
        act_tensor: tensor of the quantised input: integer codes (QCDQ) or values (QONNX).
    """

    name: str
    op: str
    weight_shape: tuple[int, ...]
    weight_bits: int
    weight_narrow: bool
    act_bits: int
    act_signed: bool
    act_narrow: bool
    groups: int
    in_channels: int
    out_channels: int
    input_positions: int
    output_positions: int
    weight_codes: NDArray[np.int64] = field(compare=False, repr=False)
    weight_steps: NDArray[np.float32] = field(compare=False, repr=False)
    act_step: NDArray[np.float32] = field(compare=False, repr=False)
    act_tensor: str = field(compare=False, repr=False)

    @property
    def weight(self) -> QuantSpec:
        """Grid of the weights."""
        return QuantSpec(self.weight_bits, True, self.weight_narrow)

    @property
    def activation(self) -> QuantSpec:
        """Grid of the input."""
        return QuantSpec(self.act_bits, self.act_signed, self.act_narrow)

    @property
    def layer(self) -> str:
        """The layer's name without the number of the use."""
        return self.name.split("#")[0]

    def described(self) -> dict[str, Any]:
        """What a cost model needs, JSON-able; no tensors."""
        keys = (
            "name", "op", "weight_bits", "act_bits", "act_signed", "groups", "in_channels", "out_channels",
            "input_positions", "output_positions",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys} | {"weight_shape": list(self.weight_shape)}


@dataclass(frozen=True)
class _Quantiser:
    spec: QuantSpec
    scale: NDArray[np.float32]
    source: str
    tensor: str


def _bounds_to_spec(lower: int, upper: int, signed: bool, where: str) -> QuantSpec:
    bits = (upper + 1).bit_length() - 1 + int(signed)
    if 1 <= bits <= 16 and not (signed and bits < 2):
        for narrow in (False, True) if signed else (False,):
            spec = QuantSpec(bits, signed, narrow)
            if (spec.lower, spec.upper) == (lower, upper):
                return spec
    raise ValueError(f"{where}: codes {lower}..{upper} are no {'signed' if signed else 'unsigned'} grid of whole bits")


class Graph:
    """An ONNX graph with look-ups by tensor name.

    Attributes:
        model: the file's content.
        values: constants (initialisers and Constant nodes) by tensor name.
        producer: node by output tensor.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.values: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        for node in model.graph.node:
            for output in node.output:
                self.producer[output] = node
            if node.op_type == "Constant":
                self.values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def constant(self, name: str, where: str) -> NDArray[Any]:
        """The value of a constant tensor.

        Raises:
            ValueError: it is computed, not constant.
        """
        if name not in self.values:
            raise ValueError(f"{where}: tensor {name!r} is not a constant of the file")
        return self.values[name]

    def quantiser(self, tensor: str) -> _Quantiser | None:
        """The quantiser that makes this tensor, seen through transposes and padding; None if there is none."""
        node = self.producer.get(tensor)
        if node is None:
            return None
        if node.op_type in _MOVES:
            return self.quantiser(node.input[0])
        if node.op_type == "Concat":
            parts = [self.quantiser(name) for name in node.input]
            same = all(p is not None and parts[0] is not None and p.tensor == parts[0].tensor for p in parts)
            return parts[0] if same else None
        if node.op_type == "Quant":
            scale, bits = self.constant(node.input[1], tensor), self.constant(node.input[3], tensor)
            if self.constant(node.input[2], tensor).any():
                raise ValueError(f"{tensor}: zero point is not 0")
            signed, narrow = (bool(helper.get_node_attr_value(node, key)) for key in ("signed", "narrow"))
            return _Quantiser(QuantSpec(int(bits), signed, narrow), scale, node.input[0], node.output[0])
        if node.op_type != "DequantizeLinear":
            return None
        scale, zero = self.constant(node.input[1], tensor), self.constant(node.input[2], tensor)
        if zero.any():
            raise ValueError(f"{tensor}: zero point is not 0")
        signed = zero.dtype == np.int8
        info = np.iinfo(zero.dtype)
        lower, upper, codes = int(info.min), int(info.max), node.input[0]
        source = codes
        clip = self.producer.get(codes)
        if clip is not None and clip.op_type == "Clip":
            lower, upper = (int(self.constant(name, tensor)) for name in clip.input[1:3])
            source = clip.input[0]
        quantise = self.producer.get(source)
        if quantise is not None and quantise.op_type == "QuantizeLinear":
            forth = [self.constant(name, tensor) for name in quantise.input[1:3]]
            if not (
                np.array_equal(forth[0], scale) and np.array_equal(forth[1], zero) and forth[1].dtype == zero.dtype
            ):
                raise ValueError(f"{tensor}: QuantizeLinear and DequantizeLinear differ in scale or zero point")
        return _Quantiser(_bounds_to_spec(lower, upper, signed, tensor), scale, source, codes)

    def weight_codes(self, found: _Quantiser, where: str) -> NDArray[np.int64]:
        """The integer weights behind a quantiser of constants: stored integers, or multiples of the step rounded."""
        stored = self.constant(found.source, where)
        if np.issubdtype(stored.dtype, np.integer):
            return stored.astype(np.int64)
        codes = np.clip(np.round(stored / found.scale), found.spec.lower, found.spec.upper)
        return codes.astype(np.int64)


def image_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors for a batch of one, by ONNX shape inference; unknown dimensions are 0.

    Args:
        model: an exported file; not changed.
    """
    clone = ModelProto()
    clone.CopyFrom(model)
    for tensor in [*clone.graph.input, *clone.graph.output]:
        dims = tensor.type.tensor_type.shape.dim
        if tensor in clone.graph.input and dims:
            dims[0].dim_value = 1
        elif tensor in clone.graph.output:
            tensor.type.tensor_type.ClearField("shape")
    for node in clone.graph.node:
        if node.op_type == "Quant":
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(clone, data_prop=True)
    known = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in known}
    return shapes | {t.name: tuple(t.dims) for t in inferred.graph.initializer}


def _positions(shapes: Mapping[str, tuple[int, ...]], tensor: str, linear: bool, where: str) -> int:
    if tensor not in shapes:
        raise ValueError(f"{where}: ONNX shape inference does not know the shape of tensor {tensor!r}")
    shape = shapes[tensor]
    spatial = shape[1:-1] if linear else shape[2:]
    if 0 in spatial:
        raise ValueError(f"{where}: ONNX shape inference does not know the positions of {tensor!r}; found {shape}")
    return int(np.prod(spatial, dtype=np.int64))


def layers_of(model: ModelProto) -> list[ExportedLayer]:
    """The quantised layers of a file's content in execution order; see read_layers."""
    graph = Graph(model)
    shapes = image_shapes(model)
    result = []
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            continue
        weight = graph.quantiser(node.input[1])
        if weight is None or weight.source not in graph.values:
            continue
        act = graph.quantiser(node.input[0])
        if act is None:
            raise ValueError(f"{node.name}: the weights are quantised but the input is not")
        codes = graph.weight_codes(weight, node.name)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        groups = int(attributes.get("group", 1))
        linear = node.op_type in ("Gemm", "MatMul")
        first, second = codes.shape[:2]
        inputs, outputs = (first, second * groups) if node.op_type == "ConvTranspose" else (second * groups, first)
        result.append(
            ExportedLayer(
                name=node.name,
                op=node.op_type,
                weight_shape=codes.shape,
                weight_bits=weight.spec.bits,
                weight_narrow=weight.spec.narrow,
                act_bits=act.spec.bits,
                act_signed=act.spec.signed,
                act_narrow=act.spec.narrow,
                groups=groups,
                in_channels=inputs,
                out_channels=outputs,
                input_positions=_positions(shapes, node.input[0], linear, node.name),
                output_positions=_positions(shapes, node.output[0], linear, node.name),
                weight_codes=codes,
                weight_steps=weight.scale.reshape(-1),
                act_step=act.scale.reshape(()),
                act_tensor=act.tensor,
            )
        )
    return result


def read_layers(path: str | Path) -> list[ExportedLayer]:
    """The quantised layers of an exported file in execution order, widths taken from its operators.

    Raises:
        ValueError: a quantiser that is no symmetric grid, or positions that shape inference cannot tell.
    """
    return layers_of(onnx.load(str(path)))
