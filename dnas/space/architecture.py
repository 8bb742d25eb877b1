"""An architecture: one option per choice, and which filters stay. An immutable value with a versioned JSON form."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dnas.space.choice import Space, read_typed
from dnas.space.cost import LayerCost, build_cost, reference_cost


@dataclass(frozen=True)
class Certificate:
    """What a selection guarantees: no architecture within the budget scores above `bound`.

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


@dataclass(frozen=True)
class Architecture:
    """One option (its value, not its position) per choice of a space.

    kept: for every group's choice the indices of the filters that stay, ascending; None until a supernet ranks them.
    """

    space: Space
    options: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]] | None = None
    certificate: Certificate | None = None
    functions: Mapping[str, LayerCost] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = {choice.name for choice in self.space.choices}
        if set(self.options) != names:
            missing, unknown = sorted(names - set(self.options)), sorted(set(self.options) - names)
            raise ValueError(f"an architecture needs one option per choice; missing: {missing}, unknown: {unknown}")
        for choice in self.space.choices:
            choice.index(self.options[choice.name])
        for name, kept in (self.kept or {}).items():
            if len(set(kept)) != self.options[name]:
                raise ValueError(f"{name}: {len(set(kept))} filters are kept, but the option is {self.options[name]}")

    def __getitem__(self, name: str) -> int:
        return self.options[name]

    def positions(self) -> dict[str, int]:
        """The chosen option's position for every choice."""
        return {choice.name: choice.index(self.options[choice.name]) for choice in self.space.choices}

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

    def describe(self) -> str:
        """A table of the layers: weight bits, activation bits, channels in and out."""
        from dnas.space.cost import kept_channels

        positions = self.positions()
        lines = [f"{'layer':32} {'weight bits':>11} {'act bits':>8} {'in':>9} {'out':>9}"]
        for layer in self.space.layers:
            ins = f"{kept_channels(self.space, layer.inputs, positions)}/{len(layer.inputs)}"
            outs = f"{kept_channels(self.space, layer.outputs, positions)}/{len(layer.outputs)}"
            weight, act = self.options[layer.weight_choice], self.options[layer.act_choice]
            lines.append(f"{layer.name:32} {weight:>11} {act:>8} {ins:>9} {outs:>9}")
        return "\n".join(lines)

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
            content["options"],
            None if kept is None else {name: tuple(indices) for name, indices in kept.items()},
            None if certificate is None else Certificate(**certificate),
        )
