"""An architecture: one option per choice, and which filters stay. An immutable value with a versioned JSON form."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dnas.space.choice import Choice, Layer, Option, Position, Space, read_typed
from dnas.space.conventions import LayerCost
from dnas.space.cost import build_cost, kept_channels, reference_cost
from dnas.space.slicing import kept_channels as kept_indices

FRONTIER = "highs-frontier"
"""Method of a selection where single filters decide."""


@dataclass(frozen=True)
class Certificate:
    """What a selection guarantees: no architecture within the budget scores above `bound`.

    By the method FRONTIER: none that keeps the filters of every group in the order of their own benefit.

    value: total score of the selected architecture; gap: bound - value, in score units; method: the solver;
    seconds: its wall time; costs and limits: by cost name, in absolute units.
    """

    value: float
    bound: float
    gap: float
    method: str
    seconds: float
    costs: Mapping[str, float]
    limits: Mapping[str, float]


def summarise(bits: Sequence[int], kept: Sequence[int]) -> str:
    """One width as a number; several as how many filters have each: `12x2+4x8`."""
    counts = Counter(bits[i] for i in kept)
    if len(counts) < 2:
        return str(next(iter(counts), bits[0] if bits else 0))
    return "+".join(f"{count}x{width}" for width, count in sorted(counts.items()))


def read_options(content: Mapping[str, Any]) -> dict[str, Option]:
    """Options as JSON holds them."""
    return {name: tuple(option) if isinstance(option, list) else option for name, option in content.items()}


def _check(choice: Choice, option: Option) -> None:
    """Raises ValueError unless an architecture may hold this for the choice."""
    if not isinstance(option, tuple):
        if choice.by_filter and choice.kind != "filters":
            raise ValueError(
                f"{choice.name}: found {option}; needed is one option for each of {choice.count} decisions"
            )
        choice.index(option)
        return
    if not choice.by_filter or choice.kind == "filters":
        raise ValueError(f"{choice.name}: found {len(option)} options; needed is one of {list(choice.options)}")
    if len(option) != choice.count:
        raise ValueError(
            f"{choice.name}: found {len(option)} options; needed is one for each of {choice.count} decisions"
        )
    for bits in set(option) - {0}:
        choice.index(bits)


def _check_blocks(choice: Choice, size: int, kept: Sequence[int]) -> None:
    """Raises ValueError unless what stays are whole blocks, where blocks of filters decide."""
    stays: dict[int, list[int]] = {}
    for position in sorted(set(kept)) if choice.by_filter else ():
        stays.setdefault(position // choice.block, []).append(position)
    for number, found in stays.items():
        block = range(number * choice.block, min((number + 1) * choice.block, size))
        if len(found) != len(block):
            raise ValueError(
                f"{choice.name}: of the filters {list(block)}, which decide together (space.filter_block="
                f"{choice.block}), {found} are kept; keep all of them or none, or leave `kept` out and take the "
                "architecture through `Supernet.with_filters`"
            )


@dataclass(frozen=True)
class Architecture:
    """One option (its value, not its position) per choice of a space.

    options: for a choice of weight or activation bits by filter a tuple, one width per filter or channel; what is
    removed has width 0 or any option. kept: for a group's choice the indices of the filters that stay, ascending; a
    supernet ranks the filters of groups that are not named. Where blocks of filters decide, whole blocks stay.
    """

    space: Space = field(repr=False)
    options: Mapping[str, Option]
    kept: Mapping[str, tuple[int, ...]] | None = field(default=None, repr=False)
    certificate: Certificate | None = None
    functions: Mapping[str, LayerCost] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = {choice.name for choice in self.space.choices}
        if set(self.options) != names:
            missing, unknown = sorted(names - set(self.options)), sorted(set(self.options) - names)
            raise ValueError(f"an architecture needs one option per choice; missing: {missing}, unknown: {unknown}")
        for choice in self.space.choices:
            _check(choice, self.options[choice.name])
        for name, kept in (self.kept or {}).items():
            if len(set(kept)) != self.options[name]:
                raise ValueError(f"{name}: {len(set(kept))} filters are kept, but the option is {self.options[name]}")
        for group in self.space.groups:
            stays = (self.kept or {}).get(group.choice)
            if stays is not None and not set(stays) <= set(range(group.size)):
                outside = sorted(set(stays) - set(range(group.size)))
                raise ValueError(f"{group.choice}: filters {outside} are kept, but there are 0 to {group.size - 1}")
            if stays is not None:
                _check_blocks(self.space.choice(group.choice), group.size, stays)
            if stays is not None and group.blocks > 1:
                counts = Counter(position * group.blocks // group.size for position in stays)
                if len({counts[block] for block in range(group.blocks)}) > 1:
                    raise ValueError(
                        f"{group.choice}: {dict(counts)} filters are kept per block of {group.size // group.blocks}; "
                        "a group norm needs equally many in each"
                    )

    @staticmethod
    def at(space: Space, positions: Mapping[str, Position], **more: Any) -> "Architecture":
        """The architecture at these positions, see `positions`.

        Args:
            space: the space.
            positions: for every choice.
            more: further fields; `kept` of choices by filter is filled in.
        """
        options: dict[str, Option] = {}
        kept = dict(more.pop("kept", None) or {})
        sizes = {group.choice: group.size for group in space.groups}
        for choice in space.choices:
            found = positions[choice.name]
            if isinstance(found, int):
                options[choice.name] = choice.options[found]
            elif choice.kind == "filters":
                kept[choice.name] = tuple(i for i in range(sizes[choice.name]) if found[i // choice.block])
                options[choice.name] = len(kept[choice.name])
            else:
                options[choice.name] = tuple(choice.options[i] for i in found)
        return Architecture(space, options, kept or None, **more)

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def positions(self) -> dict[str, Position]:
        """The chosen option's position for every choice; for one by filter a tuple over its decisions.

        Raises:
            ValueError: which filters of a choice by filter stay is not known.
        """
        return {choice.name: self._position(choice) for choice in self.space.choices}

    def _position(self, choice: Choice) -> Position:
        option = self.options[choice.name]
        if isinstance(option, tuple):
            return tuple(choice.index(bits) if bits else 0 for bits in option)
        if not choice.by_filter:
            return choice.index(option)
        if option == choice.options[-1]:
            return (1,) * choice.count
        if choice.name not in (self.kept or {}):
            if any(isinstance(found, tuple) and len(set(found)) > 1 for found in self.options.values()):
                raise ValueError(
                    f"{choice.name}: which {option} filters stay is not known, and their widths differ; give `kept`, or "
                    "take the architecture through `Supernet.with_filters`"
                )
            kept_blocks = -(-option // choice.block)  # all alike: which they are changes no cost
            return (1,) * kept_blocks + (0,) * (choice.count - kept_blocks)
        kept = set((self.kept or {})[choice.name])
        return tuple(int(i * choice.block in kept) for i in range(choice.count))

    def cost(self, name: str, relative: bool = False) -> int | float:
        """Cost of this architecture: an integer wherever the convention is one.

        Args:
            name: a cost, see `dnas.space.cost.COSTS`.
            relative: as a fraction of the same network at full width with 8-bit weights and activations.
        """
        value = build_cost(self.space, name, self.functions).at(self.positions())
        if relative:
            return value / reference_cost(self.space, name, functions=self.functions)
        return int(value) if value == int(value) else value

    def weight_bits(self, layer: Layer) -> tuple[int, ...]:
        """Weight bits of every filter of a layer at full width, also of those that are removed; shape (filters,)."""
        return self._bits(layer.weight_choice, len(layer.outputs), "weight_bits")

    def act_bits(self, layer: Layer) -> tuple[int, ...]:
        """Bits of every channel of a layer's input at full width, also of those that are removed; shape (channels,)."""
        return self._bits(layer.act_choice, len(layer.inputs), "act_bits")

    def _bits(self, name: str, channels: int, kind: str) -> tuple[int, ...]:
        choice = self.space.choice(name)
        found, bits = self.positions()[name], getattr(choice, kind)
        if isinstance(found, int):
            return (bits[found],) * channels
        return tuple(bits[found[channel // choice.block]] for channel in range(channels))

    def describe(self) -> str:
        """A table of the layers: weight and activation bits, channels, kernel; of several widths how many of each."""
        kept = {
            i: set(self.kept[group.choice])
            for i, group in enumerate(self.space.groups)
            if self.kept and group.choice in self.kept
        }
        positions = self.positions()
        kernels = any(layer.kernel_choice for layer in self.space.layers)
        side = f" {'kernel':>6}" if kernels else ""
        lines = [f"{'layer':32} {'weight bits':>11} {'act bits':>8} {'in':>9} {'out':>9}{side}"]
        for layer in self.space.layers:
            if not self.space.runs(layer.name, positions):
                lines.append(f"{layer.name:32} {'left out':>11}")
                continue
            ins = f"{kept_channels(self.space, layer.inputs, positions)}/{len(layer.inputs)}"
            outs = f"{kept_channels(self.space, layer.outputs, positions)}/{len(layer.outputs)}"
            weight = summarise(self.weight_bits(layer), kept_indices(layer.outputs, kept))
            act = summarise(self.act_bits(layer), kept_indices(layer.inputs, kept))
            side = f" {self[layer.kernel_choice]:>6}" if layer.kernel_choice else ""
            lines.append(f"{layer.name:32} {weight:>11} {act:>8} {ins:>9} {outs:>9}{side}")
        return "\n".join(lines)

    def identity(self) -> dict[str, Any]:
        """What makes it this network, as JSON has it: space, option of every choice, kept filters."""
        content = json.loads(self.to_json())
        kept = {f"kept filters of {name}": indices for name, indices in (content["kept"] or {}).items()}
        return {"space": content["space"], **content["options"], **kept}

    def to_json(self) -> str:
        """JSON with `type` and `version`; the space goes by its digest."""
        content: dict[str, Any] = {
            "type": "dnas.Architecture",
            "version": 1,
            "space": self.space.digest,
            "options": dict(self.options),
            "kept": None if self.kept is None else {name: list(kept) for name, kept in self.kept.items()},
            "certificate": None if self.certificate is None else vars(self.certificate),
        }
        return json.dumps(content, indent=1)

    @staticmethod
    def from_json(text: str, space: Space) -> "Architecture":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another type or version, or chosen from another space.
        """
        content = read_typed(text, "dnas.Architecture", 1)
        if content["space"] != space.digest:
            raise ValueError(
                f"this architecture was chosen from space {content['space']}, not from {space.digest}; select it again"
            )
        kept, certificate = content["kept"], content["certificate"]
        return Architecture(
            space,
            read_options(content["options"]),
            None if kept is None else {name: tuple(indices) for name, indices in kept.items()},
            None if certificate is None else Certificate(**certificate),
        )
