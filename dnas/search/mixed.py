"""The mixed layer and the mixed activation: a user's layer whose widths and channels follow the current sample."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.space.slicing import filter_dimension
from quant.mixture import mixture
from quant.quantizer import fit_step, positive_step
from quant.spec import QuantSpec


@dataclass
class Sample:
    """The weights of every choice's options in the current forward pass, and the filter masks that follow from them.

    weights: shape (K,) per choice; portions: their values on the host; mask: shape (channels of all groups,) or None
    where every filter is kept. quantised: False switches all quantisers off.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    portions: dict[str, tuple[float, ...]] = field(default_factory=dict)
    mask: Tensor | None = None
    quantised: bool = True

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sample":
        """A sample without contents: after a training step they are part of a graph, which cannot be copied."""
        return Sample(quantised=self.quantised)


class MixedActivation(nn.Module):
    """Quantises one tensor by the mixture of its options; shared by all layers that read the tensor."""

    def __init__(self, choice: str, specs: tuple[QuantSpec, ...], steps: tuple[float, ...], sample: Sample) -> None:
        super().__init__()
        self.choice, self.specs = choice, specs
        self.steps = nn.ParameterList([nn.Parameter(torch.tensor(step)) for step in steps])
        self._sample = [sample]

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape, batch first."""
        sample = self._sample[0]
        steps = tuple(positive_step(step) for step in self.steps)
        return mixture(x, sample.weights[self.choice], steps, self.specs, True, sample.portions[self.choice])

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets every option's step to the least squared error on x."""
        flat = x.detach().flatten()
        values = flat[:: max(flat.numel() // 32_768, 1)]
        for step, spec in zip(self.steps, self.specs, strict=True):
            step.copy_(fit_step(values, spec, per_filter=False))


class MixedLayer(nn.Module):
    """A convolution or linear layer whose quantised weights are mixed first and applied once.

    Removed input channels are masked in the weight (dimension 1; 0 for transposed convolutions): whatever stands
    between a producer and this layer, and whatever value its masked channels take there, the layer computes what the
    physically smaller one computes.
    """

    mask_index: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        choice: str,
        specs: tuple[QuantSpec, ...],
        activation: MixedActivation,
        mask_index: Tensor | None,
        sample: Sample,
    ) -> None:
        super().__init__()
        self.layer, self.choice, self.specs = layer, choice, specs
        weight: Tensor = layer.weight  # type: ignore[assignment]
        filters_first = weight.detach().transpose(0, filter_dimension(layer))
        self.steps = nn.ParameterList([nn.Parameter(fit_step(filters_first, spec, per_filter=True)) for spec in specs])
        self.register_buffer("mask_index", mask_index, persistent=False)
        self._shared = [activation]
        self._sample = [sample]

    @property
    def activation(self) -> MixedActivation:
        """The quantiser of this layer's input; other layers may share it."""
        return self._shared[0]

    def mixed_weight(self) -> Tensor:
        """The weight of this forward pass, shaped like the layer's: mixture of the options, input channels masked."""
        sample, layer = self._sample[0], self.layer
        weight: Tensor = layer.weight  # type: ignore[assignment]
        flip = filter_dimension(layer) == 1
        steps = tuple(positive_step(step) for step in self.steps)
        rows = weight.transpose(0, 1) if flip else weight
        mixed = mixture(rows, sample.weights[self.choice], steps, self.specs, False, sample.portions[self.choice])
        mixed = mixed.transpose(0, 1) if flip else mixed
        if self.mask_index is None or sample.mask is None:
            return mixed
        shape = [1] * mixed.dim()
        shape[0 if flip else 1] = -1
        return mixed * sample.mask[self.mask_index].reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        """X as the layer takes it."""
        if not self._sample[0].quantised:
            return self.layer(x)
        return apply_layer(self.layer, self.activation(x), self.mixed_weight())


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's own operation with another weight."""
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
