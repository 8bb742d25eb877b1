"""Layers in a plain list: registered by name, run from the list."""

import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn

import dnas


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [conv(3, 8), conv(8, 8)]
        for number, layer in enumerate(self.layers):
            self.add_module(f"layer{number}", layer)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        found: Tensor = self.head(x)
        return found


def test_masked_equals_realised() -> None:
    check(Listed)


def test_bits_reach_the_layers(generator: torch.Generator) -> None:
    model, x = Listed().eval(), torch.randn(2, 3, 8, 8, generator=generator)
    space = dnas.build_space(model, x)
    supernet = dnas.Supernet(model, space).eval()
    outputs = []
    with torch.no_grad():
        for dearest in (False, True):
            with supernet.evaluate_as(dnas.Architecture.at(space, space.extreme(dearest))):
                outputs.append(supernet(x))
    assert not torch.allclose(outputs[0], outputs[1])
