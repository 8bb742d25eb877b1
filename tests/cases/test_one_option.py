"""A space with a single filter count below the full width: nothing to choose, but filters to remove."""

from equivalence import check
from networks import Residual


def test_masked_equals_realised() -> None:
    supernet = check(Residual, filters=(0.5,), weight_bits=(2, 8))
    realised = supernet.space.choice("a.filters").options
    assert realised == (4,)
