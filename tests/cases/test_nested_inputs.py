"""Inputs in a dictionary: the batch is that of the tensors inside, and costs are per example."""

import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class NestedInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), nn.Linear(6, 8), conv(8, 8), Head(8)

    def forward(self, given: dict[str, Tensor | tuple[Tensor]]) -> Tensor:
        (vector,) = given["more"]
        x = (self.a(given["image"]) + self.b(vector)[:, :, None, None]).relu()
        return self.head(self.c(x).relu())


def test_masked_equals_realised_and_costs_are_per_example() -> None:
    generator = torch.Generator().manual_seed(1)
    image, vector = (torch.randn(shape, generator=generator) for shape in ((4, 3, 8, 8), (4, 6)))
    supernet = check(NestedInputs, ({"image": image, "more": (vector,)},))
    macs = {layer.name: layer.full_macs for layer in supernet.space.layers}
    assert macs == {"a": 27 * 8 * 64, "b": 6 * 8, "c": 72 * 8 * 64, "head.fc": 8 * 5}
