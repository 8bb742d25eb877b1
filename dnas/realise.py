"""From a supernet and an architecture to a plain, physically smaller network of fixed-bit Brevitas layers."""

import copy

import torch
from torch import Tensor, nn

from dnas.search.mixed import MixedActivation, MixedLayer, filter_dimension
from dnas.search.supernet import Supernet, replace_module
from dnas.space.architecture import Architecture
from dnas.space.choice import ChannelMap, Space
from quant.brevitas import LearnedStepActivation, act_quantizer, fixed_layer
from quant.quantizer import MIN_STEP


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
    for layer in space.layers:
        mixed = model.get_submodule(layer.name)
        if not isinstance(mixed, MixedLayer):
            raise ValueError(f"{layer.name} is not a mixed layer; realise takes a supernet as it was built")
        act = layer.act_choice
        if act not in activations:
            activations[act] = _fixed_activation(mixed.activation, space.choice(act).index(architecture[act]))
        option = space.choice(layer.weight_choice).index(architecture[layer.weight_choice])
        inputs = kept_indices(space, layer.inputs, architecture, supernet.ranks.device)
        outputs = kept_indices(space, layer.outputs, architecture, supernet.ranks.device)
        steps = mixed.steps[option].detach().clamp_min(MIN_STEP)
        if len(steps) == len(layer.outputs):  # a transposed layer with groups has one step for a filter of each group
            steps = steps[outputs]
        plain = _slice_layer(mixed.layer, inputs, outputs, layer.depthwise)
        replace_module(model, layer.name, fixed_layer(plain, mixed.specs[option], steps, activations[act]))
    for through in space.through:
        kept = kept_indices(space, through.channels, architecture, supernet.ranks.device)
        _slice_channels(model.get_submodule(through.name), kept)
    model.architecture = architecture  # type: ignore[assignment]
    return model


def kept_indices(space: Space, side: ChannelMap, architecture: Architecture, device: torch.device) -> Tensor:
    """Indices of a side's channels that stay, ascending; shape (kept,), int64."""
    kept = {choice: set(indices) for choice, indices in (architecture.kept or {}).items()}
    stays = [
        channel
        for channel, (group, position) in enumerate(zip(side.group, side.position, strict=True))
        if position in kept[space.groups[group].choice]
    ]
    return torch.tensor(stays, dtype=torch.int64, device=device)


def _fixed_activation(mixed: MixedActivation, option: int) -> LearnedStepActivation:
    return act_quantizer(mixed.specs[option], mixed.steps[option].detach().clamp_min(MIN_STEP))


def _slice_layer(layer: nn.Module, inputs: Tensor, outputs: Tensor, depthwise: bool) -> nn.Module:
    """A copy of a layer with these channels only."""
    result = copy.deepcopy(layer)
    own: Tensor = layer.weight  # type: ignore[assignment]
    weight = own.detach()
    if depthwise:
        weight = weight[outputs]
        result.groups = len(outputs)  # type: ignore[assignment]
    elif getattr(layer, "groups", 1) == 1:
        first, second = (inputs, outputs) if filter_dimension(layer) == 1 else (outputs, inputs)
        weight = weight[first][:, second]
    result.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if bias is not None:
        result.bias = nn.Parameter(bias.detach()[outputs].clone())
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, kept in zip(names, (inputs, outputs), strict=True):
        setattr(result, name, len(kept))
    return result


def _slice_channels(module: nn.Module, kept: Tensor) -> None:
    """Cuts every per-channel parameter and buffer of a module down to the kept channels."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dim() == 1 and parameter.numel() > 1:
            setattr(module, name, nn.Parameter(parameter.detach()[kept].clone(), parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim() == 1 and buffer.numel() > 1:
            setattr(module, name, buffer[kept].clone())
    for name in ("num_features", "num_parameters"):
        if getattr(module, name, 1) != 1:
            setattr(module, name, len(kept))
