"""A transposed convolution that is told its output's size: it stays float, is counted, and nothing around it breaks."""

from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class OutputSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.c, self.head = (
            conv(3, 8, stride=2),
            nn.ConvTranspose2d(8, 8, 3, 2, 1),
            conv(8, 8),
            Head(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.up(self.a(x).relu(), output_size=x.shape[2:]).relu()).relu())


def test_it_stays_float_and_is_counted() -> None:
    space = check(OutputSize).space
    assert [layer.name for layer in space.layers] == ["a", "c", "head.fc"]
    (up,) = [fixed for fixed in space.fixed if fixed.name == "up"]
    assert "output_size" in up.reason
    assert sum(fixed.macs for fixed in space.fixed) == 8 * 8 * 9 * 16
