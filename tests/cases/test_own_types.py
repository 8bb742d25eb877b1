"""Outputs in a data class and in an object of the user's own: what they hold keeps its width."""

from dataclasses import dataclass

import torch
from equivalence import build
from networks import Head, conv
from torch import Tensor, nn

import dnas
from dnas.space.architecture import Architecture


@dataclass
class Found:
    logits: Tensor
    features: list[Tensor]


class OwnTypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Found:
        x = self.a(x).relu()
        return Found(self.head(self.b(x).relu()), [x])


@torch.no_grad()
def test_masked_equals_realised() -> None:
    _, inputs, supernet = build(OwnTypes, torch.float64, None, {})
    space = supernet.space
    assert {g.members for g in space.groups if space.choice(g.choice).searched} == {("b",)}
    smallest = supernet.with_filters(Architecture(space, {c.name: c.options[0] for c in space.choices}))
    with supernet.evaluate_as(smallest):
        wanted = supernet(*inputs)
    found = dnas.realise(supernet, smallest).eval()(*inputs)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.features[0], wanted.features[0], rtol=1e-10, atol=1e-10)
