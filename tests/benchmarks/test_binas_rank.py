"""The ranks of BINAS' estimator: which networks are compared, how noisy a training is, and what that leaves to reach."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from binas_rank import RANK, agreements, ceiling, networks, scoped, shortened, spread
from binas_verdict import RESULT
from tables import table

from tests.benchmarks.comparison import same_figures


def row(**given: Any) -> dict[str, Any]:
    """Of a result file."""
    return {
        "method": "uniform", "start": "float", "search_seed": None, "retrain_seed": 0, "images_retrain": 60,
        "options": {"a": 1}, "validation_accuracy": 70.0, "supernet": None, **given,
    }  # fmt: skip


def test_trainings_of_a_network_are_put_together_and_longer_ones_left_out() -> None:
    rows = [
        {"method": "float", "retrain_seed": 0, "validation_accuracy": 83.0},
        row(),
        row(retrain_seed=1, validation_accuracy=71.0),
        row(options={"a": 2}, method="binas", search_seed=3, retrain_seed=3),
        row(options={"a": 2}, method="recentred_once", search_seed=4, retrain_seed=4, validation_accuracy=72.0),
        row(images_retrain=160, method="uniform_longer", validation_accuracy=75.0),
        row(start="supernet", supernet="one", images_retrain=40, validation_accuracy=69.0),
        row(start="supernet", supernet="other", images_retrain=40, validation_accuracy=68.0),
    ]
    found = networks(rows)
    assert [(one["start"], one["trained"], one["selected"]) for one in found] == [
        ("float", {"0": 70.0, "1": 71.0}, []),
        ("supernet", {"0": 69.0}, []),
        ("supernet", {"0": 68.0}, []),
        ("float", {"3": 70.0, "4": 72.0}, [3, 4]),
    ]
    assert spread(found) == pytest.approx(np.sqrt((np.var([70, 71], ddof=1) + np.var([70, 72], ddof=1)) / 2))


def test_what_a_run_selected_is_left_out_of_its_own_ranks() -> None:
    found = networks([
        row(options={"a": number}, method="binas", search_seed=number, retrain_seed=number) for number in range(3)
    ])  # fmt: skip
    said = [{"estimated": 0.5, "one_shot": 0.5, "bops": share} for share in (0.04, 0.06, 0.05)]
    names = {scope: [one["bops"] for _, one in pairs] for scope, pairs in scoped(found, said, 0).items()}
    assert names == {"float": [0.06, 0.05], "float, smallest": [0.05]}
    assert [len(scoped(found, said, seed)["float"]) for seed in (0, 3)] == [2, 3]


@pytest.mark.parametrize(("gap", "deviation"), [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)])
def test_the_ceiling_of_two_networks_is_that_of_two_noisy_differences(gap: float, deviation: float) -> None:
    agreed = (
        1.0 if deviation == 0 else 2 * stats.norm.cdf(gap / (deviation * np.sqrt(2))) - 1
    )  # of one training with truth
    assert ceiling([70.0, 70.0 + gap], deviation) == pytest.approx(agreed**2, abs=0.1)  # 1,000 draws of +1 or -1


def test_a_prediction_that_is_right_has_tau_one() -> None:
    generator = np.random.default_rng(0)
    trained = networks([
        row(options={"a": number}, validation_accuracy=float(value)) for number, value in enumerate(generator.random(20))
    ])  # fmt: skip
    values = [one["trained"]["0"] for one in trained]
    said = [{"estimated": value, "one_shot": -value, "bops": 0.1} for value in values]
    found = agreements(trained, said, 0, 0.0)["float"]
    assert (found["estimated"]["tau"], found["one_shot"]["tau"], found["bops"]["tau"]) == (1.0, -1.0, 0.0)


def test_committed_ranks_are_those_of_the_committed_networks() -> None:
    content = json.loads(RANK.read_text(encoding="utf-8"))
    assert content["networks"] == shortened(networks(json.loads(RESULT.read_text(encoding="utf-8"))))
    assert content["spread"] == pytest.approx(spread(content["networks"]))
    for one in content["runs"]:
        found = agreements(content["networks"], one["networks"], one["seed"], content["spread"])
        same_figures(found, one["agreement"])
        assert f"{found['float']['estimated']['tau']:.2f}, " in table(content)
