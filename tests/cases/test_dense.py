"""Dense blocks: every layer reads all outputs before it, through one normalisation."""

import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Growth(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), conv(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x).relu())], 1)


class Dense(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), Growth(8), Growth(12), Growth(16), nn.BatchNorm2d(20), nn.ReLU(), Head(20))


def test_masked_equals_realised() -> None:
    supernet = check(Dense)
    assert sum(supernet.space.choice(group.choice).searched for group in supernet.space.groups) == 4
