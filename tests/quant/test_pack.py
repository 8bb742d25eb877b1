"""Bit packing: exact round trips, layout, and the true size of a network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantised_networks import Residual, network

from quant.pack import pack, packed_bytes, unpack


@st.composite
def coded(draw: st.DrawFn) -> tuple[list[int], int, bool]:
    """Codes of one width."""
    bits, signed = draw(st.integers(1, 16)), draw(st.booleans())
    lower, upper = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return draw(st.lists(st.integers(lower, upper), max_size=40)), bits, signed


@given(coded())
def test_round_trip_and_size(case: tuple[list[int], int, bool]) -> None:
    codes, bits, signed = case
    data = pack(np.array(codes, np.int64), bits)
    assert len(data) == -(-len(codes) * bits // 8)
    assert unpack(data, bits, len(codes), signed).tolist() == codes


@given(coded())
def test_layout_is_one_little_endian_number(case: tuple[list[int], int, bool]) -> None:
    codes, bits, _ = case
    number = sum((code % 2**bits) << (i * bits) for i, code in enumerate(codes))
    assert pack(np.array(codes, np.int64), bits) == number.to_bytes(-(-len(codes) * bits // 8), "little")


@st.composite
def filters(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Signed codes of filters of equal size, each of a width of its own."""
    bits = draw(st.lists(st.integers(1, 16), min_size=1, max_size=9))
    size = draw(st.integers(1, 7))
    ends = [(-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in bits]
    return [draw(st.lists(st.integers(*e), min_size=size, max_size=size)) for e in ends], bits


@given(filters())
def test_filters_of_their_own_widths_lie_without_gaps(case: tuple[list[list[int]], list[int]]) -> None:
    codes, bits = case
    number = at = 0
    for row, width in zip(codes, bits, strict=True):
        for code in row:
            number |= (code % 2**width) << at
            at += width
    values = np.array(codes)
    signed = bool((values < 0).any())
    data = pack(values, bits)
    assert data == number.to_bytes(-(-at // 8), "little")
    assert unpack(data, bits, values.size, signed).tolist() == values.ravel().tolist()
    assert pack(values, [16] * len(bits)) == pack(values, 16)


def test_each_filter_must_fit_its_own_width() -> None:
    codes = np.array([[7, -8], [1, -2]])
    assert len(pack(codes, [4, 2])) == 2
    with pytest.raises(ValueError, match=r"-8\.\.7 do not fit 2 bits; allowed: -2\.\.1"):
        pack(codes, [2, 4])
    with pytest.raises(ValueError, match="3 widths for 4 codes"):
        pack(codes, [4, 4, 4])
    with pytest.raises(ValueError, match="bits is 17"):
        pack(codes, [4, 17])
    with pytest.raises(ValueError, match="take 2 bytes; found 3"):
        unpack(b"\0\0\0", [4, 2], 4, True)


def test_wrong_codes_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"-3\.\.0 do not fit 2 bits; allowed: -2\.\.1"):
        pack([-3, 0], 2)
    with pytest.raises(ValueError, match="do not fit"):
        pack([4], 2)
    with pytest.raises(ValueError, match="integers"):
        pack([0.5], 2)
    with pytest.raises(ValueError, match="bits is 0"):
        pack([0], 0)
    with pytest.raises(ValueError, match="take 2 bytes; found 1"):
        unpack(b"\0", 3, 3, True)


def test_network_size_is_counted_at_each_layers_width() -> None:
    size = packed_bytes(network(Residual))
    assert size.layers == {
        "stem": 8 * 27, "block.conv1": 12 * 72 * 4 // 8, "block.down": 12 * 8 * 3 // 8, "block.depth": 81,
        "block.point": 12 * 12 * 2 // 8, "head": 240,
    }  # fmt: skip
    assert size.weights == sum(size.layers.values())
    assert size.steps == 4 * (8 + 12 * 4 + 10 + 5)  # down and conv1 share one activation step
    assert size.biases == 4 * (12 + 10)
