"""Identity and convolutional shortcuts."""

from equivalence import check
from networks import Residual


def test_masked_equals_realised() -> None:
    check(Residual)
