"""Shrunk scores: nearer to the truth where they are noisy, the measurement itself where they are not."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dnas.search.scores import Scores
from dnas.search.shrinkage import common_curve, posterior, shrunk
from dnas.space.build import build_space
from dnas.space.choice import Space

CURVE = 4.0 ** -np.arange(5)


def truth(generator: np.random.Generator, rows: int = 10, own: float = 0.0) -> NDArray[np.float64]:
    amounts = generator.lognormal(0.0, 1.0, (rows, 1))
    return -amounts * CURVE + own * generator.standard_normal((rows, len(CURVE)))


def distance(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Root mean square of what a selector sees: differences within a row."""
    apart = found - wanted
    return float(np.sqrt(np.mean((apart - apart.mean(1, keepdims=True)) ** 2)))


@pytest.mark.parametrize(("noise", "own", "least"), [(0.1, 0.0, 1.6), (0.1, 0.05, 1.2), (0.3, 0.05, 1.6)])
def test_noisy_scores_get_nearer_to_the_truth(noise: float, own: float, least: float) -> None:
    """Ratio of the errors without and with, over 30 draws."""
    generator = np.random.default_rng(0)
    before, after = [], []
    for _ in range(30):
        wanted = truth(generator, own=own)
        seen = wanted + noise * generator.standard_normal(wanted.shape)
        before.append(distance(seen, wanted))
        after.append(distance(posterior(seen, np.full(seen.shape, noise**2)), wanted))
    assert np.mean(before) / np.mean(after) > least


@pytest.mark.parametrize(("rows", "own", "noise"), [(20, 0.1, 0.1), (9, 0.1, 0.05), (10, 0.2, 0.1)])
def test_as_much_of_a_row_is_kept_as_is_its_own(rows: int, own: float, noise: float) -> None:
    """Share of the deviation from the curve, over 60 draws, beside the best one of a known spread."""
    generator = np.random.default_rng(0)
    kept, best = [], own**2 / (own**2 + noise**2)
    for _ in range(60):
        seen = truth(generator, rows, own) + noise * generator.standard_normal((rows, len(CURVE)))
        apart = seen - common_curve(seen)
        left = posterior(seen, np.full(seen.shape, noise**2)) - common_curve(seen)
        kept.append(float((left * apart).sum() / np.square(apart).sum()))
    assert np.mean(kept) == pytest.approx(best, abs=0.06)


def test_choices_of_which_nothing_was_measured_say_nothing_of_the_others() -> None:
    found = space((2, 3, 4, 6, 8))
    generator = np.random.default_rng(0)
    names = [c.name for c in found.searched() if c.kind == "weight_bits"]
    measured = {name: tuple(row) for name, row in zip(names, truth(generator, len(names), 0.2), strict=True)}
    values = {c.name: measured.get(c.name, (0.0,) * len(c.options)) for c in found.choices}
    errors = dict.fromkeys(names, (0.01,) * 5)
    alone = shrunk(Scores(values, "measured"), {name: errors[name] for name in names[1:]}, found)
    silent = Scores({**values, names[0]: (0.0,) * 5}, "measured")
    beside = shrunk(silent, {**errors, names[0]: (0.0,) * 5}, found)
    assert beside.values[names[0]] == (0.0,) * 5
    for name in names[1:]:
        assert beside.values[name] == alone.values[name]


def test_scores_without_noise_stay() -> None:
    wanted = truth(np.random.default_rng(1), own=0.2)
    assert posterior(wanted, np.full(wanted.shape, 1e-12)) == pytest.approx(wanted, abs=1e-4)


def test_rows_on_a_curve_are_fitted_exactly() -> None:
    wanted = truth(np.random.default_rng(2)) + 3.0
    assert common_curve(wanted) == pytest.approx(wanted, abs=1e-6)
    assert posterior(np.zeros((4, 5)), np.ones((4, 5))) == pytest.approx(np.zeros((4, 5)))


def space(options: tuple[int, ...]) -> Space:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(6)), nn.Flatten(), nn.Linear(48, 2))
    return build_space(model, torch.randn(2, 3, 4, 4), options, options, (1.0,))


@pytest.mark.parametrize("options", [(2, 3, 4, 8), (2, 8)])
def test_only_ladders_with_something_in_common_change(options: tuple[int, ...]) -> None:
    found = space(options)
    generator = np.random.default_rng(0)
    values = {c.name: tuple(np.sort(generator.standard_normal(len(c.options)))) for c in found.choices}
    errors = {c.name: (0.5,) * len(c.options) for c in found.choices}
    one = next(c.name for c in found.searched() if c.kind == "weight_bits")
    del errors[one]
    result = shrunk(Scores(values, "measured"), errors, found)
    result.check(found)
    assert result.values[one] == values[one]
    changed = {name for name in values if result.values[name] != pytest.approx(values[name])}
    alike = {c.name for c in found.searched() if c.name != one}
    assert changed == (alike if len(options) > 2 else set())


@pytest.mark.parametrize("alike", [True, False])
def test_shares_of_filters_have_a_curve_in_common_where_they_are_the_same(alike: bool) -> None:
    model = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 1) for i in range(6)), nn.Flatten(), nn.Linear(256, 2))
    quarters = (0.25, 0.5, 0.75, 1.0)
    shares = {"[0-2]": quarters, "[3-5]": quarters if alike else (0.8125, 0.875, 0.9375, 1.0)}
    found = build_space(model, torch.randn(2, 3, 4, 4), filters=shares)
    names = [c.name for c in found.searched() if c.kind == "filters"]
    assert len(names) == 6
    generator = np.random.default_rng(0)
    values = {c.name: (0.0,) * len(c.options) for c in found.choices}
    values |= {name: tuple(np.sort(generator.standard_normal(4))) for name in names}
    result = shrunk(Scores(values, "measured"), dict.fromkeys(names, (0.5,) * 4), found)
    assert {result.values[name] == values[name] for name in names} == {not alike}  # three of a kind are too few
