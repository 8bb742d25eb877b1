"""The single place that talks to Brevitas: learned-step quantisers, and plain layers turned into Brevitas layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.inject import ExtendedInjector
from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn

from quant.mixture import grid_bounds
from quant.quantizer import integers, quantize_along
from quant.spec import MIN_STEP, QuantSpec, one_or_each

MAX_BITS = 8
"""Widest exported code: QuantizeLinear of ONNX holds int8 and uint8."""


class LearnedStepQuant(nn.Module):
    """Brevitas `tensor_quant` with the LSQ kernel of this package: returns (value, scale, zero point, bit width).

    Attributes:
        step: the learned step; shape () or (entries,): filters of a weight, channels of an activation.
        specs: the grid, or one for each entry.
        axis: the dimension of the tensor that has one step per entry; 0 where there is one step.
        ndim: number of dimensions of the weight, so that `scale` broadcasts against it; 0 for activations.
        batched: dimension 0 is a batch: an activation.
        bits: the width; shape () or, where the entries differ, (entries,).
        lower, upper: smallest and largest code; shape (1,) or (1, entries).
        weight: ones, shape (1,): the one option of the mixture.
    """

    zero_point: Tensor
    bits: Tensor
    lower: Tensor
    upper: Tensor
    weight: Tensor

    def __init__(
        self, specs: tuple[QuantSpec, ...], step: Tensor, axis: int = 0, ndim: int = 0, batched: bool = False
    ) -> None:
        super().__init__()
        self.specs, self.axis, self.ndim, self.batched = specs, axis, ndim, batched
        self.step = nn.Parameter(step.detach().clone().to(torch.float32))
        device = step.device
        lower, upper = grid_bounds(specs, device)
        bits = torch.tensor([float(spec.bits) for spec in specs], device=device)
        each = len(specs) > 1
        self.register_buffer("zero_point", torch.zeros((), device=device), persistent=False)
        self.register_buffer("bits", bits if each else bits[0], persistent=False)
        self.register_buffer("lower", lower.unsqueeze(0) if each else lower, persistent=False)
        self.register_buffer("upper", upper.unsqueeze(0) if each else upper, persistent=False)
        self.register_buffer("weight", torch.ones(1, device=device), persistent=False)

    def _along(self, entries: Tensor, ndim: int) -> Tensor:
        """Entries of shape () or (entries,), shaped to broadcast against a tensor of `ndim` dimensions (0: as they are)."""
        if entries.dim() == 0 or ndim == 0:
            return entries
        return entries.reshape([-1 if i == self.axis % ndim else 1 for i in range(ndim)])

    def each(self) -> tuple[QuantSpec, ...]:
        """The grid of every entry; one where there is one step."""
        return self.specs if self.step.dim() == 0 or len(self.specs) > 1 else self.specs * len(self.step)

    def positive_step(self) -> Tensor:
        """The step in use, at least MIN_STEP; shaped like `step`."""
        return self.step.clamp_min(MIN_STEP)

    def scale(self) -> Tensor:
        """The step in use, shaped to broadcast against a weight: (filters, 1, ...) or (1, filters, 1, ...), else as it is."""
        return self._along(self.positive_step(), self.ndim)

    def bit_width(self) -> Tensor:
        """The width, shaped like `scale`, or ()."""
        return self._along(self.bits, self.ndim)

    def scaled(self, x: Tensor) -> Tensor:
        """X in steps, before rounding; shaped like x."""
        return x / self._along(self.positive_step(), x.dim())

    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of x as floats, shaped like x."""
        return integers(x.transpose(0, self.axis), self.positive_step(), self.specs).transpose(0, self.axis)

    def values(self, codes: Tensor) -> Tensor:
        """What integer codes stand for, shaped like them."""
        return codes * self._along(self.positive_step(), codes.dim())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantised x, scale, zero point and bit width, as Brevitas expects them."""
        y = quantize_along(x, self.step, self.weight, self.lower, self.upper, self.axis, self.batched)
        return y, self._along(self.positive_step(), x.dim()), self.zero_point, self._along(self.bits, x.dim())


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
        """The width; shape (), or that of `scale` where filters differ."""
        return self.quantiser.bit_width()


class LearnedStepActivation(ActQuantProxyFromInjector):
    """Brevitas activation proxy with learned steps; several layers may share the object. Returns plain tensors."""

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
        """The kernel with the learned step or steps."""
        found: LearnedStepQuant = self.fused_activation_quant_proxy.tensor_quant
        return found

    def scale(self, force_eval: bool = True) -> Tensor:
        """The step in use; shape () or (channels,)."""
        return self.quantiser.scale()

    def zero_point(self, force_eval: bool = True) -> Tensor:
        """Always 0; shape ()."""
        return self.quantiser.zero_point

    def bit_width(self, force_eval: bool = True) -> Tensor:
        """The width; shape () or, where channels differ, (channels,)."""
        return self.quantiser.bit_width()


class _Injector(ExtendedInjector):
    act_impl = None
    float_to_int_impl_type = "ROUND"


def _check(specs: QuantSpec | Sequence[QuantSpec], step: Tensor, what: str) -> tuple[QuantSpec, ...]:
    """The grids, one or one per entry of the step."""
    if not bool(torch.isfinite(step).all()) or not bool((step > 0).all()):
        raise ValueError(f"{what}: steps must be positive and finite; found {step.detach().flatten()[:4].tolist()}...")
    found = one_or_each(specs)
    if not isinstance(specs, QuantSpec) and step.shape != (len(specs),):
        raise ValueError(
            f"{what}: {len(specs)} grids and a step of shape {tuple(step.shape)}; grids in a sequence need a step each"
        )
    wrong = [spec.bits for spec in found if not 2 <= spec.bits <= MAX_BITS]
    if wrong:
        raise ValueError(f"{what}: {wrong[0]} bits; allowed in a realised layer: 2 to {MAX_BITS}")
    return found


def _injector(kernel: LearnedStepQuant, **others: Any) -> Any:
    spec = max(kernel.specs, key=lambda spec: spec.bits)
    return _Injector.let(
        tensor_quant=kernel, signed=spec.signed, narrow_range=spec.narrow, bit_width=spec.bits, **others
    )


CHANNEL_DIMS = (1, -1)
"""Where the channels of a layer's input are: 1 for convolutions, -1 for linear layers."""


