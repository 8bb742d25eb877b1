"""The space as data: choices, coupled groups, layers, tensors. Immutable values with a versioned JSON form."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal

INPUT_BITS = 8
"""Width at which the network's own input and every layer that is not searched are quantised and counted."""
FLOAT_BITS = 32
"""Width at which operations that stay in floating point are counted."""

NormKind = Literal["channel", "layer", "rms", "group", "parameter"]


GRANULARITIES = ("layer", "filter")
PAIR = 10
"""A joint option of kind `pair_bits` is PAIR * weight bits + activation bits: 24 is W2A4."""

Option = int | tuple[int, ...]
"""What an architecture holds for a choice: one option, or one for every filter (0: the filter is removed)."""
Position = int | tuple[int, ...]
"""Where options stand: of a layer's choice one index; of a filter's one for every decision (kept: 1, removed: 0)."""


@dataclass(frozen=True)
class Choice:
    """A one-of-K decision: `kind` at the place that `name` starts with, options ascending (the last is the dearest).

    granularity: `layer`, one decision, or `filter`: `count` decisions, each for `block` consecutive filters (channels of
    an activation tensor). Of kind `filters` at that granularity every decision is to keep or to remove, and the options
    are the counts that may be left.
    """

    name: str
    kind: str
    options: tuple[int, ...]
    granularity: str = "layer"
    count: int = 1
    block: int = 1

    @property
    def by_filter(self) -> bool:
        """Whether single filters decide."""
        return self.granularity == "filter"

    @property
    def searched(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.options) > 1

    @property
    def width(self) -> int:
        """How many options one decision has."""
        return 2 if self.by_filter and self.kind == "filters" else len(self.options)

    @property
    def labels(self) -> list[int]:
        """What one decision chooses from: the options; or to remove (0) or to keep (1) a filter."""
        return [0, 1] if self.by_filter and self.kind == "filters" else list(self.options)

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """The weight bits of every option."""
        return tuple(option // PAIR for option in self.options) if self.kind == "pair_bits" else self.options

    @property
    def act_bits(self) -> tuple[int, ...]:
        """The activation bits of every option."""
        return tuple(option % PAIR for option in self.options) if self.kind == "pair_bits" else self.options

    def index(self, option: int) -> int:
        """Position of an option.

        Raises:
            ValueError: the option is not one of this choice's.
        """
        if option not in self.options:
            raise ValueError(f"{self.name}: {option} is not an option; allowed: {list(self.options)}")
        return self.options.index(option)

    def extreme(self, dearest: bool) -> Position:
        """Position of the cheapest or of the dearest option, for every decision."""
        if not self.by_filter:
            return len(self.options) - 1 if dearest else 0
        if self.kind != "filters":
            return (len(self.options) - 1 if dearest else 0,) * self.count
        kept = self.count if dearest else -(-self.options[0] // self.block)
        return (1,) * kept + (0,) * (self.count - kept)


@dataclass(frozen=True)
class Group:
    """Filters that are kept or removed together in every layer of a coupling.

    `choice` names the choice of how many of the `size` channels stay, or which, where its granularity is `filter`;
    `members` are the layers that produce them. blocks: the positions are that many runs of equal length, and each keeps
    equally many (a group norm's groups).
    """

    choice: str
    size: int
    members: tuple[str, ...]
    blocks: int = 1


@dataclass(frozen=True)
class ChannelMap:
    """Where the channels of a layer's side come from: channel i is channel `position[i]` of group `group[i]`."""

    group: tuple[int, ...]
    position: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.group)

    @cached_property
    def counts(self) -> dict[int, int]:
        """For every group on this side, how many of the side's channels come from it at full width."""
        return dict(Counter(self.group))


@dataclass(frozen=True)
class Through:
    """A module, parameter or buffer that channels pass through, and that has one entry per channel.

    kind: `channel` (each channel for itself: a batch norm, a PReLU); `layer`, `rms`, `group` (a layer norm, root mean
    square norm or group norm: joint statistics, over the kept channels only); `parameter` (or a buffer).
    over: dimensions of the statistics, the first is that of the channels; of a parameter its dimension.
    """

    name: str
    channels: ChannelMap
    kind: NormKind = "channel"
    over: tuple[int, ...] = ()

    @property
    def mixes(self) -> bool:
        """Whether its channels have joint statistics, which removed channels must not enter."""
        return self.kind in ("layer", "rms", "group")


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies: its geometry, and the choices that decide its cost.

    positions: output elements per output channel and example (H_l W_l, or tokens), summed over the layer's calls.
    kernel: multiplications per input channel, output element and group (k_l^2 for a square kernel; 1 for linear).
    kernel_choice: decides the side of a square kernel, where that is searched; `kernel` is then that of the largest.
    """

    name: str
    kind: str
    positions: int
    kernel: int
    groups: int
    depthwise: bool
    inputs: ChannelMap
    outputs: ChannelMap
    weight_choice: str
    act_choice: str
    kernel_choice: str | None = None

    @property
    def full_macs(self) -> int:
        """Multiply-accumulates per example at full width."""
        return self.positions * self.kernel * len(self.inputs) * len(self.outputs) // self.groups


@dataclass(frozen=True)
class Gate:
    """A module that runs only where the option of `choice` is at least `least`; else its input is its output.

    Of a choice of kind `depth` the options are how many blocks of a stage run; of kind `branch` they are 0 and 1.
    """

    module: str
    choice: str
    least: int

    def encloses(self, path: str) -> bool:
        """Whether a module path is that of the gated module or inside of it."""
        return path == self.module or path.startswith(f"{self.module}.")


@dataclass(frozen=True)
class ActTensor:
    """A tensor that a layer consumes, or that waits to be read: stored at the width of `choice` while `first` to `last` run.

    elements: elements per channel and example. Channels are those of layer `like`: side "input" is what it consumes, "aside"
    something else with the channels of its input, "output" something with those of its output. readers:
    the modules for which it is stored, in a space with gates; where none of them runs, it is not. earlier: gated modules
    that hand it on, the last one first, each as (number of the gate, what `first` is where that module does not run).
    """

    choice: str
    like: str
    side: str
    elements: int
    first: int
    last: int
    readers: tuple[str, ...] = ()
    earlier: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ActRange:
    """Calibration of one activation choice: sign of the data seen, and the least-squares step of each option."""

    signed: bool
    steps: tuple[float, ...]


@dataclass(frozen=True)
class Fixed:
    """Something that is not searched, and why; `macs` only where it multiplies outside of the space's layers."""

    name: str
    reason: str
    macs: int = 0


@dataclass(frozen=True)
class Space:
    """Every choice of one model, the couplings between them, and the geometry that cost needs.

    Layers stand in the order in which they run. `weight_narrow` is the grid of all weights (see `quant.QuantSpec`).
    `pairs`, if given, lists the legal (weight bits, activation bits) of every layer whose two widths are choices of
    their own; where they are one choice, its options are the legal pairs. `calls`, in a space with gates, are the layers as
    they run, one by one: the rows that stored tensors are counted in.
    """

    choices: tuple[Choice, ...]
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    tensors: tuple[ActTensor, ...]
    ranges: Mapping[str, ActRange]
    through: tuple[Through, ...] = ()
    fixed: tuple[Fixed, ...] = ()
    weight_narrow: bool = False
    pairs: tuple[tuple[int, int], ...] | None = None
    gates: tuple[Gate, ...] = ()
    calls: tuple[str, ...] = ()
    _index: dict[str, Choice] = field(default_factory=dict, init=False, repr=False, compare=False)
    tables: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Costs tabulated so far, by name; filled by `dnas.space.cost.build_cost`."""

    def __post_init__(self) -> None:
        self._index.update({choice.name: choice for choice in self.choices})

    def choice(self, name: str) -> Choice:
        """The choice of that name.

        Raises:
            KeyError: there is none.
        """
        if name not in self._index:
            raise KeyError(f"no choice {name!r} in this space; it has {sorted(self._index)}")
        return self._index[name]

    def extreme(self, dearest: bool) -> dict[str, Position]:
        """Positions of the cheapest or of the dearest architecture."""
        return {choice.name: choice.extreme(dearest) for choice in self.choices}

    def searched(self) -> Iterator[Choice]:
        """The choices with more than one option."""
        return (choice for choice in self.choices if choice.searched)

    def layer(self, name: str) -> Layer:
        """The layer at that module path.

        Raises:
            KeyError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r} in this space; it has {[layer.name for layer in self.layers]}")

    def gates_of(self, path: str) -> tuple[Gate, ...]:
        """The gates that a module is behind."""
        return tuple(gate for gate in self.gates if gate.encloses(path))

    def gates_by_choice(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """For every choice the gates of others that all of its layers are behind, as (choice, least position)."""
        layers: dict[str, list[str]] = {}
        for layer in self.layers:
            names = [layer.weight_choice, layer.act_choice, *([layer.kernel_choice] if layer.kernel_choice else [])]
            for name in names:
                layers.setdefault(name, []).append(layer.name)
        for group in self.groups:
            layers.setdefault(group.choice, []).extend(group.members)
        for gate in self.gates:
            layers.setdefault(gate.choice, []).append(gate.module)
        found = {}
        for name, paths in layers.items():
            shared = [g for g in self.gates if all(g.encloses(path) for path in paths) and g.choice != name]
            found[name] = tuple(
                (g.choice, next(i for i, o in enumerate(self.choice(g.choice).options) if o >= g.least)) for g in shared
            )
        return found

    def runs(self, path: str, position: Mapping[str, Position]) -> bool:
        """Whether a module runs at one option (by position) per choice."""
        return all(self.is_open(gate, position) for gate in self.gates_of(path))

    def is_open(self, gate: Gate, position: Mapping[str, Position]) -> bool:
        """Whether a gate lets its module run at one option (by position) per choice."""
        return self.choice(gate.choice).options[position[gate.choice]] >= gate.least  # type: ignore[index]

    def to_json(self) -> str:
        """JSON with `type` and `version`, stable to the byte for equal spaces.

        Version 3 has gates and kernels; a space without any is written as version 2, which earlier releases read.
        """
        content = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.init}
        if not self.calls:  # as earlier releases wrote it: their architectures name its digest
            del content["calls"]
        if self.gates or any(layer.kernel_choice for layer in self.layers):
            return json.dumps({"type": "dnas.Space", "version": 3, **content}, indent=1)
        del content["gates"]
        for layer in content["layers"]:
            del layer["kernel_choice"]
        for tensor in content["tensors"]:
            del tensor["readers"], tensor["earlier"]
        return json.dumps({"type": "dnas.Space", "version": 2, **content}, indent=1)

    @cached_property
    def digest(self) -> str:
        """Hash that ties an architecture to the space it was chosen from."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @staticmethod
    def from_json(text: str) -> "Space":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another type or version.
        """
        content = read_typed(text, "dnas.Space", 2, 3)
        return Space(
            choices=tuple(Choice(**{**c, "options": tuple(c["options"])}) for c in content["choices"]),
            groups=tuple(Group(g["choice"], g["size"], tuple(g["members"]), g["blocks"]) for g in content["groups"]),
            layers=tuple(
                Layer(**{**e, "inputs": _channel_map(e["inputs"]), "outputs": _channel_map(e["outputs"])})
                for e in content["layers"]
            ),
            tensors=tuple(
                ActTensor(
                    **{
                        **t,
                        "readers": tuple(t.get("readers", ())),
                        "earlier": tuple((gate, at) for gate, at in t.get("earlier", ())),
                    }
                )
                for t in content["tensors"]
            ),
            ranges={name: ActRange(r["signed"], tuple(r["steps"])) for name, r in content["ranges"].items()},
            through=tuple(
                Through(t["name"], _channel_map(t["channels"]), t["kind"], tuple(t["over"])) for t in content["through"]
            ),
            fixed=tuple(Fixed(**f) for f in content["fixed"]),
            weight_narrow=content["weight_narrow"],
            pairs=None if content["pairs"] is None else tuple((w, a) for w, a in content["pairs"]),
            gates=tuple(Gate(**gate) for gate in content.get("gates", ())),
            calls=tuple(content.get("calls", ())),
        )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _channel_map(content: Mapping[str, Any]) -> ChannelMap:
    return ChannelMap(tuple(content["group"]), tuple(content["position"]))


def read_typed(text: str, kind: str, *versions: int) -> dict[str, Any]:
    """Parses JSON that must carry this `type` and one of these versions, and returns the rest.

    Raises:
        ValueError: not JSON, or another type or version.
    """
    try:
        content: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}; expected a {kind} file as this version writes it") from error
    found = (content.pop("type", None), content.pop("version", None))
    if found not in [(kind, version) for version in versions]:
        raise ValueError(f"found type and version {found}, expected {kind} of {list(versions)}; write the file again")
    return content
