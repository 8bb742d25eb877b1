"""Fixed-bit layers that hold nothing but the arithmetic: what a realised network is trained with.

`training_twin` copies a network of Brevitas layers around the very same parameters. What is trained in the twin is
trained in the network, bit for bit, without Brevitas' bookkeeping in every step.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.brevitas import LearnedStepActivation, LearnedStepQuant, filter_axis, is_fixed, plain_layer
from quant.mixture import grid_bounds, mixture


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
    if isinstance(layer, nn.modules.conv._ConvNd):
        convolved: Tensor = layer._conv_forward(x, weight, layer.bias)
        return convolved
    raise TypeError(f"{type(layer).__name__} is not a convolution or linear layer")


class FixedQuantizer(nn.Module):
    """A learned-step quantiser at one width, for one `FixedLayer` to read; shares the step of a `LearnedStepQuant`."""

    lower: Tensor
    upper: Tensor
    weight: Tensor

    def __init__(self, kernel: LearnedStepQuant, batched: bool) -> None:
        super().__init__()
        self.step, self.batched = kernel.step, batched
        lower, upper = grid_bounds((kernel.spec,), kernel.step.device)
        self.register_buffer("lower", lower, persistent=False)  # tensors: one compiled graph serves every width
        self.register_buffer("upper", upper, persistent=False)
        self.register_buffer("weight", torch.ones_like(lower), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape; filters along dimension 0 where there is a step per filter."""
        steps = self.step.unsqueeze(0)
        return mixture(x, self.weight, steps, self.lower, self.upper, self.batched, hard=True, owned=self.batched)


class FixedLayer(nn.Module):
    """A convolution or linear layer on quantised input with quantised weights."""

    def __init__(self, layer: nn.Module, weight: FixedQuantizer, activation: FixedQuantizer) -> None:
        super().__init__()
        self.layer, self.weight_quantizer, self.activation = layer, weight, activation
        self.axis = filter_axis(layer)

    def forward(self, x: Tensor) -> Tensor:
        """X as the layer takes it."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        weight = self.weight_quantizer(weight.transpose(0, self.axis)).transpose(0, self.axis)
        return apply_layer(self.layer, self.activation(x), weight)


def training_twin(model: nn.Module) -> nn.Module:
    """A copy of a network that shares all of its parameters and buffers, with `FixedLayer` in place of Brevitas layers.

    Args:
        model: any network; only layers that `fixed_layer` made are replaced.

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
                activations[activation] = FixedQuantizer(activation.quantiser, batched=True)
            weight_quant: Any = module.weight_quant
            weight = FixedQuantizer(weight_quant.quantiser, batched=False)
            layer = FixedLayer(plain_layer(module), weight, activations[activation])
            memo[id(module)] = layer.train(module.training)
    twin: nn.Module = copy.deepcopy(model, memo)
    for module in model.modules():
        copied = twin if module is model else memo.get(id(module))
        if isinstance(copied, nn.Module) and not isinstance(copied, FixedLayer):
            # shared, too: what a forward pass assigns anew, and what a move to a device replaces
            copied._parameters, copied._buffers = module._parameters, module._buffers
    return twin
