"""A transformer block: layer norms and attention stay whole, the perceptron shrinks."""

from equivalence import check
from networks import Attention


def test_masked_equals_realised() -> None:
    check(Attention)
