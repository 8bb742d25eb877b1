"""A functional convolution with a raw parameter: what it reads stays whole."""

from equivalence import check
from networks import Functional


def test_masked_equals_realised() -> None:
    check(Functional)
