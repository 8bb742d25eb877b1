"""The mixed layer and the mixed activation: a user's layer whose widths and channels follow the current sample."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnas.space.choice import Choice
from dnas.space.slicing import filter_dimension
from quant.layers import apply_layer, own_or_layer
from quant.mixture import grid_bounds, mixture
from quant.quantizer import CALIBRATION_ELEMENTS, drawn, fit_step, scale_gradient
from quant.spec import QuantSpec

CLIPPED = 0.01
"""Most of the squares of an unsigned tensor that may be below 0, by inputs unlike those that the space was built on."""


@dataclass
class Sample:
    """The weights of every choice's options in the current forward pass, and the filter masks that follow from them.

    weights: shape (K,) per choice, (decisions, K) of one by filter; mask: shape (channels of all groups,) or None where
    every filter is kept.
    hard: all weights are one-hot. quantised: False switches all quantisers off.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    hard: bool = True
    quantised: bool = True

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sample":
        """A sample without contents: after a training step they are part of a graph, which cannot be copied."""
        return Sample(hard=self.hard, quantised=self.quantised)


class Mixed(nn.Module):
    """K grids, each with its step: what mixed layers and activations have in common.

    steps: shape (K,) or (K, filters); a parameter where they are learned, else a buffer. block: how many filters decide
    together, 0 where all do.
    """

    lower: Tensor
    upper: Tensor
    steps: Tensor

    def __init__(
        self,
        choice: str,
        specs: tuple[QuantSpec, ...],
        steps: Tensor,
        sample: Sample,
        learned: bool = True,
        block: int = 0,
    ) -> None:
        super().__init__()
        self.choice, self.specs, self.block = choice, specs, block
        if learned:
            self.steps = nn.Parameter(steps)
        else:
            self.register_buffer("steps", steps)
        lower, upper = grid_bounds(specs, steps.device)
        self.register_buffer("lower", lower, persistent=False)
        self.register_buffer("upper", upper, persistent=False)
        self._sample = [sample]

    def mix(self, x: Tensor, batched: bool, batch: int = 1) -> Tensor:
        """The mixture of x's K quantised versions under the current sample; a batched one is for one layer to read.

        Where x has channels first, it is of `batch` images: LSQ scales a step's gradient by the elements of one.
        """
        sample = self._sample[0]
        weights = sample.weights[self.choice]
        if self.block:
            if self.block > 1:
                weights = weights.repeat_interleave(self.block, 0)[: x.shape[0]]
            weights = weights.transpose(0, 1)
        steps = self.steps if batch == 1 else scale_gradient(self.steps, batch**0.5)
        return mixture(x, weights, steps, self.lower, self.upper, batched, sample.hard, owned=batched)


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor that have widths of their own: how many, how many decide together, and where they are."""

    count: int
    block: int
    dimension: int


class MixedActivation(Mixed):
    """Quantises one tensor by the mixture of its options; shared by all layers that read the tensor."""

    def __init__(
        self,
        choice: str,
        specs: tuple[QuantSpec, ...],
        steps: tuple[float, ...],
        sample: Sample,
        learned: bool,
        channels: Channels | None = None,
    ) -> None:
        """Starts at given steps.

        Args:
            choice: name of the choice.
            specs: the grid of every option.
            steps: the step of every option.
            sample: of the current forward pass.
            learned: whether the steps are trained; those of the network's own input stay as calibrated.
            channels: where every channel has a width (and a step) of its own.
        """
        start = torch.tensor(steps)
        if channels is not None:
            start = start.unsqueeze(1).repeat(1, channels.count)
        super().__init__(choice, specs, start, sample, learned, channels.block if channels else 0)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape, batch first."""
        if self.channels is None:
            return self.mix(x, batched=True)
        dimension = self.channels.dimension
        return self.mix(x.transpose(0, dimension), False, x.shape[0]).transpose(0, dimension)

    def drawn(self, tensors: Sequence[Tensor]) -> Tensor:
        """Entries of these tensors, enough to fit steps to: shape (entries,), (channels, entries) if channels have steps."""
        if self.channels is None:
            return drawn(torch.cat([x.flatten() for x in tensors]))
        values = torch.cat([x.transpose(0, self.channels.dimension).flatten(1) for x in tensors], 1)
        return drawn(values, max(8 * CALIBRATION_ELEMENTS // len(values), 8_192))  # bounded over all channels

    @torch.no_grad()
    def calibrate(self, values: Tensor) -> None:
        """Sets every option's step to the least squared error on such entries.

        Raises:
            ValueError: they have a sign that the grids lack.
        """
        below = float(values.clamp(max=0).square().sum() / values.square().sum().clamp_min(1e-30))
        if below > CLIPPED and not self.specs[0].signed:
            raise ValueError(
                f"{self.choice}: {below:.1%} of what this tensor holds (in squares) is below 0, but nothing was when the space "
                "was built, so that its grids start at 0; build the space on the network as it is now, with trained weights, "
                "and on inputs like these (dnas.build_space)"
            )
        for k, spec in enumerate(self.specs):
            self.steps[k] = fit_step(values, spec, per_filter=self.channels is not None)


class MixedLayer(Mixed):
    """A convolution or linear layer whose quantised weights are mixed first and applied once.

    Removed input channels are masked in the weight (dimension 1; 0 for transposed convolutions): whatever stands
    between a producer and this layer, and whatever value its masked channels take there, the layer computes what the
    physically smaller one computes.
    """

    mask_index: Tensor | None
    kernels: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        choice: str,
        specs: tuple[QuantSpec, ...],
        activation: MixedActivation,
        mask_index: Tensor | None,
        sample: Sample,
        block: int = 0,
        kernel: Choice | None = None,
    ) -> None:
        """Starts every option's steps at the least squared error.

        Args:
            layer: the user's.
            choice: name of the choice of weight bits.
            specs: the grid of every option.
            activation: the quantiser of its input.
            mask_index: of every input channel where it is in the sample's mask; None where all are kept.
            sample: of the current forward pass.
            block: how many filters decide together, 0 where all do.
            kernel: the choice of the kernel's side, where there is one.
        """
        weight: Tensor = layer.weight  # type: ignore[assignment]
        filters_first = weight.detach().transpose(0, filter_dimension(layer))
        steps = torch.stack([fit_step(filters_first, spec, per_filter=True) for spec in specs])
        super().__init__(choice, specs, steps, sample, block=block)
        self.layer = layer
        self.axis = filter_dimension(layer)
        self.register_buffer("mask_index", mask_index, persistent=False)
        self._shared = [activation]
        self.kernel_choice = kernel.name if kernel else None
        masks = torch.stack([_middle(kernel.options[-1], side) for side in kernel.options]) if kernel else None
        self.register_buffer("kernels", masks, persistent=False)

    def __getattr__(self, name: str) -> Any:
        """What a model's own code asks its layer for (its stride, its weight's type) is the user's layer's."""
        return own_or_layer(self, name)

    @property
    def activation(self) -> MixedActivation:
        """The quantiser of this layer's input; other layers may share it."""
        return self._shared[0]

    def mixed_weight(self) -> Tensor:
        """The weight of this forward pass, shaped like the layer's: mixture of the options, input channels masked."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        mixed = self.mix(weight.transpose(0, self.axis), False).transpose(0, self.axis)
        if self.kernels is not None and self.kernel_choice is not None:
            sides = self._sample[0].weights[self.kernel_choice]
            mixed = mixed * (sides.to(self.kernels).reshape(-1, 1, 1) * self.kernels).sum(0)
        mask = self._sample[0].mask
        if self.mask_index is None or mask is None:
            return mixed
        shape = [1] * mixed.dim()
        shape[1 - self.axis] = -1
        return mixed * mask[self.mask_index].reshape(shape)

    def forward(self, input: Tensor) -> Tensor:
        """Input as the layer takes it, by position or by torch's name for it."""
        if not self._sample[0].quantised:
            result: Tensor = self.layer(input)
            return result
        return apply_layer(self.layer, self._shared[0](input), self.mixed_weight())


def read_by_activations(model: nn.Module, forward: Callable[[], Any]) -> dict[MixedActivation, Tensor]:
    """By activation entries of what the layers that it serves read in a forward pass, before it is quantised.

    They are drawn as soon as all of an activation's layers have run: no tensor of the pass is kept to its end.
    """
    layers = [module for module in model.modules() if isinstance(module, MixedLayer)]
    readers = Counter(module.activation for module in layers)
    read: dict[MixedActivation, list[Tensor]] = {}
    found: dict[MixedActivation, list[Tensor]] = {}

    def keep(module: MixedLayer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (x,) = (*args, *kwargs.values())
        activation = module.activation
        read.setdefault(activation, []).append(x.detach())
        if len(read[activation]) == readers[activation]:
            found.setdefault(activation, []).append(activation.drawn(read.pop(activation)))

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in layers]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    for activation, rest in read.items():  # not all of its layers ran, or not equally often
        found.setdefault(activation, []).append(activation.drawn(rest))
    return {activation: torch.cat(parts, -1) for activation, parts in found.items()}


def _middle(side: int, kept: int) -> Tensor:
    """1 in the middle of a square kernel, 0 around it; shape (side, side)."""
    found = torch.zeros(side, side)
    border = (side - kept) // 2
    found[border : side - border, border : side - border] = 1.0
    return found
