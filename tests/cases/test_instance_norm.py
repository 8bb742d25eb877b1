"""Instance norms: each channel for itself, with and without factors and running statistics, and written as a function."""

import pytest
import torch.nn.functional as F
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Instances(nn.Module):
    def __init__(self, affine: bool, running: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8), conv(8, 8), Head(8)
        self.norm = nn.InstanceNorm2d(8, affine=affine, track_running_stats=running)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.head(self.c(F.instance_norm(self.b(x)).relu()).relu())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_masked_equals_realised(affine: bool, running: bool) -> None:
    supernet = check(lambda: Instances(affine, running))
    searched = {group.members for group in supernet.space.groups if supernet.space.choice(group.choice).searched}
    assert searched == {("a",), ("b",), ("c",)}
