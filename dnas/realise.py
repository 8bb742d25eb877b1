"""From a supernet and an architecture to a plain, physically smaller network of fixed-bit Brevitas layers."""

from collections import Counter

from torch import Tensor, nn

from dnas.search.gated import remove_gate
from dnas.search.mixed import Mixed, MixedActivation, MixedLayer
from dnas.search.normalise import MixedNorm
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.choice import Position
from dnas.space.optional import LeftOut
from dnas.space.slicing import kept_channels, shrink_kernel, slice_layer, slice_through
from quant.brevitas import LearnedStepActivation, act_quantizer, fixed_layer
from quant.modules import copied, replace_module
from quant.spec import MIN_STEP, QuantSpec


def realise(supernet: Supernet, architecture: Architecture) -> nn.Module:
    """Builds the network of an architecture, warm-started from the supernet's weights and step sizes.

    Args:
        supernet: left as it was.
        architecture: of the supernet's space; filters that it does not name are kept by the supernet's ranking.

    Returns:
        the user's module type with Brevitas layers in place of its own, the removed filters gone; its forward takes and
        returns what the user's does. `architecture` is an attribute of it, with the kept filters filled in.

    Raises:
        ValueError: the architecture is of another space.
    """
    space = supernet.space
    if architecture.space.digest != space.digest:
        raise ValueError(
            f"the architecture is of space {architecture.space.digest}, the supernet of {space.digest}; "
            "select an architecture from this supernet's space"
        )
    architecture = supernet.with_filters(architecture)
    model = copied(supernet.model)
    activations: dict[str, LearnedStepActivation] = {}
    places = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    kept = {index: set((architecture.kept or {})[group.choice]) for index, group in enumerate(space.groups)}
    positions = architecture.positions()
    for layer in space.layers:
        if not space.runs(layer.name, positions):
            continue
        mixed = model.get_submodule(layer.name)
        if not isinstance(mixed, MixedLayer):
            raise ValueError(f"{layer.name} is not a mixed layer; realise takes a supernet as it was built")
        inputs, outputs = kept_channels(layer.inputs, kept), kept_channels(layer.outputs, kept)
        act = layer.act_choice
        if act not in activations:
            activations[act] = _fixed_activation(mixed.activation, positions[act], inputs)
        specs, steps = _taken(mixed, positions[layer.weight_choice], outputs)
        weight: nn.Parameter = mixed.layer.weight  # type: ignore[assignment]
        slice_layer(mixed.layer, inputs, outputs, layer.depthwise)
        if layer.kernel_choice is not None:
            shrink_kernel(mixed.layer, architecture[layer.kernel_choice])
        fixed = fixed_layer(mixed.layer, specs, steps, activations[act])
        if places[id(weight)] > 1:  # with an embedding or another layer: neither loses filters, both stay one parameter
            fixed.weight = weight
        replace_module(model, layer.name, fixed)
    for through in space.through:
        if not space.runs(through.name, positions):
            continue
        module = model if through.kind == "parameter" else model.get_submodule(through.name)
        if isinstance(module, MixedNorm):
            replace_module(model, through.name, module.norm)
        slice_through(model, through, kept)
    for gate in sorted(space.gates, key=lambda gate: gate.module, reverse=True):  # inner ones first
        remove_gate(model.get_submodule(gate.module))
        if not space.is_open(gate, positions):
            replace_module(model, gate.module, LeftOut())
    model.architecture = architecture  # type: ignore[assignment]
    return model


def _taken(mixed: Mixed, position: Position, kept: list[int]) -> tuple[list[QuantSpec] | QuantSpec, Tensor]:
    """Grids and steps of the filters or channels that stay, at the options that were chosen."""
    steps = mixed.steps.detach().clamp_min(MIN_STEP)
    if isinstance(position, int):
        found = steps[position]
        if found.dim() and len(kept) < len(
            found
        ):  # a transposed layer with groups has one step for a filter of each group
            found = found[kept]
        return mixed.specs[position], found
    options = [position[i // mixed.block] for i in kept]
    return [mixed.specs[k] for k in options], steps[options, kept]


def _fixed_activation(mixed: MixedActivation, position: Position, kept: list[int]) -> LearnedStepActivation:
    specs, steps = _taken(mixed, position, kept)
    dimension = mixed.channels.dimension if mixed.channels else 1
    found = act_quantizer(specs, steps, dimension)
    found.quantiser.step.requires_grad_(isinstance(mixed.steps, nn.Parameter))
    return found
