"""A tensor that is changed in place after a layer read it: torch trains it where the layer keeps a copy, so must we."""

import torch
from equivalence import check, trains
from networks import Head, conv
from torch import Tensor, nn

from dnas.search.supernet import Supernet


class ChangedInput(nn.Module):
    """The linear layer reads a transposed tensor, of which torch's linear keeps a copy for its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b, self.head = conv(3, 8), nn.Linear(8, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.mix(x.transpose(1, 3)).transpose(1, 3)
        return self.head(self.b(y + x.mul_(2.0)).relu())


def test_it_stays_float_and_trains() -> None:
    supernet = check(ChangedInput)
    (mix,) = [fixed for fixed in supernet.space.fixed if fixed.name == "mix"]
    assert "changed in place" in mix.reason
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert trains(ChangedInput(), (x,))
    assert trains(Supernet(ChangedInput(), supernet.space), (x,))
