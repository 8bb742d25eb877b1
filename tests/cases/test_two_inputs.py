"""Two inputs of the network."""

from equivalence import check
from networks import TwoInputs


def test_masked_equals_realised() -> None:
    check(TwoInputs)
