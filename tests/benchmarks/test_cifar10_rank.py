"""Orders of networks are compared with single trainings, so that a training repeated is no better than one that predicts it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import cifar10_rank
from cifar10_rank import agreement, agreements
from tables import table

NOISE = 0.5


def drawn(seed: int, count: int = 40) -> dict[str, Any]:
    """Noiseless accuracies, two trainings, and a prediction that is as noisy as a training."""
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal(count)
    noisy = [truth + NOISE * generator.standard_normal(count) for _ in range(3)]
    return {"truth": truth, "trained": noisy[:2], "copy": noisy[2]}


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "band": "band" if i % 2 else "all", "bops": float(i), "one_shot": found["truth"][i], "estimated": found["copy"][i],
            "trained": [one[i] for one in found["trained"]],
        }
        for i in range(len(found["truth"]))
    ]  # fmt: skip


def test_repeatability_is_that_of_a_prediction_as_noisy_and_below_that_of_a_perfect_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cifar10_rank, "BOOTSTRAPS", 1)
    taus = [{name: one["tau"] for name, one in agreements(rows(drawn(seed)))["all"].items()} for seed in range(150)]
    perfect, copy, twice = (
        np.array([one[name] for one in taus]) for name in ("one-shot, trained", "estimated, trained", "trained twice")
    )
    # of normal accuracies tau is 2 / pi times the arcsine of the correlation (Greiner)
    assert perfect.mean() == pytest.approx(2 / np.pi * np.arcsin((1 + NOISE**2) ** -0.5), abs=0.02)
    assert twice.mean() == pytest.approx(2 / np.pi * np.arcsin(1 / (1 + NOISE**2)), abs=0.02)
    assert (perfect - twice).mean() > 5 * stats.sem(perfect - twice)
    assert abs((copy - twice).mean()) < 3 * stats.sem(copy - twice)


def test_taus_of_single_trainings_are_averaged_in_one_bootstrap() -> None:
    found = drawn(0)
    result = agreement(found["copy"], found["trained"])
    taus = [stats.kendalltau(found["copy"], one).statistic for one in found["trained"]]
    assert result["tau"] == pytest.approx(np.mean(taus))
    assert result["tau_interval"][0] < result["tau"] < result["tau_interval"][1]
    assert agreement(found["copy"], found["trained"][:1] * 2) == agreement(found["copy"], found["trained"][:1])
    assert agreement(np.ones(5), [np.arange(5.0)])["tau"] == 0.0


def test_intervals_hold_the_tau_of_many_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10_rank, "BOOTSTRAPS", 100)
    expected, inside = 2 / np.pi * np.arcsin(1 / (1 + NOISE**2)), 0
    for seed in range(60):
        found = drawn(seed)
        low, high = agreement(found["copy"], found["trained"])["tau_interval"]
        inside += low <= expected <= high
    assert inside / 60 > 0.85


def test_the_table_names_the_repeatability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10_rank, "BOOTSTRAPS", 10)
    found = agreements(rows(drawn(0)))
    text = table({"type": "dnas.Rank", "version": 1, "agreement": found, "rows": []})
    assert "all costs (n = 20) | one band of cost (n = 20)" in text
    assert f"repeatability | {found['all']['trained twice']['tau']:.2f}, " in text
