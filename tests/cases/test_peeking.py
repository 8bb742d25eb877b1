"""A model that reads its layers' attributes, calls them by keyword, and uses a layer's weight a second time."""

import torch.nn.functional as F
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Peeking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.norm, self.head = conv(3, 8), conv(8, 8), conv(8, 8), nn.GroupNorm(1, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(input=x.to(self.a.weight.dtype)).relu()
        x = self.norm(self.b(x).to(self.norm.weight.device)).relu()
        x = F.conv2d(x, self.c.weight, self.c.bias, padding=self.c.padding) + self.c(x)
        return self.head(x.view(len(x), self.c.out_channels, 8, 8).relu())


def test_masked_equals_realised() -> None:
    space = check(Peeking).space
    assert {g.members for g in space.groups if space.choice(g.choice).searched} == {("a",)}