def act_quantizer(spec: QuantSpec | Sequence[QuantSpec], step: Tensor, channel_dim: int = 1) -> LearnedStepActivation:
    """A Brevitas activation quantiser with learned steps and no statistics phase.

    Args:
        spec: the grid, 2 to 8 bits, or one for each channel; those differ in width alone.
        step: shape (), or (channels,) for a step of each channel's own; positive; becomes the learned parameter.
        channel_dim: dimension of the channels, see CHANNEL_DIMS; without meaning where there is one step.

    Raises:
        ValueError: a step of the wrong shape or sign, a width outside 2..8, or another channel dimension.
    """
    if step.dim() > 1 or step.numel() == 0:
        raise ValueError(f"act_quantizer: the step has shape {tuple(step.shape)}; needed: () or (channels,)")
    if channel_dim not in CHANNEL_DIMS:
        raise ValueError(f"act_quantizer: channel_dim is {channel_dim}; allowed: 1 (convolutions), -1 (linear layers)")
    specs = _check(spec, step, "act_quantizer")
    kernel = LearnedStepQuant(specs, step, axis=channel_dim if step.dim() else 0, batched=True)
    proxy = LearnedStepActivation(nn.Identity(), _injector(kernel))
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


def _padding(layer: nn.Module) -> Any:
    """As numbers where both sides get alike: onnxruntime refuses `same`, as torch writes it, where the kernel is dilated."""
    if not isinstance(layer.padding, str):
        return layer.padding
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)  # type: ignore[arg-type]
    missing = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # type: ignore[arg-type]
    return "same" if any(n % 2 for n in missing) else tuple(n // 2 for n in missing)


def padding_of(layer: nn.Module) -> tuple[int, ...]:
    """A convolution's padding as numbers: one per side of its kernel, or first and last ones."""
    found = _padding(layer)
    if not isinstance(found, str):
        return tuple(found)
    missing = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # type: ignore[arg-type]
    return (*(n // 2 for n in missing), *(n - n // 2 for n in missing))


def filter_axis(layer: nn.Module) -> int:
    """The weight dimension that has one step per entry: 1 for transposed convolutions, else 0."""
    return 1 if bool(getattr(layer, "transposed", False)) else 0


def channel_axis(layer: nn.Module) -> int:
    """The dimension of the layer's input that holds channels or features."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _check_channels(layer: nn.Module, activation: LearnedStepQuant, what: str) -> None:
    if activation.step.dim() == 0:
        return
    channels, dim = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels, channel_axis(layer)
    if len(activation.step) != channels or activation.axis != dim:
        raise ValueError(
            f"{what}: the activation quantiser has {len(activation.step)} channels along dimension {activation.axis}; "
            f"needed: {channels} along {dim}"
        )


def computes_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes what torch's `kind` does and nothing else: no forward of its own or of its class, no hook."""
    parts = ("forward", "_conv_forward")
    own = any(
        part in vars(layer) or getattr(type(layer), part, None) is not getattr(kind, part, None) for part in parts
    )
    return isinstance(layer, kind) and not own and not layer._forward_hooks and not layer._forward_pre_hooks


def fixed_layer(
    layer: nn.Module,
    weight: QuantSpec | Sequence[QuantSpec],
    weight_step: Tensor,
    activation: LearnedStepActivation,
) -> nn.Module:
    """The Brevitas layer of fixed widths that computes `layer` on quantised input and weights.

    Args:
        layer: nn.Conv1d/2d/3d, nn.ConvTranspose1d/2d/3d or nn.Linear, or a subclass with the same
            forward, without forward hooks; its weights and (float) bias are copied.
        weight: grid of the weights, signed, 2 to 8 bits, or one for each filter; those differ in width alone.
        weight_step: shape (filters,), positive; filters is weight.shape[0], for transposed convolutions
            weight.shape[1] (output channels of one group). Becomes a learned parameter.
        activation: quantiser of the layer's input; consumers of one tensor share one object.

    Returns:
        a QuantConv*, QuantConvTranspose* or QuantLinear that returns plain tensors, in the training mode of `layer`.

    Raises:
        TypeError: another type of layer, or one that computes more.
        ValueError: steps or grids of the wrong number or sign, an unsigned grid, a width outside 2..8, or an activation
            quantiser for other channels.
    """
    kind = next((k for k in _KINDS if computes_as(layer, k)), None)
    if kind is None:
        allowed = ", ".join(kind.__name__ for kind in _KINDS)
        raise TypeError(
            f"fixed_layer: cannot quantise {type(layer).__name__}; allowed: {allowed}, with torch's forward and without hooks"
        )
    if not isinstance(activation, LearnedStepActivation):
        raise TypeError(f"fixed_layer: activation is {type(activation).__name__}; make it with act_quantizer(...)")
    values: Tensor = layer.weight  # type: ignore[assignment]
    axis, what = filter_axis(layer), f"fixed_layer({type(layer).__name__})"
    if weight_step.shape != (values.shape[axis],):
        raise ValueError(f"{what}: the step has shape {tuple(weight_step.shape)}; needed: ({values.shape[axis]},)")
    specs = _check(weight, weight_step, what)
    if not specs[0].signed:
        raise ValueError("fixed_layer: the weight grid is unsigned; weights need signed=True")
    _check_channels(layer, activation.quantiser, what)
    build, names = _KINDS[kind]
    injector = _injector(LearnedStepQuant(specs, weight_step, axis, values.dim()), proxy_class=LearnedStepWeight)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    result = build(
        **{name: _padding(layer) if name == "padding" else getattr(layer, name) for name in names},
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
        weights: grid of each filter; length filters (see `fixed_layer`).
        activations: grid of the input: one, or one for each channel where the channels have steps.
        weight_step: shape (filters,), as used (clamped), float32.
        activation_step: shape () or (channels,), as used, float32.
        codes: integer weights, shaped like the weight, int8.
    """

    name: str
    module: nn.Module
    weights: tuple[QuantSpec, ...]
    activations: tuple[QuantSpec, ...]
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
        found.append(QuantisedLayer(name, module, kernel.each(), act.each(), steps, step, codes))
    return found
