"""Any network: what holds of the awkward cases holds of networks that Hypothesis grows."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from equivalence import examine
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_networks import grow


@settings(
    max_examples=50,
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_any_network(data: st.DataObject) -> None:
    def choose(options: Sequence[Any]) -> Any:
        return options[data.draw(st.integers(0, len(options) - 1))]

    with TemporaryDirectory() as folder:
        examine(grow(choose), 1, Path(folder) if choose([False, False, True]) else None)
