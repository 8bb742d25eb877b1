"""A head that runs in training mode only: what it reads keeps its filters, so that training the small network works."""

from pathlib import Path

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


class Unused(Auxiliary):
    """Its helper runs always, and is returned in training."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        helped = self.helper(x).mean((2, 3))
        y = self.head(self.b(x).relu())
        return (y, helped) if self.training else y


def test_a_head_that_no_output_depends_on_is_no_layer(tmp_path: Path) -> None:
    """An exported file does not have it."""
    supernet = check(Unused)
    space = supernet.space
    assert "helper" not in [layer.name for layer in space.layers]
    assert "no output depends on it" in {fixed.name: fixed.reason for fixed in space.fixed}["helper"]
    smallest = Architecture(space, {choice.name: choice.options[0] for choice in space.choices})
    realised, x = dnas.realise(supernet, smallest).eval(), torch.randn(4, 3, 8, 8)
    dnas.export(realised, x[:2], tmp_path / "net.onnx", format="qcdq")
    dnas.verify(realised, x[:2], x, {"qcdq": tmp_path / "net.onnx"})
    assert len(realised.train()(x)) == 2
