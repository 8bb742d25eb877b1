"""Width 1: nothing to remove."""

from equivalence import check
from networks import Narrow


def test_masked_equals_realised() -> None:
    check(Narrow)
