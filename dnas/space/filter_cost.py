"""The part of a cost that depends on single filters: exact expectations without a table over all of them.

A cost that adds up over channels is, for a layer, sum over input channels j and filters f of m_j m_f u(w_f, a_j): m says
whether a channel stays, u is what one pair of channels costs. Its expectation needs only how many channels are expected
at each width on either side, and, because m_j m_f is m_j where both are the same channel of one group, the variance of
every m that stands on both sides:

E[sum] = sum over w, a of u(w, a) (N_w N'_a + sum_m Var[m] W_mw A_ma), N_w = sum_m E[m] W_mw, N'_a = sum_m E[m] A_ma

with W_mw (A_ma) the expected number of filters (input channels) at width w (a) among those that m keeps. An m is a
channel that decides by itself, or the filter count of a group that decides as a whole.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dnas.space.choice import ActTensor, ChannelMap, Choice, Layer, Position, Space

Entry = tuple[int, tuple[str, int]]
"""(number of the m, (choice, number of its decision)): a channel stays by m and has its width by that decision."""
ONE = ("", 0)
"""In place of a decision: the first option, for certain."""


def by_filter(space: Space, side: ChannelMap, *choices: str) -> bool:
    """Whether single filters decide about the channels of a side, or about one of these choices."""
    names = (*choices, *(space.groups[group].choice for group in side.counts))
    return any(space.choice(name).by_filter for name in names)


def layer_by_filter(space: Space, layer: Layer) -> bool:
    """Whether single filters decide about anything that a layer's cost depends on."""
    return by_filter(space, layer.inputs, layer.act_choice) or by_filter(space, layer.outputs, layer.weight_choice)


def tensor_side(space: Space, tensor: ActTensor) -> ChannelMap:
    """The channels of a stored tensor."""
    layer = space.layer(tensor.like)
    return layer.outputs if tensor.side == "output" else layer.inputs


def tensor_parts(space: Space, tensor: ActTensor) -> list[tuple[ChannelMap, tuple[int, ...] | None]]:
    """The channels of a stored tensor, and which channels of its choice they are, or become: these decide their widths.

    An output that waits may be a part of what its choice is about (before a concat). Where a channel is there more than
    once (or not to be followed) its width is not that of one decision: None, it counts at the dearest width.
    """
    side = tensor_side(space, tensor)
    if tensor.side == "input" or not space.choice(tensor.choice).by_filter:
        return [(side, tuple(range(len(side))))]
    reader = next(layer for layer in space.layers if layer.act_choice == tensor.choice).inputs
    places: dict[tuple[int, int], list[int]] = {}
    for channel, key in enumerate(zip(reader.group, reader.position, strict=True)):
        places.setdefault(key, []).append(channel)
    keys = list(zip(side.group, side.position, strict=True))
    known = [key for key in keys if len(places.get(key, ())) == 1]
    others = [key for key in keys if len(places.get(key, ())) != 1]
    parts = [(known, tuple(places[key][0] for key in known)), (others, None)]
    return [(ChannelMap(*zip(*found, strict=True)), channels) for found, channels in parts if found]


