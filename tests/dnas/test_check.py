"""The comparison of masked with pruned finds what a wrong coupling would let through."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Head, conv
from torch import Tensor, nn

from dnas.space.build import build_space
from dnas.space.check import failing_groups


class Between(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.operation, self.head = conv(3, 8), conv(8, 8), operation, Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.operation(self.a(x).relu())).relu())


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over channels": lambda x: x.softmax(1),
    "a small mean over channels": lambda x: x + 0.02 * x.mean(1, keepdim=True),
    "norm over channels": lambda x: F.normalize(x, dim=1),
    "maximum over channels": lambda x: x + x.amax(1, keepdim=True),
    "layer norm as a function": lambda x: F.layer_norm(x, x.shape[1:]),
    "sorted channels": lambda x: x.sort(1)[0],
    "hard-coded size": lambda x: x.view(-1, 8, 8, 8),
}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_over_channels_fail(name: str) -> None:
    inputs = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    plain = build_space(Between(torch.tanh), inputs)  # its coupling says that a's channels can go
    options = [plain.choice(group.choice).options for group in plain.groups]
    assert not failing_groups(Between(torch.tanh), inputs, plain.groups, options, plain.layers, plain.through)
    failing = failing_groups(Between(OPERATIONS[name]), inputs, plain.groups, options, plain.layers, plain.through)
    assert {plain.groups[index].members for index in failing} == {("a",)}
    assert build_space(Between(OPERATIONS[name]), inputs).choice("a.filters").options == (8,)


def test_a_branch_that_starts_at_zero_hides_nothing() -> None:
    inputs = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    plain, mixing = Between(torch.tanh), Between(lambda x: x + x.mean(1, keepdim=True))
    for model in (plain, mixing):
        nn.init.zeros_(model.a.weight)
        nn.init.zeros_(model.a.bias)
    space = build_space(plain, inputs)
    options = [space.choice(group.choice).options for group in space.groups]
    failing = failing_groups(mixing, inputs, space.groups, options, space.layers, space.through)
    assert {space.groups[index].members for index in failing} == {("a",)}
