"""The quantisers of an ONNX graph: grids and scales, read from its operators."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from quant.spec import QuantSpec, one_or_each

_MOVES = {"Transpose", "Identity", "Pad", "Slice"}
"""Operators that only move values (circular padding is Slice and Concat), so that codes stay codes."""


@dataclass(frozen=True, eq=False)
class Quantiser:
    """A quantiser of a file.

    Attributes:
        specs: the grid, or one for each entry (filter, channel) where they differ.
        scale: shape () or (entries,).
        axis: dimension of the entries; None where the file leaves it open.
        source: tensor that is quantised.
        stored: its values, where they are constant.
        tensor: integer codes (QCDQ) or values (QONNX).
    """

    specs: tuple[QuantSpec, ...]
    scale: NDArray[np.float32]
    axis: int | None
    source: str
    stored: NDArray[Any] | None
    tensor: str

    def along(self, entries: NDArray[Any], ndim: int) -> NDArray[Any]:
        """Entries of shape (), (1,) or (entries,), shaped to broadcast against a tensor of `ndim` dimensions."""
        if entries.size == 1:
            return entries.reshape(())
        return entries.reshape([-1 if i == (self.axis or 0) % ndim else 1 for i in range(ndim)])

    def codes(self) -> NDArray[np.int64]:
        """The integers behind constants: stored ones, or multiples of the step rounded."""
        assert self.stored is not None
        if np.issubdtype(self.stored.dtype, np.integer):
            return self.stored.astype(np.int64)
        scale, lower, upper = (
            self.along(np.asarray(values), self.stored.ndim)
            for values in (self.scale, [s.lower for s in self.specs], [s.upper for s in self.specs])
        )
        return np.clip(np.round(self.stored / scale), lower, upper).astype(np.int64)


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

    def quantiser(self, tensor: str) -> Quantiser | None:
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
        if node.op_type == "Gather":
            return self._by_width(node)
        if node.op_type == "Quant":
            return self._quant(node)
        if node.op_type == "Mul":
            return self._outside(node)
        return self._dequantised(node) if node.op_type == "DequantizeLinear" else None

    def _quant(self, node: NodeProto) -> Quantiser:
        tensor = node.output[0]
        scale, bits = self.constant(node.input[1], tensor), self.constant(node.input[3], tensor)
        if self.constant(node.input[2], tensor).any():
            raise ValueError(f"{tensor}: zero point is not 0")
        signed, narrow = (bool(helper.get_node_attr_value(node, key)) for key in ("signed", "narrow"))
        spec = QuantSpec(int(bits), signed, narrow)
        axis, flat = _flat(scale, tensor), scale.reshape(-1) if scale.ndim else scale
        return Quantiser((spec,), flat, axis, node.input[0], self.values.get(node.input[0]), tensor)

    def _by_width(self, node: NodeProto) -> Quantiser | None:
        """The quantiser that is put together from one Quant node per width: Gather(Concat(Quant, ...))."""
        joined, order = self.producer.get(node.input[0]), self.values.get(node.input[1])
        if joined is None or joined.op_type != "Concat" or order is None:
            return None
        found = [self.quantiser(name) for name in joined.input]
        parts = [part for part in found if part is not None]
        where, axis = node.output[0], int(helper.get_node_attr_value(node, "axis"))
        if len(parts) < len(found):
            return None
        specs = [spec for part in parts for spec in _each_spec(part)]
        scale = np.concatenate([part.scale for part in parts])
        if helper.get_node_attr_value(joined, "axis") != axis or sorted(order.tolist()) != list(range(len(specs))):
            raise ValueError(f"{where}: Gather does not put the parts of {joined.output[0]!r} in a new order")
        stored, source = None, parts[0].source
        values = [part.stored for part in parts if part.stored is not None]
        if len(values) == len(parts):
            stored = np.concatenate(values, axis).take(order, axis)
        else:
            source = self._selected(parts, order, axis, where)
        specs = [specs[i] for i in order]
        return Quantiser(one_or_each(specs), scale[order], axis, source, stored, where)

    def _selected(self, parts: list[Quantiser], order: NDArray[Any], axis: int, where: str) -> str:
        """The tensor whose entries the parts select, each one once."""
        nodes = [self.producer.get(part.source) for part in parts]
        selections = [node for node in nodes if node is not None and node.op_type == "Gather"]
        if len(selections) == len(parts) and len({node.input[0] for node in selections}) == 1:
            entries = np.concatenate([self.constant(node.input[1], where) for node in selections])
            axes = {helper.get_node_attr_value(node, "axis") for node in selections}
            if axes == {axis} and len(entries) == len(order) and np.array_equal(entries[order], np.arange(len(order))):
                return selections[0].input[0]
        raise ValueError(f"{where}: its parts are not the entries of one tensor in their order")

    def _dequantised(self, node: NodeProto) -> Quantiser:
        tensor = node.output[0]
        scale, zero = self.constant(node.input[1], tensor), self.constant(node.input[2], tensor)
        if zero.any():
            raise ValueError(f"{tensor}: zero point is not 0")
        signed = zero.dtype == np.int8
        info = np.iinfo(zero.dtype)
        lower, upper, codes = int(info.min), int(info.max), node.input[0]
        source, axis = codes, next((int(a.i) for a in node.attribute if a.name == "axis"), 1) if scale.ndim else None
        clip = self.producer.get(codes)
        if clip is not None and clip.op_type == "Clip":
            lower, upper = (int(self.constant(name, tensor)) for name in clip.input[1:3])
            source = clip.input[0]
        specs = (_bounds_to_spec(lower, upper, signed, tensor),)
        quantise = self.producer.get(source)
        if quantise is not None and quantise.op_type == "QuantizeLinear":
            forth = [self.constant(name, tensor) for name in quantise.input[1:3]]
            if not (
                np.array_equal(forth[0], scale) and np.array_equal(forth[1], zero) and forth[1].dtype == zero.dtype
            ):
                raise ValueError(f"{tensor}: QuantizeLinear and DequantizeLinear differ in scale or zero point")
        return Quantiser(specs, scale, axis, source, self.values.get(source), codes)

    def _outside(self, node: NodeProto) -> Quantiser | None:
        """A quantiser of step 1 between Div and Mul by the steps, or constants (weights) that Mul multiplies by them."""
        steps, back = self.values.get(node.input[1]), self.producer.get(node.input[0])
        if steps is None or back is None or back.op_type != "DequantizeLinear":
            return None
        inner, where = self._dequantised(back), node.output[0]
        if inner.scale.shape != () or inner.scale != 1:
            raise ValueError(f"{where}: codes that are multiplied by steps need a quantiser of step 1")
        specs, source, axis = inner.specs, inner.source, _flat(steps, where)
        if inner.stored is None:
            source, bounds = self._divided(inner.source, steps, where)
            if bounds is not None:
                lowest, largest = (bound.reshape(-1).astype(int).tolist() for bound in bounds)
                pairs, signed = zip(lowest, largest, strict=True), specs[0].signed
                specs = one_or_each([_bounds_to_spec(lower, upper, signed, where) for lower, upper in pairs])
        return Quantiser(specs, steps.reshape(-1), axis, source, inner.stored, inner.tensor)

    def _divided(
        self, codes: str, steps: NDArray[Any], where: str
    ) -> tuple[str, tuple[NDArray[Any], NDArray[Any]] | None]:
        """What is divided by the steps before it is rounded, and the channels' smallest and largest codes if clipped."""
        quantise, bounds = self.producer.get(codes), []
        tensor = "" if quantise is None or quantise.op_type != "QuantizeLinear" else quantise.input[0]
        for op in ("Min", "Max"):
            clip = self.producer.get(tensor)
            if clip is not None and clip.op_type == op:
                bounds.append(self.constant(clip.input[1], where))
                tensor = clip.input[0]
        divide = self.producer.get(tensor)
        divisor = None if divide is None or divide.op_type != "Div" else self.constant(divide.input[1], where)
        if divide is None or divisor is None or not np.array_equal(divisor, steps):
            raise ValueError(f"{where}: steps that divide before rounding and those that multiply afterwards differ")
        if not bounds:
            return divide.input[0], None
        if len(bounds) < 2 or any(b.shape != steps.shape or (b != np.round(b)).any() for b in bounds):
            raise ValueError(f"{where}: the channels' codes are not clipped to pairs of integers")
        return divide.input[0], (bounds[1], bounds[0])


def _flat(entries: NDArray[Any], where: str) -> int | None:
    """The dimension that holds all entries; None for a single one."""
    if entries.size == 1:
        return None
    if max(entries.shape) != entries.size:
        raise ValueError(f"{where}: steps of shape {entries.shape} have entries along several dimensions")
    return -1 if entries.ndim == 1 else int(np.argmax(entries.shape))


def _each_spec(part: Quantiser) -> tuple[QuantSpec, ...]:
    return part.specs if len(part.specs) > 1 else part.specs * part.scale.size
