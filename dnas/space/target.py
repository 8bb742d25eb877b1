"""A named hardware as data: which widths and channel counts it can run."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import lcm

from dnas.space.choice import Space


class TargetError(ValueError):
    """The space asks for what the target cannot run, or the other way round."""


@dataclass(frozen=True)
class Target:
    """Legal widths of a hardware; None stands for no restriction.

    pairs: legal (weight bits, activation bits). channel_multiple: kept filters are a multiple of it, or all of them.
    """

    name: str = "any"
    weight_bits: tuple[int, ...] | None = None
    act_bits: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None
    channel_multiple: int = 1

    def __post_init__(self) -> None:
        if self.channel_multiple < 1:
            raise TargetError(f"target.channel_multiple is {self.channel_multiple}; allowed: 1 or more")

    def legal(self, kind: str, options: Iterable[int]) -> tuple[int, ...]:
        """The options that this target can run, ascending.

        Raises:
            TargetError: it can run none of them.
        """
        wanted = sorted(set(options))
        own = self.weight_bits if kind == "weight_bits" else self.act_bits
        if self.pairs is not None:
            paired = {pair[0 if kind == "weight_bits" else 1] for pair in self.pairs}
            own = tuple(sorted(paired if own is None else paired & set(own)))
        kept = tuple(bits for bits in wanted if own is None or bits in own)
        if not kept:
            raise TargetError(
                f"target {self.name} runs {kind} {list(own or ())}, space.{kind} asks for {wanted}: nothing in common; "
                f"add one of the target's widths to space.{kind}"
            )
        return kept

    def filter_counts(self, size: int, ratios: Iterable[float], blocks: int = 1) -> tuple[int, ...]:
        """Filter counts for these shares of `size`: rounded to the channel multiple, at least one, at most all.

        Multiples of `blocks`, too: equally many in each block.
        """
        counts, multiple = set(), lcm(self.channel_multiple, blocks)
        for ratio in ratios:
            if not 0 < ratio <= 1:
                raise TargetError(f"space.filters has {ratio}; allowed: shares above 0 and up to 1")
            count = max(1, round(size * ratio))
            if count < size:
                count = max(round(count / multiple), 1) * multiple
            counts.add(min(count, size))
        return tuple(sorted(counts))


def unsupported(space: Space, target: Target) -> list[str]:
    """What of a space a target cannot run, as text: layers for which none of the legal pairs is an option."""
    found = []
    for layer in space.layers:
        weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
        weights, acts = weight.weight_bits, act.act_bits
        pairs = zip(weights, acts, strict=True) if weight.name == act.name else product(weights, acts)
        legal = [
            (w, a)
            for w, a in pairs
            if (target.pairs is None or (w, a) in target.pairs)
            and (target.weight_bits is None or w in target.weight_bits)
            and (target.act_bits is None or a in target.act_bits)
        ]
        if not legal:
            found.append(
                f"{layer.name}: weight bits {list(weights)} with activation bits {list(acts)} are not legal on {target.name}"
            )
    return found
