"""Squeeze and excitation: two small layers scale the channels of the layer that they read."""

from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(3, 16), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.b, self.head = conv(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        scale = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head(self.b(x * scale[:, :, None, None]).relu())


def test_masked_equals_realised() -> None:
    supernet = check(SqueezeExcite)
    groups = {group.members for group in supernet.space.groups if supernet.space.choice(group.choice).searched}
    assert groups == {("a", "excite"), ("squeeze",), ("b",)}
