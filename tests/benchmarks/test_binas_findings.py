"""The paper's findings are read off the right effects: gains from the smallest to the largest option, by stage and by block."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from binas_findings import by_stage, claims


def entry(choice: str, kind: str, gain: float, error: float = 0.1) -> dict[str, Any]:
    return {
        "choice": choice, "kind": kind, "options": [1, 2, 3], "effects": [-gain / 3, 0.1, 2 * gain / 3],
        "errors": [error, 9.0, error],
    }  # fmt: skip


def report(shift: float) -> dict[str, Any]:
    return {
        "effects": [
            entry("last.0.filters", "filters", 99.0),
            entry("stages.0.0.depth", "depth", 1.0 + shift),
            entry("stages.1.0.depth", "depth", 3.0 + shift),
            *(
                entry(f"stages.{s}.{b}.expand.0.filters", "filters", 4.0 * (b == 0) + b - 3 * s)
                for s in (0, 1)
                for b in range(3)
            ),
        ]
    }  # fmt: skip


def test_gains_by_stage_and_what_they_say() -> None:
    rows = by_stage([report(0.0), report(0.2)])
    assert [row["stage"] for row in rows] == [0, 1]
    mean, error = rows[0]["depth"]
    assert mean == pytest.approx(1.1)
    assert error == pytest.approx(0.1 * 2**0.5 / 2**0.5)  # of a gain, over the root of two runs
    assert rows[0]["filters, first block"][0] == pytest.approx(4.0)
    assert rows[0]["filters, other blocks"][0] == pytest.approx(1.5)
    assert rows[1]["filters"][0] == pytest.approx((4 + 1 + 2) / 3 - 3)
    assert rows[1]["kernel"] is None
    found = claims(rows)
    assert found["depth pays more in the last stage than in the first"]["holds"] == "yes"
    assert found["width pays more in the last stage than in the first"]["holds"] == "no, the opposite"
    starts = found["width pays more in the first block of a stage than in the others"]
    assert starts["difference"] == pytest.approx(2.5)
    assert starts["holds"] == "yes"
    unsure = report(0.0)
    for effect in unsure["effects"]:
        effect["errors"] = [5.0, 5.0, 5.0]
    assert {claim["holds"] for claim in claims(by_stage([unsure])).values()} == {"open"}
