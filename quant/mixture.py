"""The mixture of K quantised versions of one tensor: the forward pass of every relaxed bit width."""

from typing import Any

import torch
from torch import Tensor

from quant.quantizer import along_filters, elements_per_step, gradient_scale, integers, step_gradient
from quant.spec import QuantSpec


class _Mixture(torch.autograd.Function):
    """sum_k weights[k] * Q_k(x); options of weight 0 cost nothing in forward. Saves x only and recomputes in backward.

    The gradient of weights[k] is <grad, Q_k(x)> for every k, also where weights[k] is 0: the straight-through choice
    gradient. It is computed only where it is asked for, so a step that trains no choice pays for one option.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        specs: tuple[QuantSpec, ...],
        portions: tuple[float, ...],
        batched: bool,
        *steps: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weights, *steps)
        ctx.specs, ctx.portions, ctx.batched = specs, portions, batched
        result: Tensor | None = None
        for portion, step, spec in zip(portions, steps, specs, strict=True):
            if portion == 0.0:
                continue
            term = integers(x, step, spec) * along_filters(step, x)
            if portion != 1.0:
                term = term * portion
            result = term if result is None else result + term
        return torch.zeros_like(x) if result is None else result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weights, *steps = ctx.saved_tensors
        need_x, need_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_x: Tensor | None = None
        grad_weights: list[Tensor] = []
        grad_steps: list[Tensor | None] = []
        for k, (portion, step, spec) in enumerate(zip(ctx.portions, steps, ctx.specs, strict=True)):
            need_step = ctx.needs_input_grad[5 + k] and portion != 0.0
            grad_steps.append(None)
            if not (need_weights or portion != 0.0):
                continue
            scaled = x / along_filters(step, x)
            if need_weights or need_step:
                codes = torch.clamp(torch.round(scaled), spec.lower, spec.upper)
                if need_weights:
                    grad_weights.append((grad * codes * along_filters(step, x)).sum())
            if portion == 0.0:
                continue
            inside = (scaled >= spec.lower) & (scaled <= spec.upper)
            if need_x:
                term = grad * inside
                if portion != 1.0:
                    term = term * portion
                grad_x = term if grad_x is None else grad_x + term
            if need_step:
                g = step_gradient(grad, scaled, codes, inside, step) * portion
                grad_steps[k] = g * gradient_scale(elements_per_step(x, step, ctx.batched), spec)
        if need_x and grad_x is None:
            grad_x = torch.zeros_like(x)
        stacked = torch.stack(grad_weights).to(weights.dtype) if need_weights else None
        return grad_x, stacked, None, None, None, *grad_steps


def mixture(
    x: Tensor,
    weights: Tensor,
    steps: tuple[Tensor, ...],
    specs: tuple[QuantSpec, ...],
    batched: bool = False,
    portions: tuple[float, ...] | None = None,
) -> Tensor:
    """Mixes K quantised versions of x: `sum_k weights[k] * quantize(x, steps[k], specs[k])`.

    Args:
        x: any shape; filters along dimension 0 where the steps have one entry per filter.
        weights: shape (K,); a one-hot vector gives exactly the chosen option's quantised tensor.
        steps: K tensors of shape () or (filters,).
        specs: K grids.
        batched: x has a batch dimension 0 (activations).
        portions: the values of weights, where the caller has them on the host already (saves a device sync).

    Returns:
        a float tensor shaped like x.
    """
    result: Tensor = _Mixture.apply(
        x, weights, specs, tuple(weights.tolist()) if portions is None else portions, batched, *steps
    )
    return result
