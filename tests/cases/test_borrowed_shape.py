"""A reshape by the number of channels of another tensor: two groups that agree only while both lose the same share."""

from equivalence import check
from networks import conv
from torch import Tensor, nn


class BorrowedShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = self.c(self.b(y).relu()).relu()
        return self.head(z.reshape(len(z), y.shape[1], -1).mean(2))


def test_one_of_the_two_stays_whole() -> None:
    space = check(BorrowedShape, draws=6).space
    reasons = {fixed.name: fixed.reason for fixed in space.fixed}
    assert any("removing filters changes" in reasons.get(f"{name}.filters", "") for name in "ac")
    assert space.choice("b.filters").searched
