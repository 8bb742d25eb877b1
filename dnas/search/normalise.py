"""Normalisations over channels in a supernet: their statistics see the kept channels only."""

from typing import Any

import torch
from torch import Tensor, nn

from dnas.search.mixed import Sample
from dnas.space.choice import Space, Through
from dnas.space.normalise import normalise_kept
from quant.layers import own_or_layer


class MixedNorm(nn.Module):
    """A layer norm, root mean square norm or group norm whose channels count by the filter mask of the current sample.

    With a mask of 0 and 1 it gives the kept channels what the physically smaller normalisation gives them; with a soft
    mask, statistics in which every channel has its weight.
    """

    mask_index: Tensor

    def __init__(self, norm: nn.Module, through: Through, mask_index: Tensor, sample: Sample) -> None:
        """`mask_index`: of every channel of the normalisation, where it is in the sample's mask."""
        super().__init__()
        self.norm, self.kind, self.over = norm, through.kind, through.over
        self.register_buffer("mask_index", mask_index, persistent=False)
        self._sample = [sample]

    def __getattr__(self, name: str) -> Any:
        return own_or_layer(self, name, "norm")

    def forward(self, x: Tensor) -> Tensor:
        """X as the normalisation takes it."""
        sample = self._sample[0]
        if sample.mask is None or not sample.quantised:
            result: Tensor = self.norm(x)
            return result
        with torch.autocast(x.device.type, enabled=False):  # as torch's own, which computes in single precision
            return normalise_kept(self.norm, x, sample.mask[self.mask_index], self.kind, self.over)


def mask_indices(space: Space, offsets: list[int], shrinking: set[int]) -> dict[str, tuple[Through, Tensor]]:
    """The normalisations that need a mask, by path, with where each of their channels is in it.

    Args:
        space: the space.
        offsets: of every group, where its channels start in the mask.
        shrinking: numbers of the groups that can lose channels.
    """
    found = {}
    for through in space.through:
        if through.mixes and shrinking & set(through.channels.group):
            pairs = zip(through.channels.group, through.channels.position, strict=True)
            found[through.name] = (through, torch.tensor([offsets[group] + position for group, position in pairs]))
    return found
