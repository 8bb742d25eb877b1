"""Fixed-bit layers that hold nothing but the arithmetic: what a realised network is trained with.

`training_twin` copies a network of Brevitas layers around the very same parameters. What is trained in the twin is
trained in the network, without Brevitas' bookkeeping in every step: bit for bit, but for the weight gradients of depthwise
convolutions with large kernels and of strided 1x1 ones on few channels, which add the same products in another order, see
`quant.depthwise` and `quant.pointwise`.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from quant.brevitas import LearnedStepActivation, LearnedStepQuant, is_fixed, plain_layer
from quant.depthwise import DepthwiseConv2d, depthwise, has_own_gradient
from quant.modules import copied
from quant.pointwise import PointwiseConv2d, is_strided_pointwise, pointwise
from quant.quantizer import quantize_along


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's own operation with another weight.

    Raises:
        TypeError: the layer is not a convolution or linear layer.
    """
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        function: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[weight.dim() - 2]
        result: Tensor = function(
            x, weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
        return result
    if has_own_gradient(layer):
        return depthwise(layer, x, weight)
    if is_strided_pointwise(layer):
        return pointwise(layer, x, weight)
    if isinstance(layer, nn.modules.conv._ConvNd):
        convolved: Tensor = layer._conv_forward(x, weight, layer.bias)
        return convolved
    raise TypeError(f"{type(layer).__name__} is not a convolution or linear layer")


def own_or_layer(module: nn.Module, name: str, child: str = "layer") -> Any:
    """An attribute of a module that stands in a user's module's place: its own, or else that of its child.

    Raises:
        AttributeError: neither has it.
    """
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        layer = module.__dict__.get("_modules", {}).get(child)
        if layer is None or name.startswith("__"):
            raise
        return getattr(layer, name)


class FixedQuantizer(nn.Module):
    """A learned-step quantiser of fixed widths, for one `FixedLayer` to read; shares the step of a `LearnedStepQuant`."""

    lower: Tensor
    upper: Tensor
    weight: Tensor

    def __init__(self, kernel: LearnedStepQuant) -> None:
        super().__init__()
        self.step, self.axis, self.batched = kernel.step, kernel.axis, kernel.batched
        self.register_buffer("lower", kernel.lower.clone(), persistent=False)  # tensors: one compiled graph serves
        self.register_buffer("upper", kernel.upper.clone(), persistent=False)  # every width
        self.register_buffer("weight", kernel.weight.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape."""
        return quantize_along(
            x, self.step, self.weight, self.lower, self.upper, self.axis, self.batched, owned=self.batched
        )


class FixedLayer(nn.Module):
    """A convolution or linear layer on quantised input with quantised weights."""

    def __init__(self, layer: nn.Module, weight: FixedQuantizer, activation: FixedQuantizer) -> None:
        super().__init__()
        self.layer, self.weight_quantizer, self.activation = layer, weight, activation

    def __getattr__(self, name: str) -> Any:
        """What a model's own code asks its layer for is the layer's."""
        return own_or_layer(self, name)

    def forward(self, x: Tensor) -> Tensor:
        """X as the layer takes it."""
        return apply_layer(self.layer, self.activation(x), self.weight_quantizer(self.layer.weight))


def training_twin(model: nn.Module) -> nn.Module:
    """A copy of a network that shares all of its parameters and buffers, with `FixedLayer` in place of Brevitas layers.

    Args:
        model: any network; only layers that `fixed_layer` made are replaced, and large depthwise ones and strided 1x1 ones
            on few channels get a gradient of their own (`quant.depthwise`, `quant.pointwise`).

    Returns:
        a module of the same type and training mode; an update of its parameters and buffers is one of the model's.
        Other attributes are copies.
    """
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    activations: dict[LearnedStepActivation, FixedQuantizer] = {}
    for module in model.modules():
        if is_fixed(module):
            activation: Any = module.input_quant
            if activation not in activations:
                activations[activation] = FixedQuantizer(activation.quantiser)
            weight_quant: Any = module.weight_quant
            weight = FixedQuantizer(weight_quant.quantiser)
            layer = FixedLayer(plain_layer(module), weight, activations[activation])
            memo[id(module)] = layer.train(module.training)
    twin: nn.Module = copied(model, memo)
    for module in model.modules():
        part = twin if module is model else memo.get(id(module))
        if isinstance(part, nn.Module) and not isinstance(part, FixedLayer):
            # shared, too: what a forward pass assigns anew, and what a move to a device replaces
            part._parameters, part._buffers = module._parameters, module._buffers
            if type(part) is nn.Conv2d and has_own_gradient(part):
                part.__class__ = DepthwiseConv2d  # what hooks and attributes it has stay
            elif type(part) is nn.Conv2d and is_strided_pointwise(part):
                part.__class__ = PointwiseConv2d
    return twin
