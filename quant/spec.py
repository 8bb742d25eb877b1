"""The frozen value that fully determines the integer grid of a quantiser."""

from collections.abc import Sequence
from dataclasses import dataclass

MIN_STEP = 1e-8
"""Steps are clamped to this from below, in training and in the exported file alike."""


@dataclass(frozen=True)
class QuantSpec:
    """A symmetric integer grid: `bits` wide, zero point 0.

    `signed` grids hold negative codes; `narrow` signed grids drop the lowest code, so that they are symmetric around 0
    (a narrow 2-bit grid is ternary). Unsigned grids are always full.

    Raises:
        ValueError: a width outside 1..16, a 1-bit signed grid, or a narrow unsigned grid.
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"QuantSpec.bits is {self.bits}; allowed: 1 to 16")
        if self.signed and self.bits < 2:
            raise ValueError("QuantSpec: a signed grid needs at least 2 bits; use bits=2 or signed=False")
        if self.narrow and not self.signed:
            raise ValueError("QuantSpec: only signed grids can be narrow; use narrow=False for unsigned ones")

    @property
    def lower(self) -> int:
        """The smallest code."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + int(self.narrow)

    @property
    def upper(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1


def one_or_each(specs: QuantSpec | Sequence[QuantSpec]) -> tuple[QuantSpec, ...]:
    """The grids of a tensor: one where all of its filters or channels are alike, else one for each.

    Raises:
        ValueError: no grid, or grids that differ in more than their width.
    """
    found = (specs,) if isinstance(specs, QuantSpec) else tuple(specs)
    if not found:
        raise ValueError("QuantSpec: an empty sequence of grids; pass one grid, or one for each filter or channel")
    if len({(spec.signed, spec.narrow) for spec in found}) > 1:
        raise ValueError("QuantSpec: the grids of one tensor differ in signed or narrow; only bits may differ")
    return found if len(set(found)) > 1 else found[:1]


def widths(specs: Sequence[QuantSpec]) -> int | tuple[int, ...]:
    """The bits of grids: one number where all are alike, else one for each."""
    bits = tuple(spec.bits for spec in specs)
    return bits if len(set(bits)) > 1 else bits[0]
