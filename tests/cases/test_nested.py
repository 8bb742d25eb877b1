"""Residual blocks inside of a residual block, pooling branches, and an upsampling path."""

import torch
import torch.nn.functional as F
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a, self.b, self.c, self.d = conv(8, 4), conv(4, 8), conv(8, 6), conv(6, 8)
        self.down, self.join = conv(8, 12, stride=2), conv(28, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = x + self.b(self.a(x).relu())
        z = x + y + self.d(self.c(y).relu())
        up = F.interpolate(self.down(z).relu(), scale_factor=2.0)
        return self.head(self.join(torch.cat([F.avg_pool2d(z, 3, 1, 1), up, F.max_pool2d(x, 3, 1, 1)], 1)).relu())


def test_masked_equals_realised() -> None:
    check(Nested)
