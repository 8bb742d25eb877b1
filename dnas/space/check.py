"""Whether a group's filters can really be removed: the masked model against the physically smaller one, on real inputs.

Tracing can be wrong about operations that it does not know (a maximum over channels, a reshape with a hard-coded size).
No such group reaches the search: what masking promises is computed once per option before the space is handed out.
"""

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from dnas.space.choice import Group, Layer, Through
from dnas.space.normalise import normalise_kept
from dnas.space.slicing import Kept, filter_dimension, input_dimension, kept_channels, slice_model
from dnas.space.trace import tensors_of
from quant.modules import copied

MIXED = 2
"""Comparisons in which every group loses a share of its own."""
TOLERANCE = 1e-4
"""Largest difference that counts as rounding, relative to the tensor's largest magnitude."""


def failing_groups(
    model: nn.Module,
    inputs: tuple[Any, ...],
    groups: Sequence[Group],
    options: Sequence[Sequence[int]],
    layers: Sequence[Layer],
    through: Sequence[Through],
) -> dict[int, str]:
    """Groups whose removal does not compute what masking them computes, each with the reason.

    Args:
        model: left as it was.
        inputs: positional arguments of its forward, of a few examples.
        groups: of the space.
        options: for every group its filter counts; those with nothing to remove are not checked.
        layers: of the space.
        through: of the space.
    """
    candidates = [i for i, group in enumerate(groups) if min(options[i]) < group.size]
    if not candidates:
        return {}
    check = _Check(model, inputs, groups, options, layers, through)
    sound, suspects = candidates, list[int]()
    while sound and check.difference(sound):
        found = [i for i in sound if i in check.nearby]
        if not found:
            break
        suspects += found
        sound = [i for i in sound if i not in check.nearby]
    failing: dict[int, str] = {}
    if sound and check.difference(sound):  # and nothing near where it shows is to blame
        left, sound = sound, []
        _sort_out(check, left, sound, failing)
    for suspect in sorted(suspects):
        _sort_out(check, [suspect], sound, failing)
    return failing


def _sort_out(check: "_Check", candidates: list[int], sound: list[int], failing: dict[int, str]) -> None:
    """Adds every candidate to the sound ones or to the failing ones; together with the sound ones they fail."""
    if len(candidates) == 1:
        reason = check.difference([*sound, *candidates])
        if reason:
            failing[candidates[0]] = f"removing filters changes more than these channels: {reason}"
        else:
            sound += candidates
        return
    middle = len(candidates) // 2
    for half in (candidates[:middle], candidates[middle:]):
        if len(half) > 1 and not check.difference([*sound, *half]):
            sound += half
        else:
            _sort_out(check, half, sound, failing)


