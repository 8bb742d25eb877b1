"""Which channels must be kept or removed together: layers and normalisations say what they do with theirs.

`dnas.space.follow` carries the channels from module to module.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnas.space.follow import FIXED, Follower, Labels
from dnas.space.normalise import Norm, norm_of
from dnas.space.optional import Passage
from dnas.space.slicing import filter_dimension
from dnas.space.trace import evaluating, is_searchable, tensors_of, unfused
from quant.modules import copied

ChannelKey = tuple[str, str, int]
"""(path, "in" or "out" of a layer, "through" a normalisation or "dim<d>" of a parameter or buffer, index)."""


@dataclass(frozen=True)
class Coupling:
    """Channels in classes: every channel of every layer side belongs to exactly one class.

    classes: channels that hold the same filter, producers' and consumers'. blocked: for a class that must stay, why.
    norms: for every module that channels pass through what it does with them. passages: of the modules that were watched.
    """

    classes: tuple[frozenset[ChannelKey], ...]
    blocked: Mapping[int, str]
    norms: Mapping[str, Norm]
    passages: Mapping[str, Passage]


def sides(layer: nn.Module) -> tuple[int, int]:
    """Input and output channels (features) of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return int(layer.in_channels), int(layer.out_channels)  # type: ignore[arg-type]


