"""From a model to its space: trace, couple, and lay a choice on every decision that the user allows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from dnas.space.attention import separate_attention
from dnas.space.check import failing_groups
from dnas.space.choice import INPUT_BITS, ChannelMap, Choice, Fixed, Group, Layer, Space, Through
from dnas.space.coupling import Coupling, find_coupling, is_depthwise
from dnas.space.examples import batch_of, input_samples, multiplications, sizes_of_calls, trace_few, trace_one
from dnas.space.granularity import (
    Decisions,
    Filters,
    Granularity,
    decisions,
    legal_pairs,
    matching,
    pair_options,
    shares_of,
)
from dnas.space.lifetimes import lifetimes
from dnas.space.optional import candidates, find_optional
from dnas.space.plain import with_plain_layers
from dnas.space.ranges import activation_range
from dnas.space.target import Target
from dnas.space.trace import Call, Trace, is_searchable


def build_space(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    weight_bits: Sequence[int] = (2, 3, 4, 6, 8),
    act_bits: Sequence[int] = (2, 3, 4, 6, 8),
    filters: Filters = (0.25, 0.5, 0.75, 1.0),
    exclude: Sequence[str] = (),
    target: Target | None = None,
    weight_narrow: bool = False,
    granularity: Granularity = "layer",
    act_granularity: Granularity = "layer",
    filter_block: int = 1,
    pairs: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[int] = (),
    min_depth: int | None = None,
    branches: Sequence[str] = (),
) -> Space:
    """Builds the space of a model: weight bits per layer, activation bits per tensor, filter counts per coupled group.

    Args:
        model: any module; left as it was. Its layers of the types in `dnas.space.trace.SEARCHABLE` are searched.
        example_inputs: real data, a small batch (dimension 0): they set the sign and the first step of activations.
        weight_bits: options, 2 to 8; and 0, where filters decide by themselves: it removes the filter.
        act_bits: options, 2 to 8; layers that read the same tensor share the choice.
        filters: shares of a group's filters; or by glob of the path of its first layer, other groups then stay whole.
        exclude: globs of module paths that stay at full width and 8 bits.
        target: what the hardware can run; options outside of it are dropped.
        weight_narrow: symmetric weight grids (2 bits are then ternary).
        granularity: `layer`, one width for all filters of a layer; or `filter`, every filter its own; or either by glob
            of module paths. Which filters of a group stay is then decided filter by filter as well.
        act_granularity: the same for the channels of activation tensors; a tensor takes what all of its readers ask for.
        filter_block: how many consecutive filters decide together.
        pairs: legal (weight bits, activation bits): the two become one joint choice for each tensor and its readers, in
            place of weight_bits and act_bits.
        kernels: sides that a square kernel of a two-dimensional convolution may shrink to, its middle stays; () keeps
            all kernels.
        min_depth: the least number of blocks that stay in a stage; None keeps all blocks. See `dnas.space.optional`.
        branches: globs of modules that may be left out, such as squeeze-and-excitation: their input then is their output.

    Returns:
        the space; `space.fixed` names everything that is not searched, and why.

    Raises:
        ValueError: the model fails on the inputs, has no layer to search, an option is out of range, or a glob matches
            nothing.
    """
    target = target or Target()
    prune = 0 in weight_bits
    weight_bits = [bits for bits in weight_bits if bits]
    for key, options in (("weight_bits", weight_bits), ("act_bits", act_bits)):
        if not options or any(isinstance(b, bool) or b != int(b) or not 2 <= b <= 8 for b in options):
            raise ValueError(f"space.{key} is {list(options)}; allowed: a list of whole numbers from 2 to 8")
    weight_bits, act_bits = [int(b) for b in weight_bits], [int(b) for b in act_bits]
    joint = legal_pairs(pairs, target)
    if joint and (granularity != "layer" or act_granularity != "layer"):
        raise ValueError(
            "space.pairs are joint choices of whole layers; leave space.granularity and act_granularity at layer"
        )
    if any(isinstance(k, bool) or k != int(k) or k < 1 or k % 2 == 0 for k in kernels):
        raise ValueError(f"space.kernels is {list(kernels)}; allowed: odd sides such as [3, 5]")
    if min_depth is not None and min_depth < 0:
        raise ValueError(f"space.min_depth is {min_depth}; allowed: 0 or more, or null")
    elastic = bool(kernels) or min_depth is not None or bool(branches)
    if elastic and (granularity != "layer" or act_granularity != "layer"):
        raise ValueError(
            "space.kernels, min_depth and branches go with whole layers; leave space.granularity and act_granularity at layer"
        )
    if not filters or (isinstance(filters, Mapping) and not all(filters.values())):
        raise ValueError("space.filters is empty; use [1.0] to keep every filter")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    model = with_plain_layers(separate_attention(model))
    trace, few = trace_few(model, inputs)
    names = list(dict.fromkeys(call.layer for call in trace.calls))
    if not names:
        raise ValueError("the model runs no convolution or linear layer on example_inputs: there is nothing to search")
    excluded = {name for glob in exclude for name in matching(glob, names, "space.exclude")}
    for glob in filters if isinstance(filters, Mapping) else ():
        matching(glob, names, "space.filters")
    coupling = find_coupling(model, few, names, candidates(model, min_depth is not None, branches))
    optional = find_optional(model, coupling.passages, names, min_depth, branches)
    act_of, shared = _share_tensors(trace)
    given = {act for act, calls in shared.items() if any(c.input_storage in trace.input_storages for c in calls)}
    eight = given | {act for act, calls in shared.items() if any(call.layer in excluded for call in calls)}
    readers = {act: list(dict.fromkeys(call.layer for call in calls)) for act, calls in shared.items()}
    fine = decisions(
        model, names, readers, excluded | eight, granularity, act_granularity, filter_block, prune
    )  # fmt: skip
    groups, choices, sides, fixed = _lay_filters(coupling, names, excluded, target, filters, fine, act_of)
    fixed += [Fixed(name, reason) for name, reason in fine.whole.items()]
    legal_weights = tuple(sorted({w for w, _ in joint})) or target.legal("weight_bits", weight_bits)
    legal_acts = target.legal("act_bits", act_bits)
    layers, ranges = [], {}
    one, batch = trace_one(model, few, trace)
    sizes = sizes_of_calls(one, batch)
    for name in names:
        layer, calls = model.get_submodule(name), [sizes[i] for i, call in enumerate(trace.calls) if call.layer == name]
        ins, outs = sides[(name, "in")], sides[(name, "out")]
        weight = f"{name}.weight_bits"
        if joint and act_of[name] not in eight:
            weight = act_of[name]
        else:
            options = (INPUT_BITS,) if name in excluded else legal_weights
            count = -(-len(outs) // fine.block) if name in fine.weights else 1
            choices.append(Choice(weight, "weight_bits", options, *_by_filter(name in fine.weights, count, fine.block)))
        if name in excluded:
            fixed.append(Fixed(name, "excluded by space.exclude: full width, 8 bits"))
        positions = sum(made // max(len(outs), 1) for _, made in calls)
        kernel = int(torch.tensor(getattr(layer, "kernel_size", (1,))).prod())
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            positions = sum(read // max(len(ins), 1) for read, _ in calls)
        kind, depthwise = type(layer).__name__, is_depthwise(layer)
        sides_of = kernel_options(layer, kernels) if name not in excluded else ()
        if sides_of:
            choices.append(Choice(f"{name}.kernel", "kernel", sides_of))
        layers.append(
            Layer(
                name, kind, positions, kernel, int(getattr(layer, "groups", 1)), depthwise, ins, outs,
                weight, act_of[name], f"{name}.kernel" if sides_of else None,
            )
        )  # fmt: skip
    if kernels and not any(layer.kernel_choice for layer in layers):
        raise ValueError(f"space.kernels is {list(kernels)}, but no convolution has a larger square kernel of odd side")
    samples = input_samples(model, inputs, trace, shared)
    for act, readings in shared.items():
        options = (INPUT_BITS,) if act in eight else legal_acts
        if joint and act not in eight:
            choices.append(Choice(act, "pair_bits", pair_options(joint)))
        else:
            count = -(-len(sides[(readings[0].layer, "in")]) // fine.block) if act in fine.tensors else 1
            choices.append(Choice(act, "act_bits", options, *_by_filter(act in fine.tensors, count, fine.block)))
        if act in given:
            fixed.append(Fixed(act, "the network's input: 8 bits"))
        ranges[act] = activation_range(*samples[act], choices[-1].act_bits)
    fixed += _unlisted(model, trace, names, multiplications(one, batch))
    through = _through(coupling, sides)
    counts = [_sample(choice.options) for choice in choices[: len(groups)]]
    for index, reason in failing_groups(model, few, groups, counts, layers, through).items():
        choices[index] = Choice(groups[index].choice, "filters", (groups[index].size,))
        fixed.append(Fixed(groups[index].choice, reason))
    choices += optional.choices
    tensors = lifetimes(trace, act_of, layers, sizes, optional.gates, batch_of(few))
    return Space(
        tuple(choices), tuple(groups), tuple(layers), tuple(tensors), ranges,
        through, tuple(fixed), weight_narrow, target.pairs, tuple(optional.gates),
        tuple(call.layer for call in trace.calls) if optional.gates else (),
    )  # fmt: skip


def kernel_options(layer: nn.Module, kernels: Sequence[int]) -> tuple[int, ...]:
    """The sides that a layer's kernel may have, its own the last; () where there is nothing to choose."""
    if not kernels or not isinstance(layer, nn.Conv2d):
        return ()
    sides, padding, dilation = layer.kernel_size, layer.padding, layer.dilation
    if sides[0] != sides[1] or sides[0] % 2 == 0 or isinstance(padding, str) or layer.padding_mode != "zeros":
        return ()
    room = min(int(p) // int(d) for p, d in zip(padding, dilation, strict=True))
    smaller = [k for k in kernels if k < sides[0] and (sides[0] - k) // 2 <= room]
    return (*sorted(set(smaller)), sides[0]) if smaller else ()


def _by_filter(fine: bool, count: int, block: int) -> tuple[str, int, int]:
    """Granularity, count and block of a choice."""
    return ("filter", count, block) if fine else ("layer", 1, 1)


def _sample(counts: tuple[int, ...]) -> tuple[int, ...]:
    """At most five of these counts, evenly spread, both ends among them."""
    last = len(counts) - 1
    return tuple(counts[i] for i in sorted({round(last * part / 4) for part in range(5)}))


def _lay_filters(
    coupling: Coupling,
    names: list[str],
    excluded: set[str],
    target: Target,
    filters: Filters,
    fine: Decisions,
    act_of: Mapping[str, str],
) -> tuple[list[Group], list[Choice], dict[tuple[str, str], ChannelMap], list[Fixed]]:
    """Groups of channel classes with the same producers, one choice each, and the channel maps of every layer."""
    by_producers: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for index, keys in enumerate(coupling.classes):
        makers = sorted((name for name, side, _ in keys if side == "out"), key=names.index)
        reason = coupling.blocked.get(index, "")
        if not reason and len(set(makers)) < len(makers):
            reason = f"channels of {makers[0]} are tied to each other"
        if not reason and excluded & set(makers):
            reason = f"{sorted(excluded & set(makers))[0]} is excluded by space.exclude"
        by_producers.setdefault((tuple(dict.fromkeys(makers)), reason), []).append(index)
    groups: list[Group] = []
    reasons: list[str] = []
    decides: list[bool] = []
    sides: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
    taken: set[str] = set()
    for (producers, reason), classes in by_producers.items():
        place = producers[0] if producers else f"{min(min(coupling.classes[c])[0] for c in classes)}.input"
        name = f"{place}.filters"
        while name in taken:
            name += "+"
        taken.add(name)
        reasons.append(reason or _uneven(coupling, classes))
        places = {(layer, side) for index in classes for layer, side, _ in coupling.classes[index]}
        single = any(side == "out" and layer in fine.weights for layer, side in places)
        decides.append(single or any(side == "in" and act_of[layer] in fine.tensors for layer, side in places))
        groups.append(Group(name, len(classes), producers))
        for position, index in enumerate(classes):
            for layer, side, channel in coupling.classes[index]:
                sides.setdefault((layer, side), {})[channel] = (len(groups) - 1, position)
    maps = {}
    for place_side, entries in sides.items():
        ordered = [entry for _, entry in sorted(entries.items())]
        maps[place_side] = ChannelMap(tuple(group for group, _ in ordered), tuple(position for _, position in ordered))
    for name, norm in coupling.norms.items():
        if norm.kind == "group":
            _lay_blocks(name, norm.groups, maps[name, "through"], groups, reasons)
    choices, fixed = [], []
    for group, reason, single in zip(groups, reasons, decides, strict=True):
        if single and group.blocks > 1:
            reason = (
                reason or "a group norm needs equally many of them in each of its groups, single filters cannot tell"
            )
        counts: tuple[int, ...] = (group.size,)
        if not reason:
            ratios = shares_of(filters, group.members[0] if group.members else "")
            counts = target.filter_counts(group.size, ratios, group.blocks)
            counts = fine.counts(group.size, ratios, target) if single else counts
        if reason and group.members:
            fixed.append(Fixed(group.choice, reason))
        single &= len(counts) > 1
        count = -(-group.size // fine.block) if single else 1
        choices.append(Choice(group.choice, "filters", counts, *_by_filter(single, count, fine.block)))
    return groups, choices, maps, fixed


def _lay_blocks(name: str, norms: int, side: ChannelMap, groups: list[Group], reasons: list[str]) -> None:
    """A group norm needs equally many channels in each of its own groups: sets `blocks`, or the reason to stay whole."""
    length = len(side) // norms
    for index in side.counts:
        size = groups[index].size
        reads = [[0] * size for _ in range(norms)]
        for channel, (group, position) in enumerate(zip(side.group, side.position, strict=True)):
            if group == index:
                reads[channel // length][position] += 1
        if all(row == reads[0] for row in reads):
            continue
        blocks = lcm(norms, groups[index].blocks)
        runs = [[position * norms // size == block for position in range(size)] for block in range(norms)]
        if size % blocks or any([bool(n) for n in row] != run for row, run in zip(reads, runs, strict=True)):
            reasons[index] = reasons[index] or f"{name}'s {norms} groups do not divide these channels evenly"
        else:
            groups[index] = replace(groups[index], blocks=blocks)


def _through(coupling: Coupling, sides: dict[tuple[str, str], ChannelMap]) -> tuple[Through, ...]:
    found = []
    for (name, side), channels in sorted(sides.items()):
        if side == "through":
            norm = coupling.norms[name]
            found.append(Through(name, channels, norm.kind, norm.over if norm.mixes else ()))
        elif side.startswith("dim"):
            found.append(Through(name, channels, "parameter", (int(side.removeprefix("dim")),)))
    return tuple(found)


def _uneven(coupling: Coupling, classes: list[int]) -> str:
    """Why a group must stay whole because some layer reads only a part of it, or parts of it more than once."""
    reads: dict[tuple[str, str], list[int]] = {}
    for order, index in enumerate(classes):
        for layer, side, _ in coupling.classes[index]:
            reads.setdefault((layer, side), [0] * len(classes))[order] += 1
    for (layer, _), counts in sorted(reads.items()):
        if len(set(counts)) > 1:
            return f"{layer} reads only some of these channels, or some of them twice"
    return ""


def _share_tensors(trace: Trace) -> tuple[dict[str, str], dict[str, list[Call]]]:
    """The activation choice of every layer, and the calls that share it: same tensor, or same layer."""
    act_of: dict[str, str] = {}
    by_key: dict[tuple[int, int], str] = {}
    shared: dict[str, list[Call]] = {}
    for call in trace.calls:
        found = [known for known in (act_of.get(call.layer), by_key.get(call.input_key)) if known]
        act = found[0] if found else f"{call.layer}.act_bits"
        for other in found[1:]:
            if other != act:
                shared[act] += shared.pop(other)
                act_of = {layer: act if name == other else name for layer, name in act_of.items()}
                by_key = {key: act if name == other else name for key, name in by_key.items()}
        act_of[call.layer] = by_key[call.input_key] = act
        shared.setdefault(act, []).append(call)
    return act_of, shared


def _unlisted(model: nn.Module, trace: Trace, names: list[str], macs: Mapping[tuple[str, str], int]) -> list[Fixed]:
    """Everything that multiplies or could be searched but is not among the layers."""
    fixed = [
        Fixed(name, trace.unusual.get(name, "did not run on example_inputs: left as it is"))
        for name, module in model.named_modules()
        if is_searchable(module) and name not in names
    ]
    return fixed + [
        Fixed(f"{module or 'model'}:{name}", "not a layer of its own: runs and counts at 32 bits", count)
        for (module, name), count in macs.items()
    ]
