"""Group norms: a group of filters loses equally many per norm group, or stays whole."""

import pytest
import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn

from dnas.space.architecture import Architecture


class GroupNorms(nn.Module):
    """Norms of 2 and of 4 groups on the same filters, and one that divides its input unevenly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na, self.b, self.nb = conv(3, 16), nn.GroupNorm(2, 16), conv(16, 16), nn.GroupNorm(4, 16)
        self.c, self.d, self.joined, self.e = conv(16, 4), conv(16, 8), nn.GroupNorm(3, 12), conv(12, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.na(self.a(x)).relu()
        x = x + self.nb(self.b(x)).relu()
        return self.head(self.e(self.joined(torch.cat([self.c(x), self.d(x)], 1)).relu()).relu())


def test_masked_equals_realised_and_blocks_keep_equally_many() -> None:
    supernet = check(GroupNorms)
    space = supernet.space
    blocks = {group.members: group.blocks for group in space.groups if group.members}
    assert blocks == {("a", "b"): 4, ("c",): 1, ("d",): 1, ("e",): 1, ("head.fc",): 1}
    assert space.choice("a.filters").options == (4, 8, 12, 16)
    reasons = {fixed.name: fixed.reason for fixed in space.fixed}
    assert "joined's 3 groups" in reasons["c.filters"]
    assert "joined's 3 groups" in reasons["d.filters"]
    options = {choice.name: choice.options[0] for choice in space.choices}
    for ranking in range(5):
        generator = torch.Generator().manual_seed(ranking)
        supernet.rank_filters({"a.filters": torch.rand(16, generator=generator)})
        kept = supernet.with_filters(Architecture(space, options)).kept
        assert sorted(position // 4 for position in kept["a.filters"]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="equally many"):
        Architecture(space, options, {"a.filters": (0, 1, 2, 3)})


class OneGroupPerChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = conv(3, 8), nn.GroupNorm(8, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu())


def test_a_group_per_channel() -> None:
    supernet = check(OneGroupPerChannel)
    assert supernet.space.choice("a.filters").options == (2, 4, 6, 8)
