"""Normalisations that channels pass through: which they are, and what they compute over the kept channels alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnas.space.choice import NormKind

_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)
_STANDARD = (*_PER_CHANNEL, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
RECOGNISED = 1e-4
"""Largest difference, relative to the largest output, between a user's own normalisation and the one it is taken for."""


@dataclass(frozen=True)
class Norm:
    """What a module does with channels along dimension `axis`; see `Through` for `kind` and `over`.

    groups: of a group norm.
    """

    kind: NormKind
    axis: int
    over: tuple[int, ...] = ()
    groups: int = 1

    @property
    def mixes(self) -> bool:
        """Whether the channels' statistics are joint, so that removed ones must not enter them."""
        return self.kind in ("layer", "rms", "group")


def norm_of(module: nn.Module, x: Tensor) -> Norm | None:
    """What a module does with the channels of its input; None if it is no normalisation.

    A module without children that has a weight, an `eps` and a forward of its own is taken for a layer norm (or root
    mean square norm) over dimension 1 or the last if it computes that for x; it is run for it.
    """
    if isinstance(module, _STANDARD) and type(module).forward is _torch_forward(module):
        return _standard(module, x.dim())
    own = module._parameters.get("weight")
    if own is None or own.dim() != 1 or _eps(module) is None or any(True for _ in module.children()) or x.dim() < 2:
        return None
    try:
        y = module(x.clone())
    except Exception:  # whatever the user's module raises, it will raise it again where it is called
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
        return None
    for dimension in (1, x.dim() - 1):
        over = (dimension if dimension == 1 and x.dim() > 2 else -1,)
        if x.shape[dimension] != own.numel():
            continue
        for norm in (Norm("layer", dimension, over), Norm("rms", dimension, over)):
            wanted = normalise_kept(module, x, None, norm.kind, over)
            if float((wanted - y).abs().amax()) <= RECOGNISED * float(y.abs().amax()):
                return norm
    return None


def _torch_forward(module: nn.Module) -> Any:
    kinds = (kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules."))
    return next(kinds).forward  # type: ignore[attr-defined]


def _standard(module: nn.Module, dims: int) -> Norm:
    if isinstance(module, nn.GroupNorm):
        alone = module.num_groups == module.num_channels
        return Norm("channel" if alone else "group", 1, tuple(range(1, dims)), module.num_groups)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        count = len(module.normalized_shape)
        over = tuple(range(-count, 0))
        return Norm("layer" if isinstance(module, nn.LayerNorm) else "rms", dims - count, over)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        axis = dims - module._get_no_batch_dim()
        return Norm("channel", axis, tuple(range(axis, dims)))
    if isinstance(module, nn.PReLU):
        return Norm("channel", 1, ())
    return Norm("channel", 1, tuple(range(dims)))


def _eps(module: nn.Module) -> float | None:
    found = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    return float(found) if isinstance(found, int | float) else None


def normalise_kept(module: nn.Module, x: Tensor, mask: Tensor | None, kind: NormKind, over: Sequence[int]) -> Tensor:
    """A normalisation whose statistics see every channel by its weight in the mask.

    With weights of 0 and 1 the kept channels get what the normalisation of the kept channels alone computes.

    Args:
        module: holds `weight`, `bias` (both may be missing or None), `eps`, and `num_groups` for a group norm.
        x: its input.
        mask: per channel, shape (channels,); None for all ones.
        kind: `layer`, `rms` or `group`.
        over: dimensions of the statistics, the first is that of the channels; not used for `group`.
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mask = torch.ones((), device=x.device) if mask is None else mask
    mask = mask.to(x)
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    eps = _eps(module)
    if kind == "group":
        groups = int(module.num_groups)  # type: ignore[arg-type]
        mask = mask.expand(x.shape[1]).reshape(1, groups, -1, 1)
        y = _standardise(x.reshape(x.shape[0], groups, x.shape[1] // groups, -1), mask, (2, 3), eps, True)
        return _scale(y.reshape(x.shape), weight, bias, (1,))
    axis = over[0] % x.dim()
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    mask = mask.expand(x.shape[axis]).reshape(shape)
    return _scale(_standardise(x, mask, tuple(over), eps, kind == "layer"), weight, bias, over)


def _standardise(x: Tensor, mask: Tensor, over: tuple[int, ...], eps: float | None, centred: bool) -> Tensor:
    count = mask.sum(over, keepdim=True)
    for dimension in over:
        count = count * (x.shape[dimension] if mask.shape[dimension] == 1 else 1)
    if centred:
        x = x - (x * mask).sum(over, keepdim=True) / count
    variance = (x.square() * mask).sum(over, keepdim=True) / count
    return x * torch.rsqrt(variance + (torch.finfo(x.dtype).eps if eps is None else eps))


def _scale(y: Tensor, weight: Any, bias: Any, over: Sequence[int]) -> Tensor:
    places = {d % y.dim() for d in over}
    shape = [y.shape[d] if d in places else 1 for d in range(y.dim())]
    if isinstance(weight, Tensor):
        y = y * weight.reshape(shape)
    return y + bias.reshape(shape) if isinstance(bias, Tensor) else y
