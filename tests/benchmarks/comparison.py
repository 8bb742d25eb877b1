"""Committed figures against the same ones computed here: processors differ in the last digits of floats."""

import json
from typing import Any

import pytest


def same_figures(computed: Any, committed: Any) -> None:
    """Asserts that what was computed, as JSON holds it, is what was committed; floats to six digits."""
    _same(json.loads(json.dumps(computed)), committed)


def _same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _same(a, b)
    else:
        assert one == (pytest.approx(other, rel=1e-6, abs=1e-9) if isinstance(other, float) else other)
