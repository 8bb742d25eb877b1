"""A head that runs in training mode only: what it reads keeps its filters, so that training the small network works."""

import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn

import dnas
from dnas.space.architecture import Architecture


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.helper, self.head = conv(3, 8), conv(8, 8), conv(8, 5), Head(8)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        return (y, self.helper(x).mean((2, 3))) if self.training else y


def test_the_smallest_network_trains() -> None:
    supernet = check(Auxiliary)
    space = supernet.space
    assert {g.members for g in space.groups if space.choice(g.choice).searched} == {("b",)}
    assert "training only" in {fixed.name: fixed.reason for fixed in space.fixed}["a.filters"]
    smallest = Architecture(space, {choice.name: choice.options[0] for choice in space.choices})
    realised = dnas.realise(supernet, smallest).train()
    outputs = realised(torch.randn(2, 3, 8, 8))
    assert [tuple(output.shape) for output in outputs] == [(2, 5), (2, 5)]