class _Check:
    """The comparison for sets of groups, at every option."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        groups: Sequence[Group],
        options: Sequence[Sequence[int]],
        layers: Sequence[Layer],
        through: Sequence[Through],
    ) -> None:
        self.model = copied(model).eval()
        self.groups, self.options, self.layers, self.through = groups, options, layers, through
        generator = torch.Generator().manual_seed(0)
        self.orders = [_order(group, generator) for group in groups]
        for item in through:
            if item.kind != "parameter":
                _randomise(self.model.get_submodule(item.name), generator)
        for layer in layers:
            module = self.model.get_submodule(layer.name)
            if not bool(module.weight.any()):  # type: ignore[operator]  # a branch that starts at zero would hide what happens to it
                _randomise(module, generator)
        self.nearby: set[int] = set()
        """After a difference: the groups that the layer reads or makes after which it shows."""
        self.inputs = inputs

    def difference(self, candidates: Sequence[int]) -> str:
        """What differs when these groups lose filters; empty if nothing does."""
        fewer = {i: [count for count in self.options[i] if count < self.groups[i].size] for i in candidates}
        rounds = max(len(counts) for counts in fewer.values())
        turns = [{i: min(turn, len(fewer[i]) - 1) for i in candidates} for turn in range(rounds)]
        # groups that are tied without being coupled agree as long as all lose alike: each loses something else, too
        turns += [{i: Random(f"{turn} {i}").randrange(len(fewer[i])) for i in candidates} for turn in range(MIXED)]
        # and of every two groups in some turn one loses while the other stays whole: their numbers differ in some bit
        for bit in range((len(candidates) - 1).bit_length()):
            halves = [[i for at, i in enumerate(candidates) if (at >> bit) % 2 == side] for side in (0, 1)]
            turns += [dict.fromkeys(half, 0) for half in halves]
        for turn in turns:
            found = self._compare({i: set(self.orders[i][: fewer[i][at]]) for i, at in turn.items()})
            if found:
                return found
        return ""

    @torch.no_grad()
    def _compare(self, kept: Kept) -> str:
        """The masked model (every consumer ignores the removed channels) against the smaller one."""
        masked, smaller = self._twin(), self._twin()
        for layer in self.layers:
            _mask(masked.get_submodule(layer.name), layer, kept)
        for item in self.through:
            if item.mixes:
                _mask_norm(masked.get_submodule(item.name), item, kept)
        slice_model(smaller, self.layers, self.through, kept)
        found: list[tuple[Layer | None, Tensor]] = []
        try:
            self._run(smaller, None, found)
        except Exception as error:  # whatever the model raises on a shape that it does not expect
            self._note(found[-1][0] if found else None)
            return f"the smaller network fails ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        wanted: list[tuple[Layer | None, Tensor]] = []
        self._run(masked, lambda layer: kept_channels(layer.outputs, kept), wanted)
        self._note(None)
        if len(wanted) != len(found):
            return "the smaller network takes another path"
        for (place, want), (_, got) in zip(wanted, found, strict=True):
            self._note(place)
            name = f"the output of {place.name}" if place else "the network's output"
            if want.shape != got.shape:
                return f"{name} has shape {list(got.shape)}, not {list(want.shape)}"
            size = float(want.abs().amax()) if want.numel() else 0.0
            if want.numel() and not bool(((got - want).abs().nan_to_num(0.0) <= TOLERANCE * size + 1e-12).all()):
                return f"{name} differs"
        return ""

    def _twin(self) -> nn.Module:
        """A copy that shares the parameters: none is changed in place."""
        return copy.deepcopy(self.model, {id(parameter): parameter for parameter in self.model.parameters()})

    def _note(self, layer: Layer | None) -> None:
        self.nearby = {*layer.inputs.counts, *layer.outputs.counts} if layer else set()

    def _run(
        self, model: nn.Module, select: Callable[[Layer], list[int]] | None, seen: list[tuple[Layer | None, Tensor]]
    ) -> None:
        """Appends the outputs of every layer (only these channels of it) and of the model, as they come."""

        def watch(layer: Layer) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                dim = output.dim() - 1 if isinstance(module, nn.Linear) else 1
                index = torch.tensor(select(layer), device=output.device) if select else None
                output = output if index is None else output.index_select(dim, index)
                seen.append((layer, output.clone()))

            return hook

        handles = [model.get_submodule(layer.name).register_forward_hook(watch(layer)) for layer in self.layers]
        try:
            output = model(*self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        seen += [(None, leaf.float()) for leaf in tensors_of(output)]


def _order(group: Group, generator: torch.Generator) -> list[int]:
    """The positions of a group in a random order whose every multiple of `blocks` is spread evenly over the blocks."""
    length = group.size // group.blocks
    shuffled = [torch.randperm(length, generator=generator) + block * length for block in range(group.blocks)]
    return torch.stack(shuffled, 1).flatten().tolist()


def _mask(module: nn.Module, layer: Layer, kept: Kept) -> None:
    """The layer ignores removed channels; what it makes of its own removed filters must not matter to anyone."""
    lost = sorted(set(range(len(layer.outputs))) - set(kept_channels(layer.outputs, kept)))
    unread = sorted(set(range(len(layer.inputs))) - set(kept_channels(layer.inputs, kept)))
    grouped = not layer.depthwise and getattr(module, "groups", 1) > 1
    if grouped or not (lost or unread):
        return
    weight: Tensor = module.weight.detach().clone()  # type: ignore[operator]  # the parameters are shared with others
    first = weight if layer.depthwise else weight.transpose(0, filter_dimension(module))
    first[lost] = -1.5 * first[lost].flip(-1)
    if not layer.depthwise:
        weight.transpose(0, input_dimension(module))[unread] = 0
    module.weight = nn.Parameter(weight)
    if isinstance(module.bias, Tensor):
        bias = module.bias.detach().clone()
        bias[lost] += 1.0
        module.bias = nn.Parameter(bias)


def _mask_norm(module: nn.Module, item: Through, kept: Kept) -> None:
    mask = torch.zeros(len(item.channels), device=next(module.parameters(), torch.empty(0)).device)
    mask[kept_channels(item.channels, kept)] = 1
    module.register_forward_hook(
        lambda norm, args, output: normalise_kept(norm, args[0], mask, item.kind, item.over).to(output.dtype)
    )


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Different numbers per channel: at initialisation they are all alike, and some models start a branch at zero."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