def is_depthwise(layer: nn.Module) -> bool:
    """One input channel per output channel, and nothing shared between them."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", 0) == getattr(layer, "out_channels", 0)


def find_coupling(
    model: nn.Module, example_inputs: tuple[Any, ...], layers: Sequence[str], watched: Collection[str] = ()
) -> Coupling:
    """Groups the channels of the named layers.

    Args:
        model: left as it was.
        example_inputs: positional arguments of its forward.
        layers: module paths of the layers that run.
        watched: paths of modules whose passages are asked for.
    """
    found = _Run(model, example_inputs, layers, watched=watched)
    channels = found.follower.channels
    read = _read_in_training(model, example_inputs, layers)
    for label, key in enumerate(channels.keys):
        if key in read:
            channels.block([label], read[key])
    members: dict[int, set[ChannelKey]] = {}
    reasons: dict[int, str] = {}
    for label, key in enumerate(channels.keys):
        members.setdefault(channels.find(label), set()).add(key)
    for label, reason in channels.blocked.items():
        reasons.setdefault(channels.find(label), reason)
    known = set(layers)
    useful = {
        (name, side)
        for label, (name, side, _) in enumerate(channels.keys)
        if channels.find(label) not in reasons
        and any(place == "out" and other in known for other, place, _ in members[channels.find(label)])
    }
    classes: list[frozenset[ChannelKey]] = []
    blocked: dict[int, str] = {}
    order = {name: i for i, name in enumerate(layers)}
    kept = {
        root: frozenset(k for k in keys if k[1] in ("in", "out") or (k[0], k[1]) in useful)
        for root, keys in members.items()
    }

    def first(root: int) -> tuple[int, int, bool, int]:
        return min((order.get(n, len(order)), s != "out", s != "in", i) for n, s, i in kept[root])

    for root in sorted((root for root, keys in kept.items() if keys), key=first):
        keys = kept[root]
        made = any(s == "out" and not is_depthwise(model.get_submodule(n)) for n, s, _ in keys)
        if root in reasons or not made:
            blocked[len(classes)] = reasons.get(root, "the network's input or an operation outside of its layers")
        classes.append(keys)
    norms = {name: norm for name, norm in found.norms.items() if (name, "through") in useful}
    return Coupling(tuple(classes), blocked, norms, found.passages())


def _read_in_training(model: nn.Module, inputs: tuple[Any, ...], layers: Sequence[str]) -> dict[ChannelKey, str]:
    """The filters that reach layers which run in training mode only, with the reason why they stay."""
    strangers = {name for name, module in model.named_modules() if is_searchable(module)} - set(layers)
    if not strangers:
        return {}
    with torch.random.fork_rng(devices=[]):
        try:
            found = _Run(copied(model).train(), inputs, layers, strangers)
        except Exception:  # a model may need more than its inputs to train: then these layers run nowhere
            return {}
    return {found.follower.channels.keys[label]: reason for label, reason in found.read_by_strangers.items()}


@dataclass
class _Passing:
    """One run of a watched module: its input with labels and version, its output with labels."""

    x: Tensor | None
    reads: Labels
    version: int
    output: Tensor | None = None
    makes: Labels = field(default_factory=dict)


class _Run:
    """The model once, its channels followed; in evaluation mode, or with `strangers` in the mode that it is in."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        layers: Sequence[str],
        strangers: Collection[str] = (),
        watched: Collection[str] = (),
    ) -> None:
        self.norms: dict[str, Norm] = {}
        self._watched: dict[str, list[_Passing]] = {name: [] for name in watched}
        self.read_by_strangers: dict[int, str] = {}
        self._strangers = strangers
        self._layers = {name: model.get_submodule(name) for name in layers}
        self.follower = Follower(model, inputs, _owners(self._layers))
        shared = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
        for name, layer in self._layers.items():
            self._lay(name, layer, shared[id(layer.weight)] > 1)
        handles = [handle for name, module in model.named_modules() for handle in self._watch(name, module)]
        handles += [handle for name in watched for handle in self._follow(name, model.get_submodule(name))]
        try:
            with torch.no_grad(), unfused(), nullcontext() if strangers else evaluating(model), self.follower:
                output = model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        for tensor in tensors_of(output):
            for vector in self.follower.of(tensor).values():
                self.follower.channels.block(vector, "an output of the network")
        if self.follower.decides:
            reason = f"the forward pass may depend on the data's values ({self.follower.decides})"
            self.follower.channels.block(range(len(self.follower.channels.keys)), reason)

    def _lay(self, name: str, layer: nn.Module, shared: bool) -> None:
        """Every side of every layer has labels, also where nothing is known of what it reads."""
        channels = self.follower.channels
        c_in, c_out = sides(layer)
        ins, outs = channels.side(name, "in", c_in), channels.side(name, "out", c_out)
        if is_depthwise(layer):
            channels.unite(ins, outs, "")
        elif getattr(layer, "groups", 1) > 1:
            channels.block([*ins, *outs], f"grouped convolution {name}")
        if shared:
            channels.block([*ins, *outs], f"{name} shares its weight with another module")

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        follower = self.follower
        opaque: list[Norm | bool | None] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            follower.stack.append(name)
            norm: Norm | None = None
            reads = tensors_of((args, kwargs))
            if name in self._strangers and reads:
                for label in (label for vector in follower.of(reads[0]).values() for label in vector if label != FIXED):
                    self.read_by_strangers[label] = f"{name} reads them, which runs in training only"
            if name not in self._layers and len(reads) == 1 and not follower.inside:
                follower.enter()
                norm = norm_of(module, reads[0])
                follower.leave()
            opaque.append(norm or name in self._layers)
            if opaque[-1]:
                follower.enter()

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            kind = opaque.pop()
            reads = tensors_of((args, kwargs))
            if kind:
                follower.leave()
                follower.spread(reads, tensors_of(output))
            if isinstance(kind, Norm):
                self._norm(name, module, kind, reads[0], output)
            elif kind:
                self._layer(name, module, reads[0], output)
            follower.stack.pop()

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _follow(self, name: str, module: nn.Module) -> list[Any]:
        """Notes what goes into a module and what comes out."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args and isinstance(args[0], Tensor) else None
            labels = {d: list(v) for d, v in self.follower.of(x).items()} if x is not None else {}
            self._watched[name].append(_Passing(x, labels, 0 if x is None else x._version))

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            passing = self._watched[name][-1]
            if isinstance(output, Tensor):
                passing.output, passing.makes = output, {d: list(v) for d, v in self.follower.of(output).items()}

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def passages(self) -> dict[str, Passage]:
        """What the watched modules that ran did, once all channels are united."""
        found = {}
        for name, seen in self._watched.items():
            if seen:
                last = seen[-1]
                reason = "it runs more than once" if len(seen) > 1 else self._kept_apart(last)
                found[name] = Passage(id(last.x), id(last.output), reason)
        return found

    def _kept_apart(self, passing: "_Passing") -> str:
        """Why the output of a module cannot stand for its input."""
        x, output = passing.x, passing.output
        if x is None or output is None:
            return "it does not read and return one tensor"
        if x.shape != output.shape or x.dtype != output.dtype:
            return f"it makes {list(output.shape)} of {list(x.shape)}"
        if x._version != passing.version:
            return "it changes its input in place"
        find = self.follower.channels.find
        for dimension in {*passing.reads, *passing.makes}:
            ins, outs = passing.reads.get(dimension), passing.makes.get(dimension)
            same = ins is not None and outs is not None
            same = same and [FIXED if i == FIXED else find(i) for i in ins or ()] == [
                FIXED if i == FIXED else find(i) for i in outs or ()
            ]
            if not same:
                return "its channels are not those that it reads: no shortcut adds the two"
        return ""

    def _layer(self, name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        channels = self.follower.channels
        ins, outs = (channels.side(name, side, n) for side, n in zip(("in", "out"), sides(layer), strict=True))
        axis = x.dim() - 1 - (0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2)  # type: ignore[operator]
        labels = self.follower.of(x)
        self.follower.block(x, "another dimension than that of channels", [d for d in labels if d != axis])
        channels.unite(
            ins,
            labels.get(axis, [FIXED] * len(ins)),
            f"{name} reads the network's input or channels that no layer makes",
        )
        self.follower.put(output, {axis: outs})

    def _norm(self, name: str, module: nn.Module, norm: Norm, x: Tensor, output: Tensor) -> None:
        channels, labels = self.follower.channels, self.follower.of(x)
        mixed = {d % x.dim() for d in norm.over} - {norm.axis}
        self.follower.block(x, f"{type(module).__name__} over them", mixed)
        left: Labels = {d: v for d, v in labels.items() if d not in mixed}
        if norm.axis in left and not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            own = channels.side(name, "through", x.shape[norm.axis])
            joined = [a if b == FIXED else b for a, b in zip(own, left[norm.axis], strict=True)]
            left[norm.axis] = channels.unite(own, joined, "")
            if self.norms.setdefault(name, norm).over[:1] != norm.over[:1]:
                channels.block(own, f"{name} normalises inputs of different shapes")
        self.follower.put(output, left)


def _owners(layers: Mapping[str, nn.Module]) -> dict[int, Callable[[int], tuple[str, str] | None]]:
    """For weights and biases that operations read outside of their layers: the sides that their dimensions belong to."""
    owners: dict[int, Callable[[int], tuple[str, str] | None]] = {}
    for name, layer in layers.items():
        filters, plain = filter_dimension(layer), getattr(layer, "groups", 1) == 1

        def weight(dimension: int, name: str = name, filters: int = filters, plain: bool = plain) -> Any:
            if dimension > 1 or not plain:
                return None
            return (name, "out" if dimension == filters else "in")

        owners[id(layer.weight)] = weight
        if isinstance(layer.bias, Tensor):
            owners[id(layer.bias)] = lambda _, name=name: (name, "out")  # type: ignore[misc]
    return owners
