"""An inverted bottleneck: a depthwise layer's groups shrink with its filters."""

from equivalence import check
from networks import Separable


def test_masked_equals_realised() -> None:
    check(Separable)
