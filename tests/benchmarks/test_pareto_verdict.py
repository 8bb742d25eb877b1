"""The statistics of the Pareto benchmark against closed forms, other libraries and simulation."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from pareto_verdict import components, difference, holm, one_search, picture, verdict


def row(method: str, seed: int, accuracy: float, role: str = "main", **others: Any) -> dict[str, Any]:
    return {
        "model": "resnet8", "method": method, "role": role, "budget_id": "w2a2", "budgets": {"bops": 0.07},
        "costs": {"bops": 0.069}, "search_seed": seed, "retrain_seed": seed, "accuracy": accuracy, "architecture": "W2 A2",
        "images_search": 1, "images_retrain": 2, **others,
    }  # fmt: skip


ROWS = [
    {**row("float", 0, 80.0), "budget_id": None},
    *(row("ours", seed, accuracy) for seed, accuracy in enumerate((77.0, 76.5, 77.5))),
    *(row("uniform", seed, accuracy) for seed, accuracy in enumerate((76.0, 76.0, 75.9))),
    *(row("uniform", seed, 79.9, "candidate") for seed in range(3)),
    *(row("random", seed, 60.0 + seed + i) for seed in range(3) for i in range(3)),
]


def test_differences_are_paired_by_seed_and_candidates_do_not_count() -> None:
    found = difference(ROWS, "uniform", "w2a2")
    assert found is not None
    ours, theirs = np.array([77.0, 76.5, 77.5]), np.array([76.0, 76.0, 75.9])
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found["mean"] == pytest.approx((ours - theirs).mean())
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["p"] == pytest.approx(expected.pvalue)


def test_several_networks_of_a_seed_count_by_their_mean() -> None:
    found = difference(ROWS, "random", "w2a2")
    assert found is not None
    assert found["values"] == pytest.approx([77.0 - 61.0, 76.5 - 62.0, 77.5 - 63.0])


def test_one_seed_has_no_interval() -> None:
    assert difference([r for r in ROWS if r["retrain_seed"] == 0], "uniform", "w2a2") is None


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_components_are_those_that_data_were_drawn_from() -> None:
    generator = np.random.default_rng(0)
    search, retraining, inside = [], [], 0
    for _ in range(400):
        groups = 77 + 0.6 * generator.standard_normal((5, 1)) + 0.3 * generator.standard_normal((5, 3))
        found = components(groups.tolist())
        search.append(max(found["search"]["sd"], 0) ** 2)
        retraining.append(found["retraining"]["sd"] ** 2)
        low, high = found["search"]["interval"]
        inside += low <= 0.6 <= high
        assert found["p"] == pytest.approx(stats.f_oneway(*groups).pvalue)
    assert np.mean(retraining) == pytest.approx(0.09, rel=0.05)
    assert np.mean(search) == pytest.approx(0.36, rel=0.1)
    assert inside / 400 == pytest.approx(0.95, abs=0.04)


def test_the_verdict_is_json_and_a_picture(tmp_path: Path) -> None:
    found = verdict(
        [*ROWS, row("ours", 0, 76.0, "variance", retrain_seed=5), row("ours", 1, 76.2, "variance", retrain_seed=5)]
    )
    text = json.loads(json.dumps(found))["budgets"]["w2a2"]
    assert text["methods"]["ours"]["n"] == 3
    assert text["methods"]["random"] == {**text["methods"]["random"], "n": 9, "seeds": 3, "mean": 62.0}
    assert text["variance"] is None  # the third search was retrained once
    picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_one_search_is_compared_with_searches_of_their_own_from_one_side() -> None:
    shared = [row("ours", seed, accuracy, "frontier") for seed, accuracy in enumerate((76.8, 76.4, 77.1))]
    found = one_search([*ROWS, *shared], "w2a2")
    assert found is not None
    expected = stats.ttest_rel([76.8, 76.4, 77.1], [77.0 - 0.7, 76.5 - 0.7, 77.5 - 0.7], alternative="greater")
    assert found["mean"] == pytest.approx(-7 / 30)
    assert found["not_worse"] == (expected.pvalue < 0.05)
    assert one_search(ROWS, "w2a2") is None
