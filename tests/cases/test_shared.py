"""A layer that runs twice, and a layer that stands under two names."""

from equivalence import check
from networks import Shared


def test_masked_equals_realised() -> None:
    check(Shared)
