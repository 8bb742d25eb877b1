"""Orders of networks are compared with single trainings, so that a training repeated is no better than one that predicts it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from cifar10_rank import RESULT, agreements, trained
from tables import table

from dnas.search import rank
from tests.benchmarks.comparison import same_figures

NOISE = 0.5


def drawn(seed: int, count: int = 41, group: str = "random") -> list[dict[str, Any]]:
    """Architectures with two trainings, noiseless accuracies, a prediction that is as noisy as a training, and none."""
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal(count)
    noisy = [truth + NOISE * generator.standard_normal(count) for _ in range(3)]
    return [
        {
            "group": group, "bops": (0.148, 0.3)[i % 4 == 0], "one_shot": truth[i], "estimated": noisy[2][i],
            "sensitivities": 0.0, "trained": {"0": noisy[0][i], "1": noisy[1][i]} if i else {"0": noisy[0][i]},
        }
        for i in range(count)
    ]  # fmt: skip


def test_repeatability_is_that_of_a_prediction_as_noisy_and_below_that_of_a_perfect_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank, "BOOTSTRAPS", 1)
    taus = [{name: one["tau"] for name, one in agreements(drawn(seed))["twice"].items()} for seed in range(150)]
    perfect, copy, twice = (
        np.array([one[name] for one in taus]) for name in ("one_shot, trained", "estimated, trained", "trained twice")
    )
    # of normal accuracies tau is 2 / pi times the arcsine of the correlation (Greiner)
    assert perfect.mean() == pytest.approx(2 / np.pi * np.arcsin((1 + NOISE**2) ** -0.5), abs=0.02)
    assert twice.mean() == pytest.approx(2 / np.pi * np.arcsin(1 / (1 + NOISE**2)), abs=0.02)
    assert (perfect - twice).mean() > 5 * stats.sem(perfect - twice)
    assert abs((copy - twice).mean()) < 3 * stats.sem(copy - twice)


def test_scopes_hold_their_own_architectures() -> None:
    near = [{**one, "bops": 0.068} for one in drawn(3, 6)]
    found = agreements([*drawn(0, 35), *near, *drawn(1, 20, "uniform"), *drawn(2, 10, "selected")])
    scopes = ("random", "equal", "uniform", "band", "twice")
    assert [found[scope]["bops, trained"]["n"] for scope in scopes] == [41, 6, 20, 15, 67]
    assert [found[scope]["trained twice"]["n"] for scope in scopes] == [39, 5, 19, 15, 67]
    assert found["band"]["bops, trained"]["tau"] == 0.0  # all cost the same
    assert found["random"]["sensitivities, trained"]["tau"] == 0.0
    assert agreements(drawn(0)[:2])["random"]["bops, trained"] is None


def test_intervals_hold_the_tau_of_many_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "BOOTSTRAPS", 100)
    expected, inside = 2 / np.pi * np.arcsin(1 / (1 + NOISE**2)), 0
    for seed in range(60):
        low, high = agreements(drawn(seed))["twice"]["trained twice"]["tau_interval"]
        inside += low <= expected <= high
    assert inside / 60 > 0.85


def test_trainings_of_one_architecture_are_put_together_by_seed() -> None:
    base = {
        "start": "float", "images_retrain": 224_960, "float": "here", "role": "main", "method": "random", "options": {"a": 2},
        "architecture": "W2", "retrain_seed": 1, "validation_accuracy": 71.0,
    }  # fmt: skip
    rows = [
        base, base | {"retrain_seed": 0, "validation_accuracy": 70.0}, base | {"trained_as": "the first"},
        base | {"options": {"a": 3}, "method": "scores"}, base | {"start": "supernet"}, base | {"float": "another"},
        base | {"images_retrain": 269_952, "validation_accuracy": 72.0}, base | {"role": "elsewhere", "retrain_seed": 2},
        base | {"role": "screen", "method": "uniform", "images_retrain": 44_992},
        {"method": "float", "retrain_seed": 0, "images_retrain": 224_960, "float": "here"},
    ]  # fmt: skip
    assert trained(rows, "here") == [
        {"group": group, "architecture": "W2", "options": {"a": bits}, "images": images, "trained": accuracies}
        for group, bits, images, accuracies in (
            ("random", 2, 224_960, {"0": 70.0, "1": 71.0}), ("selected", 3, 224_960, {"1": 71.0}),
            ("random", 2, 269_952, {"1": 72.0}), ("uniform", 2, 44_992, {"1": 71.0}),
        )
    ]  # fmt: skip


def test_the_table_names_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "BOOTSTRAPS", 10)
    found = agreements(drawn(0))
    text = table({"type": "dnas.Rank", "version": 2, "agreement": found, "rows": []})
    assert "random, all costs | of these 6.6 to 6.9 % of BOPs | uniform, all costs, one epoch" in text
    assert f"ceiling | {found['random']['trained twice']['tau']:.2f}, " in text


def test_the_committed_taus_are_those_of_the_committed_rows() -> None:
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    same_figures(agreements(content["rows"]), content["agreement"])
