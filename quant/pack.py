"""Bit packing of integer weights, and the true size of a realised network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from quant.brevitas import filter_axis, quantised_layers

STEP_BYTES = 4
"""Steps and biases are float32."""


def _each(bits: int | Sequence[int], count: int, per: int) -> NDArray[np.int64]:
    """The width of every one of `count` codes, `per` of them to one of several widths."""
    several = np.atleast_1d(np.asarray(bits, np.int64))
    wrong = several[(several < 1) | (several > 16)]
    if wrong.size:
        raise ValueError(f"pack: bits is {wrong[0]}; allowed: 1 to 16")
    found = np.full(count, bits) if np.ndim(bits) == 0 else np.repeat(several, per)
    if len(found) != count:
        raise ValueError(f"pack: {len(several)} widths for {count} codes; needed: one, or one for each filter")
    return found


def _planes(each: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which bits of a code are stored, shape (codes, largest width)."""
    return np.arange(int(each.max(initial=1))) < each[:, None]


def pack(codes: ArrayLike, bits: int | Sequence[int]) -> bytes:
    """Packs integer codes without gaps, least significant bit first, negative codes in two's complement.

    Args:
        codes: integers, any shape, taken in C order; all in -2**(bits-1)..2**(bits-1)-1, or all in 0..2**bits-1.
        bits: width of one code, 1 to 16, or of the codes of each filter (entry along dimension 0).

    Returns:
        as many bytes as the codes' bits fill; unused high bits of the last byte are 0.

    Raises:
        ValueError: a width outside 1..16, not one width for each filter, codes that are no integers, or that do not fit.
    """
    values = np.asarray(codes)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"pack: codes have type {values.dtype}; pass integers")
    flat = values.astype(np.int64).ravel()
    each = _each(bits, flat.size, flat.size // max(len(values), 1) if values.ndim else 1)
    signed = bool((flat < 0).any())
    for width in np.unique(each).tolist():
        lower, upper = int(flat[each == width].min()), int(flat[each == width].max())
        allowed = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
        if lower < allowed[0] or upper > allowed[1]:
            raise ValueError(
                f"pack: codes {lower}..{upper} do not fit {width} bits; allowed: {allowed[0]}..{allowed[1]}"
            )
    stored = _planes(each)
    planes = (flat[:, None] >> np.arange(stored.shape[1])) & 1
    return np.packbits(planes[stored].astype(np.uint8), bitorder="little").tobytes()


def unpack(data: bytes, bits: int | Sequence[int], count: int, signed: bool) -> NDArray[np.int64]:
    """Restores `count` codes written by `pack`.

    Args:
        data: the packed bytes.
        bits: width of one code, 1 to 16, or of the codes of each filter, which has count / filters of them.
        count: number of codes.
        signed: the codes are in two's complement.

    Returns:
        int64, shape (count,).

    Raises:
        ValueError: a width outside 1..16, not one width for each filter, or data of another length than the codes take.
    """
    each = _each(bits, max(count, 0), count // max(np.size(bits), 1))
    needed = (int(each.sum()) + 7) // 8
    if count < 0 or len(data) != needed:
        raise ValueError(f"unpack: {count} codes of {bits} bits take {needed} bytes; found {len(data)}")
    stored = _planes(each)
    planes = np.zeros(stored.shape, np.int64)
    planes[stored] = np.unpackbits(np.frombuffer(data, np.uint8), count=int(each.sum()), bitorder="little")
    values: NDArray[np.int64] = planes @ 2 ** np.arange(stored.shape[1])
    return values - (values >> (each - 1)) * 2**each if signed else values


@dataclass(frozen=True)
class PackedSize:
    """True sizes of a realised network's quantised layers, in bytes.

    Attributes:
        weights: all packed weights, every filter at its own width, each layer padded to whole bytes.
        steps: float32 steps of weights and, once per shared quantiser, of activations; widths are not counted.
        biases: float32 biases of the quantised layers.
        layers: packed weight bytes by layer name.
    """

    weights: int
    steps: int
    biases: int
    layers: dict[str, int]


def packed_bytes(model: nn.Module) -> PackedSize:
    """Packs every quantised layer's weights, each filter at its own width, and counts the bytes.

    Raises:
        ValueError: a weight code that does not fit its filter's width.
    """
    sizes: dict[str, int] = {}
    steps = biases = 0
    activations: dict[int, int] = {}
    for layer in quantised_layers(model):
        module: Any = layer.module
        codes = layer.codes.transpose(0, filter_axis(module)).cpu().numpy()
        sizes[layer.name] = len(pack(codes, [spec.bits for spec in layer.weights]))
        activations[id(module.input_quant)] = layer.activation_step.numel()
        steps += layer.weight_step.numel()
        biases += 0 if module.bias is None else module.bias.numel()
    steps += sum(activations.values())
    return PackedSize(sum(sizes.values()), steps * STEP_BYTES, biases * STEP_BYTES, sizes)
