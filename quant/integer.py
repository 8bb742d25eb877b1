"""Reference execution in integers: what hardware that multiplies and accumulates the codes would compute."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from quant.brevitas import QuantisedLayer, channel_axis, filter_axis, is_fixed, quantised_layers
from quant.modules import copied, replace_module
from quant.quantizer import integers

EXACT = 2**53
"""Integers of smaller magnitude are exact in float64."""


class IntegerLayer(nn.Module):
    """One layer as integer codes times integer weights, accumulated exactly, then scaled in float64.

    Where every input channel has a step of its own there is no common unit to accumulate in: codes are then scaled
    (exactly, in float64) before they are multiplied, and the sum is one of float64.

    Attributes:
        largest: largest magnitude an accumulator has held since creation; shape (), int64; 0 with steps per channel.
        bound: largest magnitude any input could give: largest code times the sum of one filter's weight magnitudes.
        by_channel: every input channel has a step of its own.
        source: the layer it stands for.
    """

    def __init__(self, layer: QuantisedLayer) -> None:
        super().__init__()
        module: Any = layer.module
        self.source = layer
        self.axis = filter_axis(module)
        self.codes = layer.codes.to(torch.float64)
        self.step = layer.activation_step.to(torch.float64)
        self.by_channel, self.channel_axis = self.step.dim() > 0, channel_axis(module)
        scale = layer.weight_step.to(torch.float64) * (1.0 if self.by_channel else self.step)
        self.groups = int(getattr(module, "groups", 1))
        self.scale = scale.repeat(self.groups) if self.axis else scale
        self.bias = None if module.bias is None else module.bias.detach().to(torch.float64)
        self.module = (module,)  # in a tuple, so that it is no submodule
        self.largest = torch.zeros((), dtype=torch.int64)
        if self.axis:
            inputs, outputs = self.codes.shape[0] // self.groups, self.codes.shape[1]
            per_filter = self.codes.abs().reshape(self.groups, inputs, outputs, -1).sum((1, 3))
        else:
            per_filter = self.codes.abs().flatten(1).sum(1)
        self.bound = int(per_filter.max()) * max(max(spec.upper, -spec.lower) for spec in layer.activations)
        if self.bound >= EXACT:
            raise ValueError(f"{layer.name}: accumulators up to {self.bound} are not exact in float64 (limit {EXACT})")

    def __getattr__(self, name: str) -> Any:
        """What a model's own code asks its layer for is the layer's; tensors in float64."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "module" not in self.__dict__ or name.startswith("__"):
                raise
            found = getattr(self.module[0], name)
            return found.detach().double() if isinstance(found, Tensor) else found

    @property
    def accumulator_bits(self) -> int:
        """Bits of a signed accumulator that held every value seen."""
        return int(self.largest).bit_length() + 1

    def input_codes(self, x: Tensor) -> Tensor:
        """The integer codes of an input as float64, shaped like x."""
        if not self.by_channel:
            return integers(x, self.step, self.source.activations)
        first = x.transpose(0, self.channel_axis)
        return integers(first, self.step, self.source.activations).transpose(0, self.channel_axis)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer's output for a float64 input, float64; output_size as in transposed convolutions."""
        codes = self.input_codes(x)
        if self.by_channel:
            codes = (codes.transpose(-1, self.channel_axis) * self.step).transpose(-1, self.channel_axis)
        total = self._accumulate(codes, output_size)
        if total.numel() and not self.by_channel:
            self.largest = torch.maximum(self.largest, total.abs().amax().to(torch.int64))
        linear = isinstance(self.module[0], nn.Linear)
        shape = [-1] if linear else [-1, *([1] * (self.codes.dim() - 2))]
        result = total * self.scale.reshape(shape)
        return result if self.bias is None else result + self.bias.reshape(shape)

    def _accumulate(self, codes: Tensor, output_size: list[int] | None) -> Tensor:
        module: Any = self.module[0]
        if isinstance(module, nn.Linear):
            return F.linear(codes, self.codes)
        if self.axis:
            dims = self.codes.dim() - 2
            padding = module._output_padding(
                codes, output_size, module.stride, module.padding, module.kernel_size, dims, module.dilation
            )
            transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
            return transposed(
                codes, self.codes, None, module.stride, module.padding, padding, module.groups, module.dilation
            )
        return module._conv_forward(codes, self.codes, None)


class _InDouble(TorchDispatchMode):
    """Every operation in float64 that a model's code asks for in float32, as `x.float()` does."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        return function(*args, **kwargs)


def _widened(value: Any) -> Any:
    if value is torch.float32:
        return torch.float64
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class IntegerReference(nn.Module):
    """A network whose quantised layers compute in integers and everything else in float64.

    Attributes:
        model: the converted copy.
        layers: the integer layers by name.
    """

    def __init__(self, model: nn.Module, layers: dict[str, IntegerLayer]) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, *inputs: Tensor) -> Any:
        """Runs the network; floating-point inputs are taken as float64, and so is what its code makes as float32."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of tensors that its code makes
        try:
            with torch.no_grad(), _InDouble():
                return self.model(*map(_widened, inputs))
        finally:
            torch.set_default_dtype(before)

    def accumulators(self) -> dict[str, dict[str, int]]:
        """Per layer: largest accumulator seen, the bits that needs, and the largest that any input could give.

        Layers whose input channels have steps of their own have no integer accumulator and are left out.
        """
        return {
            name: {"largest": int(layer.largest), "bits": layer.accumulator_bits, "bound": layer.bound}
            for name, layer in self.layers.items()
            if not layer.by_channel
        }


def integer_reference(model: nn.Module) -> IntegerReference:
    """A copy of a realised network that computes its quantised layers in exact integers.

    Args:
        model: network with layers of `fixed_layer`; not changed.

    Returns:
        a module in eval mode on the CPU; outputs are float64.

    Raises:
        ValueError: a layer whose accumulators might exceed 2**53.
    """
    clone = copied(model).cpu().eval()
    layers = {id(layer.module): IntegerLayer(layer) for layer in quantised_layers(clone)}
    by_name = {layer.source.name: layer for layer in layers.values()}
    if is_fixed(clone):
        return IntegerReference(layers[id(clone)], by_name).eval()
    for name in [name for name, module in clone.named_modules() if id(module) in layers]:
        replace_module(clone, name, layers[id(clone.get_submodule(name))])
    return IntegerReference(clone.double(), by_name).eval()
