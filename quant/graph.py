"""Reads the quantised layers back from an exported ONNX file: integers, steps, widths and shapes, from its graph.

Widths are those of the operators. Only integers whose filters differ in width (QCDQ) have no operator that could tell:
their widths are listed in the file's metadata, and every integer must lie in its filter's grid. Where metadata and
operators both tell, they must agree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from quant.operators import Graph, Quantiser
from quant.shapes import measured_shapes
from quant.spec import QuantSpec, one_or_each, widths

LAYERS_KEY = "dnas.layers"
"""Key of the JSON list of layers and widths in the file's metadata_props."""
LINEAR = ("Gemm", "MatMul")
OPERATORS = ("Conv", "ConvTranspose", *LINEAR)


@dataclass(frozen=True)
class ExportedLayer:
    """One use of a quantised layer in a file.

    Attributes:
        name: the layer's name, with #1, #2, ... appended for its later uses.
        op: Conv, ConvTranspose, Gemm or MatMul.
        weight_shape: as in torch: (out, in / groups, ...), transposed convolutions (in, out / groups, ...).
        weight_bits, weight_narrow: grid of the (signed) weights; weight_bits has one width for each filter (entry of
            weight_steps) where they are not all alike.
        act_bits, act_signed, act_narrow: grid of the input; act_bits has one width for each input channel where they
            are not all alike.
        groups: groups of a convolution, else 1.
        in_channels, out_channels: channels or features.
        input_positions, output_positions: spatial positions (or tokens) of one image.
        weight_codes: integers, int64, shape weight_shape.
        weight_steps: float32, shape (filters,).
        act_step: float32, shape () or (in_channels,).
        act_tensor: tensor of the quantised input: integer codes (QCDQ) or values (QONNX).
        batch_norm: module path of the batch normalisation that steps, signs and bias have absorbed.
    """

    name: str
    op: str
    weight_shape: tuple[int, ...]
    weight_bits: int | tuple[int, ...]
    weight_narrow: bool
    act_bits: int | tuple[int, ...]
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
    batch_norm: str | None = None

    @property
    def weights(self) -> tuple[QuantSpec, ...]:
        """Grid of each filter."""
        return tuple(
            QuantSpec(bits, True, self.weight_narrow) for bits in _each(self.weight_bits, self.weight_steps.size)
        )

    @property
    def activations(self) -> tuple[QuantSpec, ...]:
        """Grid of the input: one, or one for each channel where the channels have steps."""
        return tuple(
            QuantSpec(bits, self.act_signed, self.act_narrow) for bits in _each(self.act_bits, self.act_step.size)
        )

    @property
    def channel_axis(self) -> int:
        """The dimension of the input that holds channels or features."""
        return -1 if self.op in LINEAR else 1

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
        found = {key: getattr(self, key) for key in keys} | {"weight_shape": self.weight_shape}
        if self.batch_norm is not None:
            found["batch_norm"] = self.batch_norm
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _each(bits: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    return (bits,) * count if isinstance(bits, int) else bits


def listed_layers(model: ModelProto) -> dict[str, dict[str, Any]]:
    """What the metadata of a file's content lists, by layer name; empty without metadata."""
    text = next((p.value for p in model.metadata_props if p.key == LAYERS_KEY), "[]")
    return {entry["name"]: entry for entry in json.loads(text)}


def _weight_grids(
    found: Quantiser, codes: NDArray[np.int64], axis: int, listed: Mapping[str, Any], where: str
) -> tuple[QuantSpec, ...]:
    """The grids of a layer's weights: of the operators, or, for integers of several widths, of the metadata."""
    bits = listed.get("weight_bits")
    if not (isinstance(bits, list) and np.issubdtype(found.stored.dtype, np.integer)):  # type: ignore[union-attr]
        return found.specs
    if found.specs != (QuantSpec(8, True),) or len(bits) != codes.shape[axis]:
        raise ValueError(
            f"{where}: weight grid: the metadata {LAYERS_KEY!r} lists {len(bits)} widths; the operators have "
            f"{codes.shape[axis]} filters at {widths(found.specs)} bits"
        )
    specs = [QuantSpec(int(width), True, bool(listed["narrow"])) for width in bits]
    for i, spec in enumerate(specs):
        filter_codes = codes.take(i, axis)
        lower, upper = int(filter_codes.min()), int(filter_codes.max())
        if lower < spec.lower or upper > spec.upper:
            raise ValueError(
                f"{where}: weight grid: filter {i} holds integers {lower}..{upper}; its {spec.bits} bits allow "
                f"{spec.lower}..{spec.upper}"
            )
    return one_or_each(specs)


def _check_listed(layer: "ExportedLayer", listed: Mapping[str, Any]) -> None:
    """Compares what the metadata lists of a layer with what was read."""
    for what, found, keys in (
        ("weight grid", (layer.weight_bits, layer.weight_narrow), ("weight_bits", "narrow")),
        ("activation grid", (layer.act_bits, layer.act_signed), ("act_bits", "act_signed")),
    ):
        values = [listed.get(key) for key in keys]
        wanted = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        if wanted != found:
            raise ValueError(
                f"layer {layer.name}: {what} of {found[0]} bits ({keys[1]}: {found[1]}); the metadata {LAYERS_KEY!r} "
                f"says {wanted[0]} ({keys[1]}: {wanted[1]})"
            )


def image_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors for a batch of one, by ONNX shape inference; unknown dimensions are 0.

    Args:
        model: an exported file; not changed.
    """
    clone = ModelProto()
    clone.CopyFrom(model)
    clone.graph.ClearField("value_info")  # exporters write them for a batch of any size
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
    operands = [name for node in clone.graph.node if node.op_type in OPERATORS for name in (*node.input, *node.output)]
    unknown = {name for name in operands if 0 in shapes.get(name, (0,))}
    unknown -= {t.name for t in clone.graph.initializer}
    shapes |= measured_shapes(clone, sorted(unknown)) if unknown else {}
    return shapes | {t.name: tuple(t.dims) for t in inferred.graph.initializer}


def _positions(shapes: Mapping[str, tuple[int, ...]], tensor: str, linear: bool, where: str) -> int:
    if tensor not in shapes:
        raise ValueError(f"{where}: ONNX shape inference does not know the shape of tensor {tensor!r}")
    shape = shapes[tensor]
    around = (
        shape[:-1] if linear else (shape[0], *shape[2:])
    )  # the first dimension may hold several windows of the image
    if 0 in around:
        raise ValueError(f"{where}: ONNX shape inference does not know the positions of {tensor!r}; found {shape}")
    return int(np.prod(around, dtype=np.int64))


def layers_of(model: ModelProto) -> list[ExportedLayer]:
    """The quantised layers of a file's content in execution order; see read_layers."""
    graph = Graph(model)
    shapes, listed = image_shapes(model), listed_layers(model)
    result = []
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            continue
        weight = graph.quantiser(node.input[1])
        if weight is None or weight.stored is None:
            continue
        act = graph.quantiser(node.input[0])
        if act is None:
            raise ValueError(f"{node.name}: the weights are quantised but the input is not")
        entry = listed.get(node.name.split("#")[0], {})
        codes = weight.codes()
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        groups = int(attributes.get("group", 1))
        linear, transposed = node.op_type in LINEAR, node.op_type == "ConvTranspose"
        axes = (weight.axis, int(transposed)), (act.axis, -1 if linear else 1)
        if any(found not in (None, needed) for found, needed in axes):
            raise ValueError(
                f"{node.name}: scales along {axes[0][0]} (weights) and {axes[1][0]} (input) of {node.op_type}"
            )
        weights = _weight_grids(weight, codes, int(transposed), entry, f"layer {node.name}")
        first, second = codes.shape[:2]
        inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
        found = ExportedLayer(
            name=node.name,
            op=node.op_type,
            weight_shape=codes.shape,
            weight_bits=widths(weights),
            weight_narrow=weights[0].narrow,
            act_bits=widths(act.specs),
            act_signed=act.specs[0].signed,
            act_narrow=act.specs[0].narrow,
            groups=groups,
            in_channels=inputs,
            out_channels=outputs,
            input_positions=_positions(shapes, node.input[0], linear, node.name),
            output_positions=_positions(shapes, node.output[0], linear, node.name),
            weight_codes=codes,
            weight_steps=weight.scale.reshape(-1),
            act_step=act.scale,
            act_tensor=act.tensor,
            batch_norm=entry.get("batch_norm"),
        )
        if entry:
            _check_listed(found, entry)
        result.append(found)
    return result


def read_layers(path: str | Path) -> list[ExportedLayer]:
    """The quantised layers of an exported file in execution order; see the module for where widths are taken from.

    Raises:
        ValueError: a quantiser that is no symmetric grid, an integer outside of its filter's grid, metadata that
            contradict the operators, or positions that shape inference cannot tell.
    """
    return layers_of(onnx.load(str(path)))
