"""Gates of focal modulation: slices that are broadcast, level by level."""

import torch
from equivalence import check
from networks import Head, conv
from torch import Tensor, nn


class Gates(nn.Module):
    """Focal modulation: one layer makes a query, features and a gate per level; every gate is a slice, broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.make = conv(3, 6), nn.Linear(6, 6 + 6 + 3)
        self.levels = nn.ModuleList([conv(6, 6, groups=6) for _ in range(2)])
        self.context, self.head = conv(6, 6, 1), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        made = self.make(self.stem(x).relu().permute(0, 2, 3, 1))
        query, features, gates = torch.split(made.permute(0, 3, 1, 2), (6, 6, 3), 1)
        total = torch.zeros_like(features)
        for i, level in enumerate(self.levels):
            features = level(features).relu()
            total = total + features * gates[:, i : i + 1]
        total = total + features.mean((2, 3), keepdim=True) * gates[:, 2:]
        return self.head(query * self.context(total))


def test_gates_end() -> None:
    space = check(Gates).space
    reasons = {fixed.name: fixed.reason for fixed in space.fixed}
    assert "takes channels by their position" in reasons["make.filters"]
    assert {group.members for group in space.groups if space.choice(group.choice).searched} == {("stem",)}
    assert {layer.name for layer in space.layers} == {"stem", "make", "levels.0", "levels.1", "context", "head.fc"}
