"""Signs and first steps of activations, as a network shows them on example inputs."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dnas.space.attention import separate_attention
from dnas.space.choice import ActRange, Space
from dnas.space.examples import input_samples, trace_few
from dnas.space.plain import with_plain_layers
from quant.quantizer import fit_step
from quant.spec import QuantSpec


def activation_range(signed: bool, values: Tensor, options: tuple[int, ...]) -> ActRange:
    """The range of a tensor that has such entries, for these widths in bits."""
    steps = tuple(float(fit_step(values, QuantSpec(bits, signed), per_filter=False)) for bits in options)
    return ActRange(signed, steps)


def with_signs_of(space: Space, model: nn.Module, example_inputs: Any) -> Space:
    """The space with the signs of activations that a network shows by now, e.g. after its training.

    Args:
        space: built from that network, with other weights perhaps.
        model: left as it was.
        example_inputs: one input or a tuple of inputs, batch first.

    Returns:
        that space itself where no sign has changed; new steps where one has.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    model = with_plain_layers(separate_attention(model))
    trace, _ = trace_few(model, inputs)
    act_of = {layer.name: layer.act_choice for layer in space.layers}
    shared = {
        act: [call for call in trace.calls if act_of.get(call.layer) == act] for act in dict.fromkeys(act_of.values())
    }
    changed = {
        act: activation_range(signed, values, space.choice(act).act_bits)
        for act, (signed, values) in input_samples(model, inputs, trace, shared).items()
        if signed != space.ranges[act].signed
    }
    return replace(space, ranges={**space.ranges, **changed}) if changed else space
