"""The same tensor concatenated with itself: each filter is read twice."""

from equivalence import check
from networks import Twice


def test_masked_equals_realised() -> None:
    check(Twice)
