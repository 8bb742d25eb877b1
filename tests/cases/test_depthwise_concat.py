"""A depthwise layer on a concatenation: each of its channels counts once, whichever group it is of."""

import torch
from equivalence import check, counted_operations
from networks import Head, conv, example
from torch import Tensor, nn

from dnas.space.architecture import Architecture


class DepthwiseConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.depth, self.c = conv(3, 8), conv(3, 4), conv(12, 12, groups=12), conv(12, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1).relu()
        return self.head(self.c(self.depth(x).relu()).relu())


def test_masked_equals_realised_and_macs_are_those_that_torch_counts() -> None:
    supernet = check(DepthwiseConcat)
    space, model = supernet.space, DepthwiseConcat().eval()
    full = {choice.name: choice.options[-1] for choice in space.choices}
    layer = space.layer("depth")
    assert layer.full_macs == 12 * 9 * 64
    for a in space.choice("a.filters").options:
        for b in space.choice("b.filters").options:
            architecture = Architecture(space, {**full, "a.filters": a, "b.filters": b})
            kept = supernet.with_filters(architecture)
            counted = counted_operations(model, space, kept, example(model))
            assert architecture.cost("macs") * 2 * 4 == counted
