"""A path that depends on values: no trace shows the other one, so filters stay; bits are searched all the same."""

from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Depends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head((self.b(x) if x.mean() > 1e6 else self.c(x)).relu())


def test_filters_stay_and_bits_are_searched() -> None:
    supernet = check(Depends)
    space = supernet.space
    assert {choice.kind for choice in space.searched()} == {"weight_bits", "act_bits"}
    reasons = {fixed.name: fixed.reason for fixed in space.fixed}
    assert "data's values" in reasons["c.filters"]
    assert "did not run" in reasons["b"]