@dataclass
class _Terms:
    """What is collected before choices have rows; `dnas.space.cost` numbers them."""

    space: Space
    masses: dict[tuple[str, int], int] = field(default_factory=dict)
    segments: list[Counter[Entry]] = field(default_factory=list)
    layers: list[tuple[int, int, NDArray[np.float64]]] = field(default_factory=list)
    shared: list[tuple[int, int, dict[Entry, int], dict[Entry, int]]] = field(default_factory=list)
    diagonal: list[tuple[int, tuple[str, int], tuple[str, int], int, NDArray[np.float64]]] = field(default_factory=list)
    tensors: list[tuple[int, int, NDArray[np.float64]]] = field(default_factory=list)

    def mass(self, group: int, position: int) -> int:
        """The number of the m that a channel stays by."""
        choice = self.space.choice(self.space.groups[group].choice)
        decision = position // choice.block if choice.by_filter else 0
        key = (choice.name, decision) if choice.searched else ONE
        return self.masses.setdefault(key, len(self.masses))

    def entries(self, side: ChannelMap, name: str, channels: Sequence[int] | None = None) -> list[Entry]:
        """For every channel of a side what it stays by and what decides its width.

        Args:
            side: the side.
            name: the choice of widths, or nothing.
            channels: the choice's channels that these are; by default the same.
        """
        choice = self.space.choice(name) if name else None
        found = []
        own = range(len(side)) if channels is None else channels
        for channel, group, position in zip(own, side.group, side.position, strict=True):
            decision = ONE
            if choice is not None:
                decision = (choice.name, channel // choice.block if choice.by_filter else 0)
            found.append((self.mass(group, position), decision))
        return found

    def shares(self) -> list[float]:
        """For every m the channels per unit of it: a group's count stands for all of its channels."""
        sizes = {group.choice: group.size for group in self.space.groups}
        whole = (key == ONE or self.space.choice(key[0]).by_filter for key in self.masses)
        return [1.0 if alone else 1.0 / sizes[name] for alone, (name, _) in zip(whole, self.masses, strict=True)]

    def segment(self, entries: Sequence[Entry]) -> int:
        """Adds a side; returns its number."""
        self.segments.append(Counter(entries))
        return len(self.segments) - 1

    def add_layer(self, layer: Layer, unit: NDArray[np.float64]) -> None:
        """Adds a layer whose pairs of channels cost unit[w, a]; per channel for a depthwise one."""
        joint = layer.weight_choice == layer.act_choice
        outs = self.entries(layer.outputs, layer.weight_choice)
        ins = self.entries(layer.inputs, "" if joint else layer.act_choice)
        number = len(self.layers)
        if layer.depthwise:
            pairs = Counter((mass, w, a) for (mass, w), (_, a) in zip(outs, ins, strict=True))
            self.diagonal += [(mass, w, a, count, unit) for (mass, w, a), count in pairs.items()]
            return
        self.layers.append((self.segment(outs), self.segment(ins), unit))
        sides = []
        for entries in (outs, ins):
            by_mass: dict[int, Counter[Entry]] = {}
            for entry in entries:
                by_mass.setdefault(entry[0], Counter())[entry] += 1
            sides.append(by_mass)
        for mass in sides[0].keys() & sides[1].keys() - {self.masses.get(ONE)}:
            self.shared.append((number, mass, dict(sides[0][mass]), dict(sides[1][mass])))


@dataclass(frozen=True, eq=False)
class FilterTerms:
    """The terms of a cost that single filters enter.

    choices: every choice that does enter, each with its number of decisions.
    """

    choices: Mapping[str, int]
    _terms: _Terms
    _rows: int

    def bounded(self, take: Callable[..., float]) -> "FilterTerms":
        """With the smallest (take=min) or largest (max) cost of a pair of channels at whichever widths."""
        terms = copy.copy(self._terms)
        terms.layers = [(outs, ins, np.full_like(unit, take(unit.ravel()))) for outs, ins, unit in terms.layers]
        terms.diagonal = [(m, w, a, n, np.full_like(unit, take(unit.ravel()))) for m, w, a, n, unit in terms.diagonal]
        return replace(self, _terms=terms)

    def placed(self, first: Mapping[str, int], last: int) -> "PlacedTerms":
        """The terms over a matrix in which the decisions of a choice start at row first[name], of `last` rows in all."""
        return PlacedTerms(self._terms, first, last, self._rows)


class PlacedTerms:
    """Terms as tensors: the expectation is a dozen operations for any number of filters."""

    def __init__(self, terms: _Terms, first: Mapping[str, int], last: int, rows: int) -> None:
        space = terms.space
        self.rows = rows

        def row(decision: tuple[str, int]) -> int:
            return last if decision == ONE else first[decision[0]] + decision[1]

        widest = max((unit.shape[0] for _, _, unit in terms.layers), default=1)
        widest = max([widest, *(u.shape[0] for *_, u in terms.diagonal), *(len(b) for *_, b in terms.tensors)])
        across = max([1, *(u.shape[1] for _, _, u in terms.layers), *(u.shape[1] for *_, u in terms.diagonal)])
        self.width = max(widest, across)
        counts = np.zeros((len(terms.masses), max([2, *(c.width for c in space.choices if not c.by_filter)])))
        mass_rows = []
        for number, key in enumerate(terms.masses):
            mass_rows.append(row(key))
            if key == ONE:
                counts[number, 0] = 1
            elif space.choice(key[0]).by_filter:
                counts[number, 1] = 1
            else:
                options = space.choice(key[0]).options
                counts[number, : len(options)] = options
        shares = terms.shares()
        entries = [
            (number, mass, row(decision), count * shares[mass])
            for number, segment in enumerate(terms.segments)
            for (mass, decision), count in segment.items()
        ]
        sides: list[list[tuple[int, int, float]]] = [[], []]
        for number, (_, mass, outs, ins) in enumerate(terms.shared):
            for side, found in zip(sides, (outs, ins), strict=True):
                side += [(number, row(decision), count * shares[mass]) for (_, decision), count in found.items()]
        self.tensors = {
            "mass_rows": _integers(mass_rows),
            "counts": torch.from_numpy(counts),
            "segment": _integers([e[0] for e in entries]),
            "mass": _integers([e[1] for e in entries]),
            "row": _integers([e[2] for e in entries]),
            "count": _floats([e[3] for e in entries]),
            "out": _integers([layer[0] for layer in terms.layers]),
            "in": _integers([layer[1] for layer in terms.layers]),
            "unit": self._stack([unit for _, _, unit in terms.layers]),
            "shared_layer": _integers([s[0] for s in terms.shared]),
            "shared_mass": _integers([s[1] for s in terms.shared]),
            "diagonal_mass": _integers([d[0] for d in terms.diagonal]),
            "diagonal_weight": _integers([row(d[1]) for d in terms.diagonal]),
            "diagonal_act": _integers([row(d[2]) for d in terms.diagonal]),
            "diagonal_count": _floats([d[3] * shares[d[0]] for d in terms.diagonal]),
            "tensor_row": _integers([t[0] for t in terms.tensors]),
            "tensor_segment": _integers([t[1] for t in terms.tensors]),
        }
        units: dict[int, int] = {}
        for *_, unit in terms.diagonal:
            units.setdefault(id(unit), len(units))
        kinds = {id(unit): unit for *_, unit in terms.diagonal}
        self.tensors["diagonal_kind"] = _integers([units[id(d[4])] for d in terms.diagonal])
        self.tensors["diagonal_unit"] = self._stack([kinds[key] for key in units])
        for name, side in zip(("shared_out", "shared_in"), sides, strict=True):
            self.tensors[f"{name}_number"] = _integers([s[0] for s in side])
            self.tensors[f"{name}_row"] = _integers([s[1] for s in side])
            self.tensors[f"{name}_count"] = _floats([s[2] for s in side])
        bits = np.zeros((len(terms.tensors), self.width))
        for number, (_, _, sizes) in enumerate(terms.tensors):
            bits[number, : len(sizes)] = sizes
        self.tensors["tensor_bits"] = torch.from_numpy(bits)
        self.segments, self.shared = len(terms.segments), len(terms.shared)

    def _stack(self, units: Sequence[NDArray[np.float64]]) -> Tensor:
        padded = np.zeros((len(units), self.width, self.width))
        for number, unit in enumerate(units):
            padded[number, : unit.shape[0], : unit.shape[1]] = unit
        return torch.from_numpy(padded)

    def expectation(self, probabilities: Tensor) -> Tensor:
        """What the terms add to each row of the cost; shape (rows,), differentiable.

        Args:
            probabilities: shape (decisions, K), float64, the rows as given to `FilterTerms.placed`.
        """
        t = {name: tensor.to(probabilities.device) for name, tensor in self.tensors.items()}
        p = F.pad(probabilities, (0, max(self.width, t["counts"].shape[1]) - probabilities.shape[1]))
        one = F.one_hot(torch.zeros(1, dtype=torch.int64, device=p.device), p.shape[1]).to(p.dtype)
        p = torch.cat([p, one])
        stays = p.index_select(0, t["mass_rows"])[:, : t["counts"].shape[1]]
        mean = (stays * t["counts"]).sum(1)
        p = p[:, : self.width]
        weighted = (mean.index_select(0, t["mass"]) * t["count"]).unsqueeze(1) * p.index_select(0, t["row"])
        sides = p.new_zeros(self.segments, self.width).index_add(0, t["segment"], weighted)
        outs, ins = sides.index_select(0, t["out"]), sides.index_select(0, t["in"])
        total = (outs.unsqueeze(1) @ t["unit"] @ ins.unsqueeze(2)).sum()
        if self.shared:
            variance = (stays * t["counts"].square()).sum(1) - mean.square()
            found = []
            for name in ("shared_out", "shared_in"):
                rows = t[f"{name}_count"].unsqueeze(1) * p.index_select(0, t[f"{name}_row"])
                found.append(p.new_zeros(self.shared, self.width).index_add(0, t[f"{name}_number"], rows))
            unit = t["unit"].index_select(0, t["shared_layer"])
            both = (found[0].unsqueeze(1) @ unit @ found[1].unsqueeze(2)).flatten()
            total = total + both @ variance.index_select(0, t["shared_mass"])
        if len(t["diagonal_mass"]):
            per_kind = torch.einsum("kwa,ea->ekw", t["diagonal_unit"], p.index_select(0, t["diagonal_act"]))
            per_act = per_kind[torch.arange(len(per_kind), device=p.device), t["diagonal_kind"]]
            value = (per_act * p.index_select(0, t["diagonal_weight"])).sum(1)
            total = total + value @ (mean.index_select(0, t["diagonal_mass"]) * t["diagonal_count"])
        rows = p.new_zeros(self.rows).index_add(
            0, t["tensor_row"], (sides.index_select(0, t["tensor_segment"]) * t["tensor_bits"]).sum(1)
        )
        return rows + total * (torch.arange(self.rows, device=p.device) == 0)


def _integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _floats(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def unit_cost(
    layer: Layer, name: str, function: Callable[[Layer, int, int, int, int], float], weight: Choice, act: Choice
) -> NDArray[np.float64]:
    """What one pair of an input channel and a filter costs at every (weight bits, activation bits); shape (W, A).

    For a depthwise layer: what one channel costs. Of a joint choice of both widths: shape (options, 1).

    Raises:
        ValueError: the cost does not add up over channels.
    """
    c_in, c_out = len(layer.inputs), len(layer.outputs)
    pairs = c_out if layer.depthwise else c_in * c_out
    joint = weight.name == act.name
    table = np.empty((len(weight.options), 1 if joint else len(act.options)))
    for i, w in enumerate(weight.weight_bits):
        for j, a in enumerate([act.act_bits[i]] if joint else act.act_bits):
            value = function(layer, c_in, c_out, w, a) / pairs
            if layer.groups == 1 or layer.depthwise:
                for fewer_in, fewer_out in {(1, 1), (max(c_in // 2, 1), max(c_out // 2, 1))}:
                    fewer_in = fewer_out if layer.depthwise else fewer_in
                    count = fewer_out if layer.depthwise else fewer_in * fewer_out
                    if abs(function(layer, fewer_in, fewer_out, w, a) - value * count) > 1e-9 * max(value * count, 1):
                        raise ValueError(
                            f"{name} of layer {layer.name} does not add up over channels, which choices by filter need; use "
                            "bops, macs, weight_bits or the costs of activation tensors, or space.granularity=layer"
                        )
            table[i, j] = value
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(f"{name} of layer {layer.name}: a cost must be finite and not negative; found {table.min()}")
    return table


def layer_terms(space: Space, name: str, function: Callable[[Layer, int, int, int, int], float]) -> FilterTerms | None:
    """The terms of a cost of layers; None where no layer has any.

    Raises:
        ValueError: the cost does not add up over channels.
    """
    terms = _Terms(space)
    for layer in space.layers:
        if layer_by_filter(space, layer):
            weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
            terms.add_layer(layer, unit_cost(layer, name, function, weight, act))
    return _finish(terms, 1)


def tensor_terms(space: Space, rows: Sequence[Sequence[ActTensor]]) -> FilterTerms | None:
    """The terms of a cost of stored tensors, given those that count in each row; None where there are none."""
    terms = _Terms(space)
    for number, tensors in enumerate(rows):
        for tensor in tensors:
            side = tensor_side(space, tensor)
            if by_filter(space, side, tensor.choice):
                bits = np.array(space.choice(tensor.choice).act_bits, dtype=np.float64) * tensor.elements
                for part, channels in tensor_parts(space, tensor):
                    segment = terms.segment(terms.entries(part, tensor.choice if channels else "", channels))
                    terms.tensors.append((number, segment, bits if channels else bits[-1:]))
    return _finish(terms, len(rows))


def _finish(terms: _Terms, rows: int) -> FilterTerms | None:
    names: dict[str, int] = {}
    for name, _ in terms.masses:
        if name:
            names[name] = terms.space.choice(name).count
    decisions = [d for s in terms.segments for _, d in s] + [d for e in terms.diagonal for d in e[1:3]]
    for name, _ in decisions:
        if name:
            names[name] = terms.space.choice(name).count
    return FilterTerms(names, terms, rows) if terms.segments or terms.diagonal else None


def certain(names: Sequence[str], position: Mapping[str, Position]) -> Tensor:
    """One row per decision of these choices, 1 at the option that it takes; shape (decisions, K), float64."""
    taken: list[int] = []
    for name in names:
        found = position[name]
        taken += [found] if isinstance(found, int) else found
    return F.one_hot(_integers(taken), max(taken, default=0) + 1).double()
