"""Layer norms over channels in every form that users write: their statistics see the kept channels only."""

from collections.abc import Callable

import pytest
from equivalence import check
from networks import Head, conv
from random_parts import ChannelsLast, OwnLayerNorm, Subclassed
from torch import Tensor, nn

FORMS: dict[str, Callable[[], nn.Module]] = {
    "channels last": lambda: ChannelsLast(nn.LayerNorm(8)),
    "without factors": lambda: ChannelsLast(nn.LayerNorm(8, elementwise_affine=False)),
    "root mean square": lambda: ChannelsLast(nn.RMSNorm(8)),
    "written out": lambda: OwnLayerNorm(8),
    "subclass": lambda: Subclassed(8),
    "channels and space": lambda: nn.LayerNorm((8, 8, 8)),
    "group norm of one group": lambda: nn.GroupNorm(1, 8),
}


class Normalised(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = conv(3, 8), norm(), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu())


@pytest.mark.parametrize("form", sorted(FORMS))
def test_masked_equals_realised(form: str) -> None:
    supernet = check(lambda: Normalised(FORMS[form]))
    searched = {group.members for group in supernet.space.groups if supernet.space.choice(group.choice).searched}
    assert searched == {("a",), ("b",)}
