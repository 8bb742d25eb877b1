"""Kernels that may shrink to their middle."""

import pytest
import torch
from equivalence import check_elastic
from networks import Head, conv
from torch import Tensor, nn

import dnas


class Kernels(nn.Module):
    """5x5 with stride, dilated 5x5, depthwise 7x7, one without padding, and a 3x3 that has nothing to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 5, 2, 2)
        self.b = nn.Conv2d(8, 8, 5, padding=4, dilation=2)
        self.c = conv(8, 8, 7, groups=8)
        self.d = nn.Conv2d(8, 8, 5)
        self.e = conv(8, 8, 3)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x).relu()).relu()).relu()
        return self.head(self.e(self.d(torch.nn.functional.pad(x, (2, 2, 2, 2))).relu()).relu())


def test_masked_equals_realised_and_costs_are_those_of_the_smaller_kernels() -> None:
    supernet = check_elastic(Kernels, kernels=(3, 5))
    found = {c.name: c.options for c in supernet.space.choices if c.kind == "kernel"}
    assert found == {"a.kernel": (3, 5), "b.kernel": (3, 5), "c.kernel": (3, 5, 7)}


def test_a_smaller_kernel_without_padding_would_change_the_shape() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"space.kernels is \[3\], but no convolution"):
        dnas.build_space(model.eval(), torch.randn(2, 3, 8, 8), kernels=(3,))


@pytest.mark.parametrize("kernels", [(2,), (0,), (3.5,)])
def test_sides_must_be_odd(kernels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"space.kernels .* odd sides"):
        dnas.build_space(Kernels().eval(), torch.randn(2, 3, 8, 8), kernels=kernels)


def test_single_filters_and_kernels_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"space.granularity"):
        dnas.build_space(Kernels().eval(), torch.randn(2, 3, 8, 8), kernels=(3,), granularity="filter")
