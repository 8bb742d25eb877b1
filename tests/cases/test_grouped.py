"""A grouped convolution: what it reads and writes stays whole."""

from equivalence import check
from networks import Grouped


def test_masked_equals_realised() -> None:
    check(Grouped)
