"""Promised and measured latencies: which networks are timed, and what the result file sums up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from binas_latency import TIMED, networks, summary
from binas_verdict import RESULT
from tables import table

from tests.benchmarks.comparison import same_figures


def row(**given: Any) -> dict[str, Any]:
    """Of a result file."""
    return {"method": "uniform", "role": "main", "budget_id": "5%", "options": {"a": 1}, "retrain_seed": 0, **given}


def test_networks_that_count_are_timed_once_for_each_budget() -> None:
    rows = [
        row(),
        row(retrain_seed=1),
        row(budget_id="12%"),
        row(role="candidate", options={"a": 2}),
        row(method="recentred_once", options={"a": 3}),
        row(method="float", budget_id=None, options=None),
        row(method="binas", options={"a": 4}),
    ]
    found = [(one["method"], one["budget_id"], one["options"]) for one in networks(rows)]
    assert found == [("uniform", "5%", {"a": 1}), ("uniform", "12%", {"a": 1}), ("binas", "5%", {"a": 4})]


def test_errors_are_shares_of_what_was_measured() -> None:
    found = summary([
        {"method": "binas", "budget_id": "5%", "promised": 0.2, "measured": [0.24, 0.26]},
        {"method": "binas", "budget_id": "5%", "promised": 0.3, "measured": [0.38, 0.42]},
        {"method": "random", "budget_id": "12%", "promised": 0.5, "measured": [0.5, 0.5]},
    ])  # fmt: skip
    assert (found["median_error"], found["noise"]) == pytest.approx((0.2, 0.08))
    assert found["budgets"]["5%"]["binas"] == pytest.approx({"n": 2, "promised": 0.25, "measured": 0.325, "most": 0.4})
    assert set(found["budgets"]["12%"]) == {"random"}
    assert found["ranks"]["tau"] == pytest.approx(1)


def test_committed_latencies_are_of_the_committed_networks() -> None:
    content = json.loads(TIMED.read_text(encoding="utf-8"))
    wanted = networks(json.loads(RESULT.read_text(encoding="utf-8")))
    assert [(one["method"], one["budget_id"]) for one in content["networks"]] == [
        (one["method"], one["budget_id"]) for one in wanted
    ]
    found = summary(content["networks"])
    same_figures(found, {name: content[name] for name in found})
    assert f"{content['n']} networks" in table(content)
