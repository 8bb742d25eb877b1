"""Learned predictors on accuracies whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from dnas.search.predictors import PREDICTORS, fit_predictor
from tests.dnas.test_effects import elastic, pool, small, truth


@pytest.mark.parametrize("name", PREDICTORS)
def test_each_ranks_networks_that_it_has_not_seen(name: str) -> None:
    space = small()
    value = truth(space, joint=0.2)
    predict = fit_predictor(name, space, pool(space, value, 500, 0, noise=0.5, spread=3.0))
    test = pool(space, value, 200, 1)
    found = predict(test.positions)
    assert found.shape == (200,)
    assert stats.kendalltau(found, test.accuracy).statistic > 0.75


def test_products_of_distant_options_need_the_quadratic_one() -> None:
    """The first and the last choice meet in no layer."""
    space = small()
    searched = [i for i, choice in enumerate(space.choices) if len(choice.options) > 1]

    def product(positions: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return 70.0 + 4.0 * (positions[:, searched[0]] == positions[:, searched[-1]])

    records, test = pool(space, product, 500, 0, noise=0.3), pool(space, product, 200, 1)
    errors = {
        name: float(np.mean((fit_predictor(name, space, records)(test.positions) - test.accuracy) ** 2))
        for name in ("linear", "quadratic")
    }
    assert errors["quadratic"] < 0.1 * errors["linear"]


def test_what_counts_where_a_block_runs_needs_products_with_the_depth() -> None:
    space = elastic()
    value = truth(space)
    records, test = pool(space, value, 4000, 0, noise=0.3, spread=3.0), pool(space, value, 300, 1)
    errors = {
        name: float(np.var(fit_predictor(name, space, records)(test.positions) - test.accuracy))
        for name in ("linear", "bilinear", "conditional means")
    }
    assert errors["bilinear"] < 0.1 * errors["linear"]
    assert errors["conditional means"] < errors["linear"]  # each from a share of the records


def test_unknown_ones_are_named() -> None:
    space = small()
    with pytest.raises(ValueError, match=r"forest.*allowed: \['conditional means', 'linear'"):
        fit_predictor("forest", space, pool(space, truth(space), 60, 0))
