"""A linear layer after a flatten: nine inputs per filter."""

from equivalence import check
from networks import Flat


def test_masked_equals_realised() -> None:
    check(Flat)
