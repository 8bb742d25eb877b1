"""From the logits of a choice to what the forward pass uses: a distribution, or a sample of it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("gumbel_hard", "reinmax", "gumbel_soft", "softmax")
HARD = ("gumbel_hard", "reinmax")
"""Modes whose samples are single options."""
SCHEDULES = ("exponential", "cosine", "constant")
FILTERS = ("independent", "composition")


@dataclass(frozen=True)
class Relaxation:
    """How choices are relaxed.

    mode: `gumbel_hard` samples one option and passes gradients straight through (Jang et al. 2017, arXiv 1611.01144);
    `reinmax` does, too, with a gradient of second order (Liu et al. 2023, arXiv 2304.08612);
    `gumbel_soft` mixes options by a Gumbel-softmax sample; `softmax` mixes them by their probabilities.
    The temperature goes from `start` to `end` by `schedule` as training goes from 0 to 1.
    filters: of widths by filter: `independent`, every filter has logits of its own; `composition`, a layer learns which
    share of its filters gets each width, and the most sensitive filters get the widest.
    """

    mode: str = "gumbel_hard"
    start: float = 1.0
    end: float = 0.3
    schedule: str = "exponential"
    filters: str = "independent"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"relax.mode is {self.mode!r}; allowed: {list(MODES)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"relax.schedule is {self.schedule!r}; allowed: {list(SCHEDULES)}")
        if self.filters not in FILTERS:
            raise ValueError(f"relax.filters is {self.filters!r}; allowed: {list(FILTERS)}")
        if not self.start >= self.end > 0:
            raise ValueError(f"relax.start {self.start} and relax.end {self.end}: needed is start >= end > 0")

    def temperature(self, fraction: float) -> float:
        """Temperature after this fraction (0 to 1) of training.

        Raises:
            ValueError: the fraction is outside 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"anneal({fraction}): the fraction of training is between 0 and 1")
        if self.schedule == "constant":
            return self.start
        if self.schedule == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * fraction)) / 2
        return float(self.start * (self.end / self.start) ** fraction)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) over the last dimension."""
    return torch.softmax(logits / temperature, -1)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent standard Gumbel noise from a generator on the host."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-12)
    return (-torch.log(-torch.log(uniform.clamp_max(1 - 1e-12)))).float()


def relax(logits: Tensor, relaxation: Relaxation, temperature: float, noise: Tensor) -> Tensor:
    """The weights of the options of C choices in one forward pass.

    Args:
        logits: shape (C, K); -inf where a choice has fewer than K options.
        relaxation: the mode.
        temperature: positive.
        noise: shape (C, K), standard Gumbel; not used by `softmax`.

    Returns:
        shape (C, K), rows summing to 1, differentiable in logits; exactly one-hot for `gumbel_hard` and `reinmax`.
    """
    if relaxation.mode == "softmax":
        return probabilities(logits, temperature)
    if relaxation.mode == "reinmax":
        return _reinmax(logits, temperature, noise.to(logits.device))
    soft = probabilities(logits + noise.to(logits.device), temperature)
    if relaxation.mode == "gumbel_soft":
        return soft
    hard = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return straight_through(soft, hard)


def _reinmax(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """A categorical sample with ReinMax' gradient (algorithm 2 of Liu et al. 2023).

    Its backward pass is that of 2 pi_1 - pi_0 / 2, where pi_0 are the probabilities and pi_1 those half-way between the
    sample and the probabilities at the temperature. It wants temperatures of 1 and more.
    """
    chances = probabilities(logits, 1.0)
    hard = torch.nn.functional.one_hot((logits + noise).argmax(-1), logits.shape[-1]).to(chances.dtype)
    middle = (hard + probabilities(logits, temperature)).detach() / 2
    there = torch.where(torch.isfinite(logits), logits, 0.0)
    shift = (torch.log(middle.clamp_min(1e-30)) - there).detach()
    moved = torch.softmax(torch.where(torch.isfinite(logits), there + shift, float("-inf")), -1)
    return straight_through(2 * moved - chances / 2, hard)


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Exactly `hard`, with the gradient of `soft`."""
    found: Tensor = _StraightThrough.apply(soft, hard)
    return found


class _StraightThrough(torch.autograd.Function):
    """Forward: exactly `hard`; backward: the gradient of `soft` (hard + soft - soft would leave rounding noise)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
