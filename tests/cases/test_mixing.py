"""Operations across channels: their layers stay whole, the others and what a group norm reads still shrink."""

import torch.nn.functional as F
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(8, 8), conv(4, 16), conv(4, 8)
        self.norm = nn.GroupNorm(2, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        x = F.normalize(self.b(x), dim=1)[:, ::2]
        return self.head(self.d(F.pixel_shuffle(self.c(x).relu(), 2)).relu())


def test_masked_equals_realised() -> None:
    supernet = check(Mixing)
    searched = {group.members for group in supernet.space.groups if supernet.space.choice(group.choice).searched}
    assert searched == {("a",), ("d",)}
