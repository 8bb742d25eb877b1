"""Who decides: which layers choose one width for all filters, and which let every filter (or channel) choose its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import lcm

from torch import nn

from dnas.space.choice import GRANULARITIES, INPUT_BITS, PAIR
from dnas.space.target import Target

Granularity = str | Mapping[str, str]
"""`layer` or `filter` for everything, or by glob of module paths (the last one that matches counts; else `layer`)."""


Filters = Sequence[float] | Mapping[str, Sequence[float]]
"""Shares of filters for all groups, or by glob of a group's first layer (the last one that matches counts; else all)."""


def matching(glob: str, names: Sequence[str], key: str) -> list[str]:
    """The layers that a glob of module paths matches.

    Raises:
        ValueError: there is none.
    """
    found = [name for name in names if fnmatch(name, glob)]
    if not found:
        raise ValueError(f"{key}: {glob!r} matches no layer; the layers are {list(names)}")
    return found


def shares_of(filters: Filters, place: str) -> Sequence[float]:
    """The shares of filters that a group may keep.

    Args:
        filters: as a user gives them.
        place: path of the group's first layer.
    """
    if not isinstance(filters, Mapping):
        return filters
    found: Sequence[float] = (1.0,)
    for glob, shares in filters.items():
        if fnmatch(place, glob):
            found = shares
    return found


def resolve(granularity: Granularity, names: Sequence[str], key: str) -> set[str]:
    """The layers whose filters decide by themselves.

    Args:
        granularity: as a user gives it.
        names: of all layers.
        key: the config key, for errors.

    Raises:
        ValueError: an unknown granularity, or a glob that matches nothing.
    """
    rules = {"*": granularity} if isinstance(granularity, str) else dict(granularity)
    found: dict[str, str] = {}
    for glob, value in rules.items():
        if value not in GRANULARITIES:
            raise ValueError(
                f"{key} is {value!r}; allowed: {list(GRANULARITIES)}, or one of them by glob of module paths"
            )
        found.update(dict.fromkeys(matching(glob, names, key), value))
    return {name for name, value in found.items() if value == "filter"}


@dataclass(frozen=True)
class Decisions:
    """What single filters decide in one model.

    weights: layers whose filters have widths of their own. tensors: activation choices whose channels have. block: how
    many consecutive filters decide together. prune: whether single filters can be removed. whole: layers and tensors
    that were asked for but cannot, with the reason.
    """

    weights: set[str] = field(default_factory=set)
    tensors: set[str] = field(default_factory=set)
    block: int = 1
    prune: bool = False
    whole: Mapping[str, str] = field(default_factory=dict)

    def counts(self, size: int, ratios: Sequence[float], target: Target) -> tuple[int, ...]:
        """How many filters of a group may stay where they decide one by one.

        Only these shares; or, where filters can be removed by their width, any number from the smallest share on (from
        one filter, if all are to be kept). Multiples of the block and of the target's channel multiple, or all.
        """
        multiple = lcm(self.block, target.channel_multiple)
        asked = target.filter_counts(size, ratios)
        if not self.prune:
            return tuple(sorted({min(max(round(c / multiple), 1) * multiple, size) for c in asked}))
        least = min(asked) if min(asked) < size else 1
        return tuple(c for c in range(1, size + 1) if c == size or (c >= least and c % multiple == 0))


def decisions(
    model: nn.Module,
    names: Sequence[str],
    readers: Mapping[str, Sequence[str]],
    frozen: set[str],
    weights: Granularity,
    acts: Granularity,
    block: int,
    prune: bool,
) -> Decisions:
    """What single filters decide.

    Args:
        model: holds the layers.
        names: of all layers.
        readers: for every activation choice the layers that read the tensor.
        frozen: layers and activation choices that are not searched.
        weights: space.granularity.
        acts: space.act_granularity.
        block: space.filter_block.
        prune: 0 is among space.weight_bits.

    Raises:
        ValueError: an unknown granularity, a glob that matches nothing, a block below 1, or 0 bits without filters that
            decide.
    """
    if block != int(block) or block < 1:
        raise ValueError(f"space.filter_block is {block}; allowed: a whole number from 1")
    fine = resolve(weights, names, "space.granularity") - frozen
    if prune and not fine:
        raise ValueError(
            "space.weight_bits has 0, which removes single filters: set space.granularity=filter (or space.filters for counts)"
        )
    whole = {}
    for name in sorted(fine):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups > 1:
            whole[f"{name}.granularity"] = (
                "filters of a grouped transposed convolution share their steps: one width for all"
            )
            fine.discard(name)
    channelwise = resolve(acts, names, "space.act_granularity")
    tensors = set()
    for act, layers in readers.items():
        if act in frozen or not set(layers) <= channelwise:
            continue
        places = {isinstance(model.get_submodule(name), nn.Linear) for name in layers}
        if len(places) > 1:
            whole[f"{act}.granularity"] = "its readers have the channels in different places: one width for all"
        else:
            tensors.add(act)
    return Decisions(fine, tensors, int(block), prune, whole)


def legal_pairs(pairs: Sequence[Sequence[int]] | None, target: Target) -> tuple[tuple[int, int], ...]:
    """The joint options (weight bits, activation bits) that a user lists and a target can run, cheapest first.

    Raises:
        ValueError: not pairs of widths from 2 to 8, or none that the target can run.
    """
    found = []
    for pair in pairs or ():
        if len(pair) != 2 or any(isinstance(b, bool) or b != int(b) or not 2 <= b <= INPUT_BITS for b in pair):
            raise ValueError(f"space.pairs has {list(pair)}; allowed: [weight bits, activation bits], each from 2 to 8")
        w, a = int(pair[0]), int(pair[1])
        legal = target.pairs is None or (w, a) in target.pairs
        legal &= target.weight_bits is None or w in target.weight_bits
        if legal and (target.act_bits is None or a in target.act_bits):
            found.append((w, a))
    if pairs and not found:
        raise ValueError(f"space.pairs {[list(p) for p in pairs]}: target {target.name} can run none of them")
    return tuple(sorted(set(found), key=lambda pair: (pair[0] * pair[1], pair)))


def pair_options(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The options of a joint choice, see `PAIR`."""
    return tuple(PAIR * w + a for w, a in pairs)
