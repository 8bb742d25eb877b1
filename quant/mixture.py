"""The mixture of K quantised versions of one tensor: the forward pass of every relaxed and of every fixed bit width.

This file defines it in plain torch. On CPUs a C++ kernel computes the same; in a compiled graph it computes the gradients,
while the forward pass of one option is left to the compiler, which fuses it with whatever makes x.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quant.kernel import kernel_available
from quant.spec import MIN_STEP, QuantSpec


def along_filters(step: Tensor, x: Tensor) -> Tensor:
    """Shapes a step of shape () or (filters,) so that it divides x along dimension 0."""
    return step if step.dim() == 0 else step.reshape(-1, *([1] * (x.dim() - 1)))


def grid_bounds(specs: Sequence[QuantSpec], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The smallest and the largest code of K grids, float32, shape (K,) each."""
    lower, upper = [float(s.lower) for s in specs], [float(s.upper) for s in specs]
    return torch.tensor(lower, device=device), torch.tensor(upper, device=device)


def _forward(x: Tensor, weights: Tensor, steps: Tensor, lower: Tensor, upper: Tensor, hard: bool) -> Tensor:
    if hard:
        return _option(x, *_chosen(weights, steps, lower, upper))
    result = torch.zeros_like(x)
    for k in range(len(weights)):
        result = result + _option(x, steps[k], lower[k], upper[k]) * along_filters(weights[k], x)
    return result


