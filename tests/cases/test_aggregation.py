"""A convolution that reads the concatenated outputs of many others, as in DenseNet and HGNet."""

import pytest
import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn

from dnas.space.architecture import Architecture
from dnas.space.conventions import bops_uniq
from dnas.space.cost import kept_channels
from dnas.space.preflight import cost_ranges

BRANCHES = 8


class Aggregation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.layers = nn.ModuleList([conv(4, 4) for _ in range(BRANCHES)])
        self.join = conv(4 + 4 * BRANCHES, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x).relu()]
        for layer in self.layers:
            found.append(layer(found[-1]).relu())
        return self.head(self.join(torch.cat(found, 1)).relu())


def test_masked_equals_realised() -> None:
    supernet = check(Aggregation, draws=1)
    space = supernet.space
    assert len(space.layer("join").inputs.counts) == BRANCHES + 1
    # UNIQ's logarithm of the fan-in does not add up over nine groups of four options each: no table holds it,
    # but an architecture has its exact cost, and preflight its range
    found = Architecture(space, {c.name: c.options[i % len(c.options)] for i, c in enumerate(space.choices)})
    positions = found.positions()
    wanted = 0.0
    for layer in space.layers:
        counts = [kept_channels(space, side, positions) for side in (layer.inputs, layer.outputs)]
        wanted += bops_uniq(layer, *counts, found[layer.weight_choice], found[layer.act_choice])
    assert found.cost("bops_uniq") == pytest.approx(wanted, rel=1e-12)
    assert {"bops", "bops_uniq"} <= {entry.name for entry in cost_ranges(space)}
    with pytest.raises(ValueError, match="adds up over input channels"):
        supernet.cost("bops_uniq")
    assert float(supernet.cost("bops").detach()) > 0
