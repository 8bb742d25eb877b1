"""Masked normalisations: hard masks against the smaller normalisation, soft ones against weighted statistics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import randomise
from random_parts import OwnLayerNorm, Subclassed
from torch import Tensor, nn

from dnas.space.normalise import norm_of, normalise_kept
from dnas.space.slicing import slice_channels

NORMS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "layer norm": (lambda: nn.LayerNorm(12), 3),
    "layer norm over space": (lambda: nn.LayerNorm((12, 5, 4)), 1),
    "root mean square": (lambda: nn.RMSNorm(12, eps=1e-4), 3),
    "group norm": (lambda: nn.GroupNorm(3, 12), 1),
    "group norm without factors": (lambda: nn.GroupNorm(2, 12, affine=False), 1),
    "written out": (lambda: OwnLayerNorm(12), 1),
    "subclass": (lambda: Subclassed(12), 1),
}
"""Modules of 12 channels, and the dimension of an image that holds the channels."""


def given(name: str, generator: torch.Generator) -> tuple[nn.Module, Tensor, int]:
    make, dimension = NORMS[name]
    shape = [3, 5, 4]
    shape.insert(dimension, 12)
    return randomise(make()).double(), torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1, dimension


@pytest.mark.parametrize("name", sorted(NORMS))
@torch.no_grad()
def test_a_hard_mask_is_the_smaller_normalisation(name: str, generator: torch.Generator) -> None:
    module, x, dimension = given(name, generator)
    norm = norm_of(module, x)
    assert norm is not None
    assert norm.axis == dimension
    torch.testing.assert_close(normalise_kept(module, x, None, norm.kind, norm.over), module(x), rtol=1e-10, atol=1e-10)
    kept = [0, 3, 4, 7, 9, 11]  # equally many in halves and in thirds
    mask = torch.zeros(12).index_fill(0, torch.tensor(kept), 1.0)
    masked = normalise_kept(module, x, mask, norm.kind, norm.over)
    slice_channels(module, kept)
    index = torch.tensor(kept)
    wanted = module(x.index_select(dimension, index))
    torch.testing.assert_close(masked.index_select(dimension, index), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["layer norm", "root mean square", "group norm"])
@torch.no_grad()
def test_a_soft_mask_weights_the_statistics(name: str, generator: torch.Generator) -> None:
    module, x, dimension = given(name, generator)
    norm = norm_of(module, x)
    assert norm is not None
    mask = torch.rand(12, generator=generator, dtype=torch.float64)
    found = normalise_kept(module, x, mask, norm.kind, norm.over).movedim(dimension, 1).numpy()
    values, weights = x.movedim(dimension, 1).numpy(), mask.numpy()
    scale = module.weight.numpy()
    for channel in range(12):
        block = range(channel // 4 * 4, channel // 4 * 4 + 4) if name == "group norm" else range(12)
        if name == "group norm":  # over space, too
            part = values[:, list(block)].reshape(3, 4, -1)
            share = np.broadcast_to(weights[list(block)][None, :, None], part.shape)
            mean = np.average(part, (1, 2), share)[:, None, None]
            variance = np.average((part - mean) ** 2, (1, 2), share)[:, None, None]
        else:
            mean = np.average(values, 1, weights) * (name == "layer norm")
            variance = np.average((values - np.expand_dims(mean, 1)) ** 2, 1, weights)
        wanted = (values[:, channel] - mean) / np.sqrt(variance + module.eps) * scale[channel]
        if getattr(module, "bias", None) is not None:
            wanted = wanted + module.bias.numpy()[channel]
        np.testing.assert_allclose(found[:, channel], wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_what_is_no_normalisation(generator: torch.Generator) -> None:
    class Shifted(OwnLayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.amax(1, keepdim=True)

    x = torch.randn(3, 12, 5, generator=generator)
    for module in (Shifted(12), nn.Conv1d(12, 12, 1), nn.Sequential(nn.LayerNorm(5)), nn.ReLU()):
        assert norm_of(module, x) is None
