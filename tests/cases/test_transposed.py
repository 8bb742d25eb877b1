"""Transposed convolutions: filters are the weight's second dimension, also depthwise."""

from equivalence import check
from networks import Transposed


def test_masked_equals_realised() -> None:
    check(Transposed)
