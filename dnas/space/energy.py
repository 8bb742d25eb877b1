"""Energy as a cost: a table of what one operation takes at every pair of widths, and what it takes to read a bit.

    E = sum over layers of MACs * e(w, a) + bits of weights * e_w, + bits of all stored layer inputs * e_a

The widths' joint effect is tabulated, so that the same bilinear rows serve the search, the selection and the report. The
numbers that stand in the configuration are those of 45 nm silicon (Horowitz, ISSCC 2014, figure 1.1.9): 0.2 pJ for a product of
8 x 8 bits, 0.1 pJ for a 32-bit addition, 10 pJ for 64 bits from 8 KB of SRAM. Products of other widths are taken in
proportion to the product of both widths; where the hardware has been measured, `macs` holds its own numbers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dnas.space.choice import FLOAT_BITS, Layer
from dnas.space.conventions import macs, weight_bits

ENERGY = "energy_pj"
"""Name of the cost: picojoules per image."""


@dataclass(frozen=True)
class EnergyConfig:
    """Picojoules. product: of 8 x 8 bits; addition: of 32 bits; weight_bit, activation_bit: to read one of them.

    macs: of one multiply-accumulate as measured, by widths: `{"4x8": 0.15}` for 4-bit weights and 8-bit activations. Where
    there is any, product and addition do not count: other widths run as the cheapest pair that is at least as wide on both
    sides, as on hardware that lacks them. 8x8 is needed then, which relative budgets refer to, and 32x32 for products of
    activations.
    """

    product: float = 0.2
    addition: float = 0.1
    weight_bit: float = 0.15625
    activation_bit: float = 0.15625
    macs: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("product", "addition", "weight_bit", "activation_bit")}
        for name, value in (numbers | {f"macs.{pair}": value for pair, value in self.macs.items()}).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"cost.energy.{name} is {value}; allowed: picojoules, 0 or more")
        if not any((self.product, self.addition, self.weight_bit, self.activation_bit, *self.macs.values())):
            raise ValueError("cost.energy: nothing costs anything; at least one number above 0 is needed")
        wrong = [pair for pair in self.macs if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", pair)]
        if wrong:
            raise ValueError(
                f"cost.energy.macs has {wrong[0]!r}; needed are weight bits x activation bits, such as '4x8'"
            )

    def __str__(self) -> str:
        """In words, for reports."""
        operations = f"{self.product:g} pJ per 8x8-bit product, {self.addition:g} per addition"
        if self.macs:
            operations = ", ".join(f"{value:g} pJ per {pair}-bit MAC" for pair, value in self.macs.items())
        return (
            f"{operations}, {self.weight_bit:g} per bit of a weight, {self.activation_bit:g} per bit of a layer's input"
        )

    @property
    def table(self) -> "EnergyTable":
        """The cost function."""
        return EnergyTable(self)


@dataclass(frozen=True)
class EnergyTable:
    """A cost per layer, see `LayerCost`; what is read of stored activations is counted with the tensors, once each."""

    config: EnergyConfig = field(default_factory=EnergyConfig)

    def __call__(self, layer: Layer, c_in: int, c_out: int, w: int, a: int) -> float:
        """Picojoules of a layer's operations and weights."""
        return macs(layer, c_in, c_out, w, a) * self.mac(w, a) + self.config.weight_bit * weight_bits(
            layer, c_in, c_out, w, a
        )

    def mac(self, w: int, a: int) -> float:
        """Picojoules of one multiply-accumulate.

        Raises:
            ValueError: there are measured numbers, but none for widths that contain these.
        """
        if not self.measured:
            return self.config.product * w * a / 64 + self.config.addition
        wide = [value for (own_w, own_a), value in self.measured.items() if own_w >= w and own_a >= a]
        if not wide:
            what = "a product of activations, which runs in floats" if w == a == FLOAT_BITS else "these widths"
            raise ValueError(
                f"cost.energy.macs has no number for {w}x{a} bits ({what}), nor for a wider pair; it has "
                f"{', '.join(self.config.macs)}: add '{w}x{a}', or leave macs empty to have all computed"
            )
        return self.measured.get((w, a), min(wide))

    @cached_property
    def measured(self) -> Mapping[tuple[int, int], float]:
        """The configured numbers by (weight bits, activation bits)."""
        return {(int(w), int(a)): value for pair, value in self.config.macs.items() for w, a in [pair.split("x")]}

    @property
    def stored_bit(self) -> float:
        """Picojoules to read a bit of a stored activation."""
        return self.config.activation_bit
