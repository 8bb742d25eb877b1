"""Learned-step quantisation (LSQ, Esser et al. 2019, arXiv 1902.08153) of one tensor at one width."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quant.kernel import kernel_available
from quant.mixture import along_filters, grid_bounds, mixture
from quant.spec import MIN_STEP, QuantSpec, one_or_each

CALIBRATION_ELEMENTS = 2**18
"""Of a tensor of activations, from which a step is fitted: at 8 bits the few largest ones matter, too."""
_CHECK_EVERY = 6
"""Candidates after which plain torch asks whether a smaller step can still be better."""


def integers(x: Tensor, step: Tensor, spec: QuantSpec | Sequence[QuantSpec]) -> Tensor:
    """Codes `clamp(round(x / step))` as floats, rounding half to even.

    Args:
        x: any shape; filters along dimension 0 where step has one entry per filter.
        step: shape () or (filters,), positive.
        spec: the grid, or one for each filter.
    """
    specs = one_or_each(spec)
    codes = torch.round(x / along_filters(step, x))
    if len(specs) == 1:
        return torch.clamp(codes, specs[0].lower, specs[0].upper)
    lower, upper = (along_filters(bound.to(x.dtype), x) for bound in grid_bounds(specs, x.device))
    return torch.clamp(codes, lower, upper)


class _ScaledGradient(torch.autograd.Function):
    """Passes a tensor on and multiplies its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The tensor itself, its gradient times a factor."""
    found: Tensor = _ScaledGradient.apply(x, factor)
    return found


def quantize_along(
    x: Tensor,
    step: Tensor,
    weight: Tensor,
    lower: Tensor,
    upper: Tensor,
    axis: int,
    batched: bool,
    owned: bool = False,
) -> Tensor:
    """Quantises x with one step, or with a step and a width for each entry of a dimension; differentiable as `mixture`.

    Args:
        x: any shape.
        step: shape () or (entries,); used as MIN_STEP where it is smaller.
        weight: ones, shape (1,).
        lower: smallest code, shape (1,), or (1, entries) where the entries differ; see `grid_bounds`.
        upper: largest code, shaped as `lower`.
        axis: the dimension of x that has one step per entry.
        batched: dimension 0 of x is a batch of activations: LSQ scales a step's gradient by the elements of one image.
        owned: as in `mixture`.

    Returns:
        a float tensor shaped like x.
    """
    steps = step.unsqueeze(0)
    if step.dim() == 0:
        return mixture(x, weight, steps, lower, upper, batched, hard=True, owned=owned)
    if batched:  # the mixture counts an entry's elements over the whole batch
        steps = scale_gradient(steps, x.shape[0] ** 0.5)
    return mixture(x.transpose(0, axis), weight, steps, lower, upper, hard=True).transpose(0, axis)


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


def drawn(x: Tensor, count: int = CALIBRATION_ELEMENTS) -> Tensor:
    """So many entries of the last dimension, always the same ones, or all where there are no more; shape (..., entries).

    Drawn at random: at equal distances they would all lie in one column of the images, where rows are a multiple as long.
    """
    if x.shape[-1] <= count:
        return x
    return x[..., drawn_positions(x.shape[-1], count).to(x.device)]


def drawn_positions(size: int, count: int = CALIBRATION_ELEMENTS) -> Tensor:
    """Where the entries that `drawn` takes out of so many are; shape (entries,)."""
    if size <= count:
        return torch.arange(size)
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(0))


def fit_step(x: Tensor, spec: QuantSpec, per_filter: bool, candidates: int = 80) -> Tensor:
    """The step of least squared error, by grid search from 1/40 of the full range up to the full range.

    The full range is the one in which the largest magnitude is no larger than the grid's upper end, whatever its sign.

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
        whole = largest.amax() if float(largest.amax()) > 0 else torch.ones((), device=x.device)
        largest = torch.where(largest > 0, largest, whole.expand_as(largest))
        shares = [0.025 + (1.0 - 0.025) * i / candidates for i in range(1, candidates + 1)]
        steps = torch.stack([largest / float(spec.upper) * share for share in shares], 1)
        best = steps.gather(1, _least_error(flat, steps, spec).unsqueeze(1)).squeeze(1).clamp_min(MIN_STEP)
        return best if per_filter else best[0]


def _least_error(flat: Tensor, steps: Tensor, spec: QuantSpec) -> Tensor:
    """For every row which of its ascending steps has the least squared error, of equal ones the smallest; shape (rows,).

    Steps are tried from the largest down. What a step cuts off bounds its error from below and only grows as steps
    shrink: once that alone exceeds the best error, no smaller step can be better.
    """
    if flat.device.type == "cpu" and kernel_available():
        found: Tensor = torch.ops.dnas.best_steps(flat, steps, spec.lower, spec.upper)
        return found
    least = torch.full_like(steps[:, 0], float("inf"))
    best = torch.zeros_like(least, dtype=torch.int64)
    work = torch.empty_like(flat)
    for k in reversed(range(steps.shape[1])):
        column = steps[:, k : k + 1]
        torch.div(flat, column, out=work)
        error = work.round_().clamp_(spec.lower, spec.upper).mul_(column).sub_(flat).square_().sum(1)
        better = error <= least
        least, best = torch.where(better, error, least), torch.where(better, k, best)
        if k % _CHECK_EVERY == 0:
            torch.clamp(flat, column * spec.lower, column * spec.upper, out=work)
            if bool((work.sub_(flat).square_().sum(1) > least * 1.0001).all()):
                break
    return best
