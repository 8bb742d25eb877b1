"""What several tables show alike: their head, an interval, a mean, a rank correlation, a standard deviation."""

from collections.abc import Sequence
from typing import Any


def head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]


def interval(pair: dict[str, Any] | None) -> str:
    """A paired difference and its interval, where there is one, and how many of its pairs are one training."""
    if not pair:
        return ""
    same = pair.get("same", 0)
    if same and same == pair["n"]:
        return "the same trainings"
    shown = f"{pair['mean']:+.2f}" + (f", {pair['low']:+.2f} to {pair['high']:+.2f}" if pair["low"] is not None else "")
    return shown + (f" ({same} of {pair['n']} the same training)" if same else "")


def mean(found: dict[str, Any] | None) -> str:
    """Mean, standard deviation and number of networks."""
    if not found:
        return ""
    return f"{found['mean']:.2f}" + (f" ± {found['sd']:.2f}" if found["sd"] is not None else "") + f" ({found['n']})"


def tau(found: dict[str, Any]) -> str:
    """A rank correlation and its interval."""
    low, high = found["tau_interval"]
    return f"{found['tau']:.2f}, {low:.2f} to {high:.2f}"


def deviation(found: dict[str, Any]) -> str:
    """A standard deviation and its interval, where there is one."""
    if found["interval"] is None:
        return f"{found['sd']:.2f} (no interval)"
    low, high = found["interval"]
    return f"{found['sd']:.2f}, {low:.2f} to {high:.2f}"
