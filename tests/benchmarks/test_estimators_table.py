"""The table of estimators: cosines without the noise of the draws, and none where there is little else."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from tables_estimators import cosines

DRAWS, SIZE = 200, 40


def measured(noise: float, recorded: bool, seed: int) -> tuple[dict[str, float], float]:
    """What `estimators.measured` keeps of noisy draws around a mean, and the cosine of that mean."""
    generator = np.random.default_rng(seed)
    exact = generator.standard_normal(SIZE)
    exact /= np.linalg.norm(exact)
    true = 0.9 * exact + 0.05 * generator.standard_normal(SIZE)
    mean = true + noise / (DRAWS * SIZE) ** 0.5 * generator.standard_normal(SIZE)
    size = float(np.linalg.norm(mean))
    found = {
        "bias": float(np.linalg.norm(mean - exact)), "cosine": float(mean @ exact) / size, "bias_noise": noise / DRAWS**0.5,
    }  # fmt: skip
    return found | ({"norm": size} if recorded else {}), float(true @ exact / np.linalg.norm(true))


@pytest.mark.parametrize("recorded", [True, False])
def test_cosines_are_those_of_the_mean_without_noise(recorded: bool) -> None:
    errors, raw = [], []
    for seed in range(300):
        found, expected = measured(2.0, recorded, seed)
        errors.append(np.mean(cosines(found)) - expected)
        raw.append(found["cosine"] - expected)
    assert np.mean(raw) < -0.008
    assert abs(np.mean(errors)) < 0.002


@pytest.mark.parametrize("recorded", [True, False])
def test_no_cosine_is_told_from_noise(recorded: bool) -> None:
    assert cosines(measured(29.0, recorded, 0)[0]) == []
