"""Branches of different width that one normalisation and one layer read together."""

from equivalence import check
from networks import Concat


def test_masked_equals_realised() -> None:
    check(Concat)
