"""Learned-step quantisation (LSQ, Esser et al. 2019, arXiv 1902.08153) of one tensor at one width."""

from typing import Any

import torch
from torch import Tensor

from quant.spec import QuantSpec

MIN_STEP = 1e-8
"""Steps are clamped to this from below, in training and in the exported file alike."""


def along_filters(step: Tensor, x: Tensor) -> Tensor:
    """Shapes a step of shape () or (filters,) so that it divides x along dimension 0."""
    return step if step.dim() == 0 else step.reshape(-1, *([1] * (x.dim() - 1)))


def integers(x: Tensor, step: Tensor, spec: QuantSpec) -> Tensor:
    """Codes `clamp(round(x / step))` as floats, rounding half to even.

    Args:
        x: any shape; filters along dimension 0 where step has one entry per filter.
        step: shape () or (filters,), positive.
        spec: the grid.
    """
    return torch.clamp(torch.round(x / along_filters(step, x)), spec.lower, spec.upper)


def gradient_scale(elements: int, spec: QuantSpec) -> float:
    """LSQ's scale of a step's gradient: 1 / sqrt(elements that share the step * largest code) (section 2.2)."""
    return float((max(elements, 1) * max(spec.upper, 1)) ** -0.5)


def elements_per_step(x: Tensor, step: Tensor, batched: bool) -> int:
    """How many elements share one step; a batch dimension of activations is not counted, as in LSQ."""
    if step.dim() == 1:
        return x[0].numel()
    return x[0].numel() if batched and x.dim() > 0 and x.shape[0] > 0 else x.numel()


def step_gradient(grad: Tensor, scaled: Tensor, codes: Tensor, inside: Tensor, step: Tensor) -> Tensor:
    """Sum over elements of grad * dQ/dstep, where dQ/dstep is code - x/step inside the range and the code outside."""
    per_element = grad * (codes - scaled * inside)
    if step.dim() == 0:
        return per_element.sum()
    return per_element.flatten(1).sum(1)


class _LearnedStep(torch.autograd.Function):
    """Q(x) = step * clamp(round(x / step)); straight-through inside the range; recomputes in backward, so saves only x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, spec: QuantSpec, batched: bool) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.spec, ctx.batched = spec, batched
        return integers(x, step, spec) * along_filters(step, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, step = ctx.saved_tensors
        spec: QuantSpec = ctx.spec
        scaled = x / along_filters(step, x)
        inside = (scaled >= spec.lower) & (scaled <= spec.upper)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_step = None
        if ctx.needs_input_grad[1]:
            codes = torch.clamp(torch.round(scaled), spec.lower, spec.upper)
            grad_step = step_gradient(grad, scaled, codes, inside, step)
            grad_step = grad_step * gradient_scale(elements_per_step(x, step, ctx.batched), spec)
        return grad_x, grad_step, None, None


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Tensor) -> Tensor:
        return step.clamp_min(MIN_STEP)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def positive_step(step: Tensor) -> Tensor:
    """The step in use: at least MIN_STEP. The gradient passes, so that a step that went below can come back."""
    result: Tensor = _Positive.apply(step)
    return result


def quantize(x: Tensor, step: Tensor, spec: QuantSpec, batched: bool = False) -> Tensor:
    """Quantises x to the grid `step * {lower..upper}`, differentiable in x and step.

    Args:
        x: any shape; filters along dimension 0 where step has one entry per filter.
        step: shape () or (filters,), positive.
        spec: the grid.
        batched: x has a batch dimension 0 (activations); it only changes the scale of the step's gradient.

    Returns:
        a float tensor shaped like x. Equals Brevitas' IntQuant bit for bit at the same scale and width.
    """
    result: Tensor = _LearnedStep.apply(x, step, spec, batched)
    return result


def fit_step(x: Tensor, spec: QuantSpec, per_filter: bool, candidates: int = 80) -> Tensor:
    """The step of least squared error, by grid search from 1/40 of the full range up to the full range.

    Args:
        x: sample of the tensor; filters along dimension 0 where per_filter.
        spec: the grid.
        per_filter: one step per filter instead of one for all.
        candidates: grid points.

    Returns:
        shape (filters,) or (), positive; all-zero filters get the step of the whole tensor, or 1 if that is zero too.
    """
    with torch.no_grad():
        flat = x.detach().float()
        flat = flat.flatten(1) if per_filter else flat.reshape(1, -1)
        largest = flat.abs().amax(1)
        span = float(max(spec.upper, -spec.lower))
        whole = largest.amax() if float(largest.amax()) > 0 else torch.ones((), device=x.device)
        largest = torch.where(largest > 0, largest, whole.expand_as(largest))
        best_error = torch.full_like(largest, float("inf"))
        best = largest / span
        for i in range(1, candidates + 1):
            step = largest / span * (0.025 + (1.0 - 0.025) * i / candidates)
            column = step.unsqueeze(1)
            codes = torch.clamp(torch.round(flat / column), spec.lower, spec.upper)
            error = (codes * column - flat).square().sum(1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, step, best)
        best = best.clamp_min(MIN_STEP)
        return best if per_filter else best[0]
