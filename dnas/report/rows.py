"""Reading the rows of a report: which row stands for a method, and how numbers are written."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dnas.pictures import percent
from dnas.report.page import NONE
from dnas.report.plots import cost_label, short

Row = Mapping[str, Any]
BASELINES = ("uniform", "random")


def rows_of(rows: Iterable[Row], method: str) -> list[Row]:
    """The rows of a method that have a test accuracy."""
    return [row for row in rows if row.get("method") == method and row.get("accuracy") is not None]


def best_row(rows: Sequence[Row]) -> Row | None:
    """The row a user would have picked without the test set: within the budget, then by validation accuracy.

    Where validation accuracies are missing the dearest row within the budget is taken; where no row is within the
    budget, the same among all.
    """
    allowed = [row for row in rows if row.get("within_budget", True)] or list(rows)
    if not allowed:
        return None
    if all(row.get("validation_accuracy") is not None for row in allowed):
        return max(allowed, key=lambda row: float(row["validation_accuracy"]))
    return max(allowed, key=lambda row: sum(float(value) for value in (row.get("relative") or {}).values()))


def stand_in(rows: Iterable[Row], method: str) -> dict[str, Any] | None:
    """One row for a method: the mean over all draws of `random`, else `best_row`; `draws` counts what went in.

    A mean over draws keeps `accuracy_sd` only if there is one draw.
    """
    found = rows_of(rows, method)
    if method != "random" or len(found) < 2:
        best = best_row(found)
        return None if best is None else {**best, "draws": 1}
    result: dict[str, Any] = {
        "method": method,
        "architecture": f"mean of {len(found)} draws",
        "draws": len(found),
        "within_budget": all(row.get("within_budget", True) for row in found),
        "seeds": found[0].get("seeds"),
    }
    for key in ("accuracy", "validation_accuracy", "weight_bytes", "search_cost", "seconds"):
        result[key] = mean_or_none([row.get(key) for row in found])
    for key in ("costs", "relative"):
        result[key] = mean_each([row.get(key) or {} for row in found])
    return result


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean, or None if a value is missing."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None


def mean_each(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every number that all mappings have."""
    names = [name for name in (values[0] if values else {}) if all(v.get(name) is not None for v in values)]
    return {name: sum(float(v[name]) for v in values) / len(values) for name in names}


def accuracy_text(row: Row, unit: str = "") -> str:
    """97.10, or 97.10 ± 0.30 (n = 3)."""
    if row.get("accuracy") is None:
        return NONE
    text, n = f"{float(row['accuracy']):.2f}{unit}", int(row.get("n") or row.get("seeds") or 1)
    if row.get("accuracy_sd") is not None:
        text += f" ± {float(row['accuracy_sd']):.2f}"
    return f"{text} (n = {n})" if n > 1 or row.get("accuracy_sd") is not None else text


def cost_text(row: Row, name: str) -> str:
    """40.0 M (5.0 %), or a dash."""
    cost, share = (row.get("costs") or {}).get(name), (row.get("relative") or {}).get(name)
    if cost is None:
        return NONE if share is None else percent(share)
    return short(float(cost)) + ("" if share is None else f" ({percent(float(share))})")


def budgets_text(budgets: Mapping[str, float]) -> str:
    """BOPs ≤ 5 %, and so on; values up to 1 are shares."""
    return ", ".join(f"{cost_label(name)} ≤ {budget_text(value)}" for name, value in budgets.items()) or "no budget"


def budget_text(value: float) -> str:
    """5 %, or an absolute bound."""
    return f"{100 * value:.4g} %" if value <= 1 else short(value)


def bytes_text(value: float | None) -> str:
    """12 345 B."""
    return NONE if value is None else f"{round(value):,} B".replace(",", "\u202f")


def runs_text(value: float | None) -> str:
    """The time of a search in runs of quantisation-aware training."""
    return NONE if value is None else f"{value:.2f}"


def seconds_text(value: float | None) -> str:
    """12.3 s, 4 min 10 s, 2 h 5 min."""
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