def _option(x: Tensor, step: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    step, lower, upper = (along_filters(t, x) for t in (step, lower, upper))
    return torch.clamp(torch.round(x / step), lower, upper) * step


def _chosen(weights: Tensor, steps: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step and bounds of the option that one-hot weights mark, as tensors: no graph depends on which it is."""
    if len(weights) == 1:
        return steps[0], lower[0], upper[0]
    with torch.autocast(weights.device.type, enabled=False):  # a product in bf16 would round the step
        marked = weights != 0  # a step that is not used may be anything
        steps = torch.where(marked if steps.dim() == weights.dim() else marked.unsqueeze(1), steps, 0.0)
        if weights.dim() == 1:
            return weights @ steps, weights @ lower, weights @ upper
        found = (weights * (t if t.dim() == 2 else t.unsqueeze(1)) for t in (steps, lower, upper))
        step, low, high = (t.sum(0) for t in found)
        return step, low, high


def _option_backward(grad: Tensor, x: Tensor, step: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of one quantised version of x with respect to x and, per step, to the step (Esser et al. 2019, eq. 3)."""
    scaled, lower, upper = x / along_filters(step, x), along_filters(lower, x), along_filters(upper, x)
    inside = (scaled >= lower) & (scaled <= upper)
    codes = torch.clamp(torch.round(scaled), lower, upper)
    slope = grad * (codes - torch.where(inside, scaled, 0.0))
    return torch.where(inside, grad, 0.0), slope.sum() if step.dim() == 0 else slope.flatten(1).sum(1)


def _backward(
    grad: Tensor, x: Tensor, weights: Tensor, steps: Tensor, lower: Tensor, upper: Tensor, hard: bool, choices: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of x, of the weights where `choices` are trained, and of the steps (without LSQ's scale)."""
    grad_weights: Tensor | None = None
    if choices:
        products = []
        for k in range(len(weights)):
            product = grad * _option(x, steps[k], lower[k], upper[k])
            products.append(product.sum() if weights.dim() == 1 else product.flatten(1).sum(1))
        grad_weights = torch.stack(products)
    if hard:
        step, low, high = _chosen(weights, steps, lower, upper)
        grad_x, slope = _option_backward(grad, x, step, low, high)
        return grad_x, grad_weights, weights * slope if slope.dim() == 0 or weights.dim() == 2 else weights.outer(slope)
    grad_x, slopes = torch.zeros_like(x), []
    for k in range(len(weights)):
        part, slope = _option_backward(grad, x, steps[k], lower[k], upper[k])
        grad_x = grad_x + part * along_filters(weights[k], x)
        slopes.append(slope * weights[k])
    return grad_x, grad_weights, torch.stack(slopes)


def _fast(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and kernel_available()


def _by_rows(x: Tensor, steps: Tensor) -> bool:
    """Whether what shares a step lies together in memory, as the kernel needs it; else it copies x."""
    return steps.dim() == 1 or x.stride(0) * x.shape[0] == x.numel()


class _Mixture(torch.autograd.Function):
    """Saves x alone and recomputes in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        steps: Tensor,
        lower: Tensor,
        upper: Tensor,
        hard: bool,
        elements: int,
        owned: bool,
    ) -> Tensor:
        steps = steps.clamp_min(MIN_STEP)  # its gradient passes, so that a step that fell below can come back
        ctx.save_for_backward(x, weights, steps, lower, upper)
        ctx.hard, ctx.elements, ctx.owned = hard, elements, owned
        fused = hard and torch.compiler.is_compiling()
        if _fast(x) and not fused:
            found: Tensor = torch.ops.dnas.mixture_forward(x, weights, steps, lower, upper)
            return found
        return _forward(x, weights, steps, lower, upper, hard)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weights, steps, lower, upper = ctx.saved_tensors
        choices = ctx.needs_input_grad[1]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("quantisers have first derivatives only: create_graph=True is not possible through them")
        if ctx.hard and not choices and torch.compiler.is_compiling() and not _by_rows(x, steps):
            grad_x, grad_weights, slopes = _backward(grad, x, weights, steps, lower, upper, True, False)
        elif _fast(x) and torch.compiler.is_compiling() and ctx.owned:
            grad_x = grad
            grad_weights, slopes = torch.ops.dnas.mixture_backward_(grad, x, weights, steps, lower, upper, choices)
        elif _fast(x):
            grad_x, grad_weights, slopes = torch.ops.dnas.mixture_backward(
                grad, x, weights, steps, lower, upper, choices
            )
        else:
            grad_x, grad_weights, slopes = _backward(grad, x, weights, steps, lower, upper, ctx.hard, choices)
        scale = (ctx.elements * upper.clamp_min(1.0)).rsqrt()  # LSQ, section 2.2
        grad_steps = slopes * (scale if slopes.dim() == scale.dim() else scale.unsqueeze(1))
        return grad_x, grad_weights if choices else None, grad_steps, None, None, None, None, None


def mixture(
    x: Tensor,
    weights: Tensor,
    steps: Tensor,
    lower: Tensor,
    upper: Tensor,
    batched: bool = False,
    hard: bool = False,
    owned: bool = False,
) -> Tensor:
    """Mixes K quantised versions of x: `sum_k weights[k] * steps[k] * clamp(round(x / steps[k]), lower[k], upper[k])`.

    The gradient of x and of the steps is LSQ's (Esser et al. 2019, arXiv 1902.08153), that of weights[k] is
    <grad, Q_k(x)> for every k, also where weights[k] is 0: the straight-through choice gradient, exact, from the
    forward pass of one option.

    Args:
        x: any shape; filters along dimension 0 where the steps have one entry per filter.
        weights: shape (K,), or (K, filters) where every filter has weights of its own and steps of its own; one-hot
            weights give exactly the chosen option's quantised tensor.
        steps: shape (K,) or (K, filters); used as MIN_STEP where they are smaller.
        lower: smallest code of each grid, shape (K,), see `grid_bounds`, or (K, filters) as the weights.
        upper: largest code of each grid, shaped as `lower`.
        batched: x has a batch dimension 0 (activations); it only changes the scale of the steps' gradient.
        hard: the weights are one-hot: plain torch then computes one option.
        owned: the result is read by one convolution or matrix product and by nothing else, so that its gradient is a
            tensor of its own, which a compiled graph may overwrite with that of x.

    Returns:
        a float tensor shaped like x.

    Raises:
        ValueError: shapes that do not belong together.
    """
    options = tuple(weights.shape[:1])
    allowed = (options, options + tuple(x.shape[:1])) if steps.dim() == 2 else (options,)
    if not all(t.dim() and tuple(t.shape) in allowed for t in (weights, lower, upper)) or steps.shape != allowed[-1]:
        raise ValueError(
            f"mixture: weights {tuple(weights.shape)}, steps {tuple(steps.shape)}, lower {tuple(lower.shape)} and upper "
            f"{tuple(upper.shape)} for x {tuple(x.shape)}; needed is (K,) for each, or (K, filters as in x) for the steps and "
            "then for any other"
        )
    if x.dtype in (torch.float16, torch.bfloat16):  # 8-bit codes and steps need more than 8 bits of mantissa
        x = x.float()
    share = steps.dim() == 2 or batched
    elements = x.numel() // max(x.shape[0], 1) if share and x.dim() > 0 else x.numel()
    dtype = x.dtype
    result: Tensor = _Mixture.apply(
        x, weights.to(dtype), steps.to(dtype), lower.to(dtype), upper.to(dtype), hard, max(elements, 1), owned
    )
    return result
