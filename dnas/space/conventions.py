"""What a layer costs: the conventions of bit operations, and what they count."""

from collections.abc import Callable, Mapping
from math import ceil, log2

from dnas.space.choice import Layer

LayerCost = Callable[[Layer, int, int, int, int], float]
"""(layer, kept input channels, kept output channels, weight bits, activation bits) -> cost, never negative.

Where the kernel is searched, `layer.kernel` is that of the option. A layer that does not run costs nothing. A cost may have
an attribute `beside`, for some layers the name of a choice elsewhere that changes what they cost: it is asked as `at(option)`.
And `stored_bit`, what every bit of the stored layer inputs costs besides, and `mac(w, a)`, what one multiplication costs
outside of the layers.
"""


def macs(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    """Multiply-accumulates: k^2 H W c_in c_out / g, or k^2 H W c for a depthwise layer, whose groups shrink with it."""
    if layer.depthwise:
        return layer.positions * layer.kernel * c_out
    return layer.positions * layer.kernel * c_in * c_out // layer.groups


def bops(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    """MACs * w * a: HAWQ-V3's convention (Yao et al. 2021); every layer counts, the first and the last included."""
    return macs(layer, c_in, c_out, weight_bits, act_bits) * weight_bits * act_bits


def _fan_in(layer: Layer, c_in: int) -> int:
    return (1 if layer.depthwise else c_in // layer.groups) * layer.kernel


def bops_uniq(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    """MACs (w a + a + w + log2(c_in k^2)): UNIQ's convention (Baskin et al. 2018)."""
    per_mac = weight_bits * act_bits + act_bits + weight_bits + log2(max(_fan_in(layer, c_in), 1))
    return macs(layer, c_in, c_out, weight_bits, act_bits) * per_mac


def bops_accumulator(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    """MACs (w - 1) a for the products, and additions at the width of the largest accumulator (Zur's thesis code)."""
    fan_in = _fan_in(layer, c_in)
    largest = fan_in * (2**act_bits - 1) * (2 ** (weight_bits - 1) - 1)
    products = macs(layer, c_in, c_out, weight_bits, act_bits) * (weight_bits - 1) * act_bits
    additions = layer.positions * max(fan_in - 1, 0) * c_out
    return products + additions * (ceil(log2(largest)) if largest > 1 else 0)


def weight_bits(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    """Bits of the weights, each at its width; biases, steps and normalisations are not counted."""
    count = c_out if layer.depthwise else c_in * c_out // layer.groups
    return layer.kernel * count * weight_bits


LAYER_COSTS: Mapping[str, LayerCost] = {
    "bops": bops,
    "bops_uniq": bops_uniq,
    "bops_accumulator": bops_accumulator,
    "macs": macs,
    "weight_bits": weight_bits,
}
