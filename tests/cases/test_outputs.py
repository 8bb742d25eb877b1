"""Several outputs, one of them a feature map: what the user sees keeps its width."""

import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 15, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        feature = self.a(x).relu()
        y = self.b(feature).relu()
        boxes = self.c(y).view(-1, 3, 5, 8, 8).permute(0, 1, 3, 4, 2)
        return {"logits": self.head(y), "features": (feature, torch.tanh(boxes))}


def test_masked_equals_realised() -> None:
    supernet = check(Outputs)
    searched = {group.members for group in supernet.space.groups if supernet.space.choice(group.choice).searched}
    assert searched == {("b",)}
