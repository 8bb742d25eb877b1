"""A plain chain of convolutions with batch norms."""

from equivalence import check
from networks import Chain


def test_masked_equals_realised() -> None:
    check(Chain)
