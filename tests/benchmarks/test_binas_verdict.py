"""What the benchmark of BINAS says of its rows: pairs by seed, corrected over budgets, and a panel per kind of budget."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from binas_verdict import BUDGETS, LATENCY, RESULT, VERDICT, panels, verdict
from pareto_verdict import picture
from tables import table

ACCURACY = {"binas": (75.0, 75.5, 76.1), "uniform": (73.0, 74.0, 74.2), "random": (70.0, 72.0, 69.0)}


def rows() -> list[dict[str, Any]]:
    """Three seeds of every method; later budgets have ever smaller gains, a candidate does not count."""
    found: list[dict[str, Any]] = [{"method": "float", "role": "main", "budget_id": None, "accuracy": 83.0}]
    for number, (budget_id, budgets) in enumerate(BUDGETS.items()):
        for method, values in ACCURACY.items():
            for seed, value in enumerate(values):
                found.append({
                    "method": method, "role": "main", "budget_id": budget_id, "budgets": budgets, "retrain_seed": seed,
                    "costs": {name: 0.99 * limit for name, limit in budgets.items()},
                    "accuracy": value - 0.4 * number * (method == "binas"), "validation_accuracy": value + 1,
                    "start": "supernet" if method == "random" else "float",
                    "architecture": "W3 A3 filters x1", "images_search": 2, "images_retrain": 1,
                })  # fmt: skip
        found.append({**found[-1], "method": "uniform", "role": "candidate", "accuracy": 99.0, "architecture": "other"})
    return found


def test_differences_are_paired_and_corrected_over_budgets() -> None:
    found = verdict(rows())
    for number, budget_id in enumerate(BUDGETS):
        pairs = [b - 0.4 * number - u for b, u in zip(ACCURACY["binas"], ACCURACY["uniform"], strict=True)]
        own = found["budgets"][budget_id]["binas - uniform"]
        assert own["mean"] == pytest.approx(sum(pairs) / 3)
        assert own["p"] == pytest.approx(stats.ttest_1samp(pairs, 0).pvalue)
    ps = [found["budgets"][name]["binas - uniform"]["p"] for name in BUDGETS]
    corrected = [found["budgets"][name]["binas - uniform"]["p_holm"] for name in BUDGETS]
    assert ps == sorted(ps)
    assert corrected == pytest.approx([max((4 - j) * ps[j] for j in range(i + 1)) for i in range(4)])


def test_the_table_shows_every_bound_and_what_of_it_is_spent() -> None:
    text = table(json.loads(json.dumps(verdict(rows()))))
    lines = [line for line in text.splitlines() if line.startswith("| BOPs")]
    assert [line.split("|")[1].strip() for line in lines] == [
        "BOPs 5%", "BOPs 12%", "BOPs 5%, latency 20%", "BOPs 12%, latency 30%",
    ]  # fmt: skip
    assert lines[0].count("99.0%") == 1
    assert lines[2].count("99.0%") == 2
    assert "W3 A3 filters x1" in lines[0]
    assert "other" not in text
    assert (
        "The better start: dnas from float weights, uniform from float weights, random from supernet weights." in text
    )
    assert "trained on" not in text


def test_a_uniform_network_that_was_trained_longer_is_shown_beside() -> None:
    longer = [
        {**row, "method": "uniform_longer", "accuracy": row["accuracy"] + 0.5, "images_retrain": 13}
        for row in rows()
        if (row["method"], row["budget_id"], row["role"]) == ("uniform", "5%", "main")
    ]
    text = table(json.loads(json.dumps(verdict([*rows(), *longer]))))
    assert (
        "The best uniform network at BOPs 5%, trained on 13 images: 74.23 ± 0.64 (3); dnas minus it, paired: +1.30"
        in text
    )


def test_budgets_with_and_without_latency_have_panels_of_their_own(tmp_path: Path) -> None:
    found = panels(verdict(rows()))
    assert [panel.budgets for panel in found] == [(0.05, 0.12), (0.05, 0.12)]
    assert {point.method for point in found[1].points} == {"BINAS", "uniform", "random"}
    picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    alone = panels(verdict([row for row in rows() if row["budget_id"] in (None, "12%")]))
    assert [(panel.budgets, panel.connect) for panel in alone] == [((0.12,), False)]


def test_how_good_the_table_of_latencies_is_stands_below() -> None:
    checked = {
        "n": 20,
        "median_error": 0.044,
        "noise": 0.039,
        "tau": 0.88,
        "tau_interval": [0.75, 0.98],
        "predicted": [],
    }
    found = verdict(rows(), {"checked": checked})
    assert "Of 20 whole networks they miss 4.4% at the median (networks timed twice differ by 3.9%)" in table(found)
    assert "Latencies" not in table(verdict(rows()))


def test_the_committed_verdict_is_that_of_the_committed_rows() -> None:
    read = [json.loads(file.read_text(encoding="utf-8")) for file in (RESULT, LATENCY, VERDICT)]
    found = json.loads(json.dumps(verdict(read[0], read[1])))
    assert table(found) == table(read[2])
    assert found["budgets"].keys() == read[2]["budgets"].keys()
