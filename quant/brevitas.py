"""The single place that talks to Brevitas: learned-step quantisers, and plain layers turned into Brevitas layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.inject import ExtendedInjector
from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn

from quant.quantizer import integers, quantize
from quant.spec import MIN_STEP, QuantSpec

MAX_BITS = 8
"""Widest exported code: QuantizeLinear of ONNX holds int8 and uint8."""


class LearnedStepQuant(nn.Module):
    """Brevitas `tensor_quant` with the LSQ kernel of this package: returns (value, scale, zero point, bit width).

    Attributes:
        step: the learned step; shape (filters,) for a weight, () for an activation.
        spec: the grid.
        axis: the dimension of a weight that holds the filters; 0 for activations, which have one step.
        ndim: number of dimensions of the weight, so that `scale` broadcasts against it; 0 for activations.
    """

    zero_point: Tensor
    bit_width: Tensor

    def __init__(self, spec: QuantSpec, step: Tensor, axis: int = 0, ndim: int = 0) -> None:
        super().__init__()
        self.spec, self.axis, self.ndim = spec, axis, ndim
        self.step = nn.Parameter(step.detach().clone().to(torch.float32))
        self.register_buffer("zero_point", torch.zeros((), device=step.device), persistent=False)
        self.register_buffer("bit_width", torch.tensor(float(spec.bits), device=step.device), persistent=False)

    def positive_step(self) -> Tensor:
        """The step in use, at least MIN_STEP; shaped like `step`."""
        return self.step.clamp_min(MIN_STEP)

    def scale(self) -> Tensor:
        """The step in use, shaped to broadcast against the tensor: (filters, 1, ...), (1, filters, 1, ...) or ()."""
        step = self.positive_step()
        if self.ndim == 0:
            return step
        return step.reshape([-1 if i == self.axis else 1 for i in range(self.ndim)])

    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of x as floats, shaped like x."""
        step = self.positive_step()
        return integers(x.transpose(0, self.axis), step, self.spec).transpose(0, self.axis)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantised x, scale, zero point and bit width, as Brevitas expects them."""
        if self.axis:
            y = quantize(x.transpose(0, self.axis), self.step, self.spec).transpose(0, self.axis)
        else:
            y = quantize(x, self.step, self.spec, batched=self.ndim == 0)
        return y, self.scale(), self.zero_point, self.bit_width


class LearnedStepWeight(WeightQuantProxyFromInjector):
    """Brevitas weight proxy that keeps its learned step: the stock one rebuilds it whenever a state dict is loaded."""

    def init_tensor_quant(self, preserve_state_dict: bool = False) -> None:
        """Takes the kernel from the injector, once."""
        if self.tensor_quant is None:
            super().init_tensor_quant(preserve_state_dict)

    @property
    def quantiser(self) -> LearnedStepQuant:
        """The kernel with the learned steps."""
        found: LearnedStepQuant = self.tensor_quant
        return found

    def scale(self) -> Tensor:
        """The steps in use; shape (filters, 1, ...) or (1, filters, 1, ...)."""
        return self.quantiser.scale()

    def zero_point(self) -> Tensor:
        """Always 0; shape ()."""
        return self.quantiser.zero_point

    def bit_width(self) -> Tensor:
        """The width; shape ()."""
        return self.quantiser.bit_width


class LearnedStepActivation(ActQuantProxyFromInjector):
    """Brevitas activation proxy with one learned step; several layers may share the object. Returns plain tensors."""

    fused_activation_quant_proxy: Any

    def add_tracked_module(self, module: nn.Module) -> None:
        """Does not keep its consumers, so that the object can be copied and shared freely."""
        self.init_tensor_quant()

    def init_tensor_quant(self) -> None:
        """Takes the kernel from the injector, once."""
        if "fused_activation_quant_proxy" not in self._modules:
            super().init_tensor_quant()

    @property
    def quantiser(self) -> LearnedStepQuant:
        """The kernel with the learned step."""
        found: LearnedStepQuant = self.fused_activation_quant_proxy.tensor_quant
        return found

    def scale(self, force_eval: bool = True) -> Tensor:
        """The step in use; shape ()."""
        return self.quantiser.scale()

    def zero_point(self, force_eval: bool = True) -> Tensor:
        """Always 0; shape ()."""
        return self.quantiser.zero_point

    def bit_width(self, force_eval: bool = True) -> Tensor:
        """The width; shape ()."""
        return self.quantiser.bit_width


class _Injector(ExtendedInjector):
    act_impl = None
    float_to_int_impl_type = "ROUND"


def _check(step: Tensor, shape: tuple[int, ...], spec: QuantSpec, what: str) -> None:
    if tuple(step.shape) != shape:
        raise ValueError(f"{what}: the step has shape {tuple(step.shape)}; needed: {shape}")
    if not bool(torch.isfinite(step).all()) or not bool((step > 0).all()):
        raise ValueError(f"{what}: steps must be positive and finite; found {step.detach().flatten()[:4].tolist()}...")
    if not 2 <= spec.bits <= MAX_BITS:
        raise ValueError(f"{what}: {spec.bits} bits; allowed in a realised layer: 2 to {MAX_BITS}")


def act_quantizer(spec: QuantSpec, step: Tensor) -> LearnedStepActivation:
    """A Brevitas activation quantiser with one learned step and no statistics phase.

    Args:
        spec: the grid, 2 to 8 bits.
        step: shape (), positive; becomes the learned parameter.

    Raises:
        ValueError: a step that is not a positive scalar, or a width outside 2..8.
    """
    _check(step, (), spec, "act_quantizer")
    injector = _Injector.let(
        tensor_quant=LearnedStepQuant(spec, step), signed=spec.signed, narrow_range=spec.narrow, bit_width=spec.bits
    )
    proxy = LearnedStepActivation(nn.Identity(), injector)
    proxy.skip_create_quant_tensor = True
    return proxy


_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_TRANSPOSED = (*_CONV, "output_padding")
_KINDS: dict[type[nn.Module], tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    nn.Conv1d: (qnn.QuantConv1d, _CONV),
    nn.Conv2d: (qnn.QuantConv2d, _CONV),
    nn.Conv3d: (qnn.QuantConv3d, _CONV),
    nn.ConvTranspose1d: (qnn.QuantConvTranspose1d, _TRANSPOSED),
    nn.ConvTranspose2d: (qnn.QuantConvTranspose2d, _TRANSPOSED),
    nn.ConvTranspose3d: (qnn.QuantConvTranspose3d, _TRANSPOSED),
    nn.Linear: (qnn.QuantLinear, ("in_features", "out_features")),
}


def filter_axis(layer: nn.Module) -> int:
    """The weight dimension that has one step per entry: 1 for transposed convolutions, else 0."""
    return 1 if bool(getattr(layer, "transposed", False)) else 0


def fixed_layer(
    layer: nn.Module, weight: QuantSpec, weight_step: Tensor, activation: LearnedStepActivation
) -> nn.Module:
    """The Brevitas layer of fixed width that computes `layer` on quantised input and weights.

    Args:
        layer: nn.Conv1d/2d/3d, nn.ConvTranspose1d/2d/3d or nn.Linear; its weights and (float) bias are copied.
        weight: grid of the weights, signed, 2 to 8 bits.
        weight_step: shape (filters,), positive; filters is weight.shape[0], for transposed convolutions
            weight.shape[1] (output channels of one group). Becomes a learned parameter.
        activation: quantiser of the layer's input; consumers of one tensor share one object.

    Returns:
        a QuantConv*, QuantConvTranspose* or QuantLinear that returns plain tensors, in the training mode of `layer`.

    Raises:
        TypeError: another type of layer.
        ValueError: a step of the wrong shape or sign, an unsigned grid, or a width outside 2..8.
    """
    if type(layer) not in _KINDS:
        allowed = ", ".join(kind.__name__ for kind in _KINDS)
        raise TypeError(f"fixed_layer: cannot quantise {type(layer).__name__}; allowed: {allowed}")
    if not isinstance(activation, LearnedStepActivation):
        raise TypeError(f"fixed_layer: activation is {type(activation).__name__}; make it with act_quantizer(...)")
    values: Tensor = layer.weight  # type: ignore[assignment]
    axis = filter_axis(layer)
    _check(weight_step, (values.shape[axis],), weight, f"fixed_layer({type(layer).__name__})")
    if not weight.signed:
        raise ValueError("fixed_layer: the weight grid is unsigned; weights need signed=True")
    build, names = _KINDS[type(layer)]
    injector = _Injector.let(
        proxy_class=LearnedStepWeight,
        tensor_quant=LearnedStepQuant(weight, weight_step, axis, values.dim()),
        signed=True,
        narrow_range=weight.narrow,
        bit_width=weight.bits,
    )
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    result = build(
        **{name: getattr(layer, name) for name in names},
        bias=bias is not None,
        weight_quant=injector,
        return_quant_tensor=False,
        device="meta",
    )
    result.input_quant = activation  # passed to the constructor, a proxy that exists already makes Brevitas warn
    result.weight = nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)
    if bias is not None:
        result.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return result.train(layer.training)


def plain_layer(module: nn.Module) -> nn.Module:
    """The torch layer of the geometry of a layer that `fixed_layer` made; it shares the weight and bias parameters.

    Raises:
        TypeError: `fixed_layer` did not make this module.
    """
    for kind, (build, names) in _KINDS.items():
        if type(module) is build:
            bias: Tensor | None = module.bias  # type: ignore[assignment]
            result = kind(**{name: getattr(module, name) for name in names}, bias=bias is not None, device="meta")
            result.weight, result.bias = module.weight, bias  # type: ignore[assignment]
            return result
    raise TypeError(f"plain_layer: {type(module).__name__} is not a layer of fixed bits")


@dataclass(frozen=True, eq=False)
class QuantisedLayer:
    """What one quantised layer holds.

    Attributes:
        name: path of the layer in the model.
        module: the Brevitas layer.
        weight, activation: the grids of weights and input.
        weight_step: shape (filters,), as used (clamped), float32.
        activation_step: shape (), as used, float32.
        codes: integer weights, shaped like the weight, int8.
    """

    name: str
    module: nn.Module
    weight: QuantSpec
    activation: QuantSpec
    weight_step: Tensor
    activation_step: Tensor
    codes: Tensor


def is_fixed(module: nn.Module) -> bool:
    """Whether `fixed_layer` made this module."""
    return isinstance(getattr(module, "weight_quant", None), LearnedStepWeight)


def quantised_layers(model: nn.Module) -> list[QuantisedLayer]:
    """Every quantised layer of a model, in module order; a module used under two names appears once."""
    found = []
    for name, module in model.named_modules():
        if not is_fixed(module):
            continue
        kernel: LearnedStepQuant = module.weight_quant.quantiser
        act: LearnedStepQuant = module.input_quant.quantiser
        with torch.no_grad():
            weight: Tensor = module.weight
            codes = kernel.codes(weight.detach()).to(torch.int8).contiguous()
            steps = kernel.positive_step().detach().clone()
            step = act.positive_step().detach().clone()
        found.append(QuantisedLayer(name, module, kernel.spec, act.spec, steps, step, codes))
    return found
