"""Whether a group's filters can really be removed: the masked model against the physically smaller one, on real inputs.

Tracing can be wrong about operations that it does not know (a maximum over channels, a reshape with a hard-coded size).
No such group reaches the search: what masking promises is computed once per option before the space is handed out.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dnas.space.choice import Group, Layer, Through
from dnas.space.slicing import Kept, input_dimension, kept_channels, slice_channels, slice_layer

EXAMPLES = 2
"""Examples of the batch that are compared."""
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
        inputs: positional arguments of its forward.
        groups: of the space.
        options: for every group its filter counts; those with nothing to remove are not checked.
        layers: of the space.
        through: of the space.
    """
    candidates = [i for i, group in enumerate(groups) if min(options[i]) < group.size]
    if not candidates:
        return {}
    check = _Check(model, inputs, groups, options, layers, through)
    if not check.difference(candidates):
        return {}
    sound: list[int] = []
    failing = {}
    for candidate in candidates:
        reason = check.difference([*sound, candidate])
        if reason:
            failing[candidate] = f"removing filters changes more than these channels: {reason}"
        else:
            sound.append(candidate)
    return failing


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
        self.model = copy.deepcopy(model).eval()
        self.groups, self.options, self.layers, self.through = groups, options, layers, through
        generator = torch.Generator().manual_seed(0)
        self.orders = [torch.randperm(group.size, generator=generator).tolist() for group in groups]
        for item in through:
            _randomise(self.model.get_submodule(item.name), generator)
        self.inputs = inputs
        few = tree_map(lambda leaf: leaf[:EXAMPLES] if isinstance(leaf, Tensor) and leaf.dim() else leaf, inputs)
        try:
            with torch.no_grad():
                self.model(*few)
            self.inputs = few
        except Exception:  # whatever the model raises: it needs the whole batch
            self.inputs = inputs

    def difference(self, candidates: Sequence[int]) -> str:
        """What differs when these groups lose filters; empty if nothing does."""
        rounds = max(sum(count < self.groups[i].size for count in self.options[i]) for i in candidates)
        for turn in range(rounds):
            kept = {}
            for i in candidates:
                fewer = [count for count in self.options[i] if count < self.groups[i].size]
                kept[i] = set(self.orders[i][: fewer[min(turn, len(fewer) - 1)]])
            found = self._compare(kept)
            if found:
                return found
        return ""

    @torch.no_grad()
    def _compare(self, kept: Kept) -> str:
        """The masked model (every consumer ignores the removed channels) against the smaller one."""
        masked, smaller = copy.deepcopy(self.model), copy.deepcopy(self.model)
        for layer in self.layers:
            module = masked.get_submodule(layer.name)
            ins, outs = kept_channels(layer.inputs, kept), kept_channels(layer.outputs, kept)
            if not layer.depthwise and getattr(module, "groups", 1) == 1:
                removed = sorted(set(range(len(layer.inputs))) - set(ins))
                weight: Tensor = module.weight  # type: ignore[assignment]
                weight.transpose(0, input_dimension(module))[removed] = 0
            slice_layer(smaller.get_submodule(layer.name), ins, outs, layer.depthwise)
        for item in self.through:
            slice_channels(smaller.get_submodule(item.name), kept_channels(item.channels, kept))
        wanted = self._run(masked, lambda layer: kept_channels(layer.outputs, kept))
        try:
            found = self._run(smaller, None)
        except Exception as error:  # whatever the model raises on a shape that it does not expect
            return f"the smaller network fails ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        if len(wanted) != len(found):
            return "the smaller network takes another path"
        for (name, want), (_, got) in zip(wanted, found, strict=True):
            if want.shape != got.shape:
                return f"{name} has shape {list(got.shape)}, not {list(want.shape)}"
            size = float(want.abs().amax()) if want.numel() else 0.0
            if want.numel() and not bool(((got - want).abs().nan_to_num(0.0) <= TOLERANCE * size + 1e-12).all()):
                return f"{name} differs"
        return ""

    def _run(self, model: nn.Module, select: Callable[[Layer], list[int]] | None) -> list[tuple[str, Tensor]]:
        """Outputs of every layer (only these channels of it) and of the model."""
        seen: list[tuple[str, Tensor]] = []

        def watch(layer: Layer) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                dim = output.dim() - 1 if isinstance(module, nn.Linear) else 1
                index = torch.tensor(select(layer), device=output.device) if select else None
                output = output if index is None else output.index_select(dim, index)
                seen.append((f"the output of {layer.name}", output.clone()))

            return hook

        handles = [model.get_submodule(layer.name).register_forward_hook(watch(layer)) for layer in self.layers]
        try:
            output = model(*self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen + [
            ("the network's output", leaf.float()) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)
        ]


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Different numbers per channel: at initialisation they are all alike, and some models start a branch at zero."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
