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


@pytest.mark.parametrize("filters", [(0.5, 1.0), (0.25, 0.5, 0.75, 1.0)])
def test_groups_that_have_to_be_alike_are_found_with_any_number_of_options(filters: tuple[float, ...]) -> None:
    """A reshape takes for granted that one layer makes as many channels as another: one may not shrink alone."""

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            y = torch.relu(self.mix(x.flatten(2).transpose(1, 2)))
            found: Tensor = self.head(y.reshape(len(x), -1, x.shape[1]).mean(1))
            return found

    torch.manual_seed(0)
    space = build_space(Alike(), torch.randn(4, 3, 8, 8), (4, 8), (4, 8), filters)
    assert [c.name for c in space.searched() if c.kind == "filters"] == []
