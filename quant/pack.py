"""Bit packing of integer weights, and the true size of a realised network."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from quant.brevitas import quantised_layers

STEP_BYTES = 4
"""Steps and biases are float32."""


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"pack: bits is {bits}; allowed: 1 to 16")


def pack(codes: ArrayLike, bits: int) -> bytes:
    """Packs integer codes without gaps, least significant bit first, negative codes in two's complement.

    Args:
        codes: integers, any shape, taken in C order; all in -2**(bits-1)..2**(bits-1)-1, or all in 0..2**bits-1.
        bits: width of one code, 1 to 16.

    Returns:
        ceil(codes * bits / 8) bytes; unused high bits of the last byte are 0.

    Raises:
        ValueError: a width outside 1..16, codes that are no integers, or codes that do not fit.
    """
    _check_bits(bits)
    values = np.asarray(codes)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"pack: codes have type {values.dtype}; pass integers")
    flat = values.astype(np.int64).ravel()
    if flat.size:
        lower, upper = int(flat.min()), int(flat.max())
        signed = lower < 0
        allowed = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if lower < allowed[0] or upper > allowed[1]:
            raise ValueError(
                f"pack: codes {lower}..{upper} do not fit {bits} bits; allowed: {allowed[0]}..{allowed[1]}"
            )
    planes = (flat[:, None] >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int, signed: bool) -> NDArray[np.int64]:
    """Restores `count` codes written by `pack`.

    Args:
        data: the packed bytes.
        bits: width of one code, 1 to 16.
        count: number of codes.
        signed: the codes are in two's complement.

    Returns:
        int64, shape (count,).

    Raises:
        ValueError: a width outside 1..16, or data of another length than `count` codes take.
    """
    _check_bits(bits)
    needed = (count * bits + 7) // 8
    if count < 0 or len(data) != needed:
        raise ValueError(f"unpack: {count} codes of {bits} bits take {needed} bytes; found {len(data)}")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    weights = 2 ** np.arange(bits, dtype=np.int64)
    if signed:
        weights[-1] = -weights[-1]
    return planes.reshape(count, bits).astype(np.int64) @ weights


@dataclass(frozen=True)
class PackedSize:
    """True sizes of a realised network's quantised layers, in bytes.

    Attributes:
        weights: all packed weights, each layer padded to whole bytes.
        steps: float32 steps of weights and, once per shared quantiser, of activations.
        biases: float32 biases of the quantised layers.
        layers: packed weight bytes by layer name.
    """

    weights: int
    steps: int
    biases: int
    layers: dict[str, int]


def packed_bytes(model: nn.Module) -> PackedSize:
    """Packs every quantised layer's weights at their own width and counts the bytes.

    Raises:
        ValueError: a weight code that does not fit its layer's width.
    """
    sizes: dict[str, int] = {}
    steps = biases = 0
    activations: set[int] = set()
    for layer in quantised_layers(model):
        module: Any = layer.module
        sizes[layer.name] = len(pack(layer.codes.cpu().numpy(), layer.weight.bits))
        activations.add(id(module.input_quant))
        steps += layer.weight_step.numel() * STEP_BYTES
        biases += 0 if module.bias is None else module.bias.numel() * STEP_BYTES
    return PackedSize(sum(sizes.values()), steps + len(activations) * STEP_BYTES, biases, sizes)
