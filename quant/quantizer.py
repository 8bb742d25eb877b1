"""Learned-step quantisation (LSQ, Esser et al. 2019, arXiv 1902.08153) of one tensor at one width."""

import torch
from torch import Tensor

from quant.mixture import along_filters, grid_bounds, mixture
from quant.spec import MIN_STEP, QuantSpec


def integers(x: Tensor, step: Tensor, spec: QuantSpec) -> Tensor:
    """Codes `clamp(round(x / step))` as floats, rounding half to even.

    Args:
        x: any shape; filters along dimension 0 where step has one entry per filter.
        step: shape () or (filters,), positive.
        spec: the grid.
    """
    return torch.clamp(torch.round(x / along_filters(step, x)), spec.lower, spec.upper)


def quantize(x: Tensor, step: Tensor, spec: QuantSpec, batched: bool = False) -> Tensor:
    """Quantises x to the grid `step * {lower..upper}`, differentiable in x and step: a mixture of one option.

    Args:
        x: any shape; filters along dimension 0 where step has one entry per filter.
        step: shape () or (filters,); used as MIN_STEP where it is smaller.
        spec: the grid.
        batched: x has a batch dimension 0 (activations); it only changes the scale of the step's gradient.

    Returns:
        a float tensor shaped like x. Equals Brevitas' IntQuant bit for bit at the same scale and width.
    """
    lower, upper = grid_bounds((spec,), x.device)
    return mixture(x, torch.ones(1, device=x.device), step.unsqueeze(0), lower, upper, batched, hard=True)


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
