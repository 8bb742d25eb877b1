"""From a supernet and an architecture to a plain, physically smaller network of fixed-bit Brevitas layers."""

import copy

from torch import nn

from dnas.search.mixed import MixedActivation, MixedLayer
from dnas.search.supernet import Supernet, replace_module
from dnas.space.architecture import Architecture
from dnas.space.slicing import kept_channels, slice_channels, slice_layer
from quant.brevitas import LearnedStepActivation, act_quantizer, fixed_layer
from quant.spec import MIN_STEP


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
    model = copy.deepcopy(supernet.model)
    activations: dict[str, LearnedStepActivation] = {}
    kept = {index: set((architecture.kept or {})[group.choice]) for index, group in enumerate(space.groups)}
    for layer in space.layers:
        mixed = model.get_submodule(layer.name)
        if not isinstance(mixed, MixedLayer):
            raise ValueError(f"{layer.name} is not a mixed layer; realise takes a supernet as it was built")
        act = layer.act_choice
        if act not in activations:
            activations[act] = _fixed_activation(mixed.activation, space.choice(act).index(architecture[act]))
        option = space.choice(layer.weight_choice).index(architecture[layer.weight_choice])
        inputs, outputs = kept_channels(layer.inputs, kept), kept_channels(layer.outputs, kept)
        steps = mixed.steps[option].detach().clamp_min(MIN_STEP)
        if len(steps) == len(layer.outputs):  # a transposed layer with groups has one step for a filter of each group
            steps = steps[outputs]
        slice_layer(mixed.layer, inputs, outputs, layer.depthwise)
        replace_module(model, layer.name, fixed_layer(mixed.layer, mixed.specs[option], steps, activations[act]))
    for through in space.through:
        slice_channels(model.get_submodule(through.name), kept_channels(through.channels, kept))
    model.architecture = architecture  # type: ignore[assignment]
    return model


def _fixed_activation(mixed: MixedActivation, option: int) -> LearnedStepActivation:
    found = act_quantizer(mixed.specs[option], mixed.steps[option].detach().clamp_min(MIN_STEP))
    found.quantiser.step.requires_grad_(isinstance(mixed.steps, nn.Parameter))
    return found
