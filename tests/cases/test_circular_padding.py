"""Circular padding as a function: torch makes an empty tensor and copies into parts of it."""

import torch.nn.functional as F
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Circular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), nn.Conv2d(8, 8, 3), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.pad(self.a(x).relu(), (1, 1, 1, 1), "circular")).relu())


def test_masked_equals_realised() -> None:
    space = check(Circular).space
    assert {g.members for g in space.groups if space.choice(g.choice).searched} == {("a",), ("b",)}
