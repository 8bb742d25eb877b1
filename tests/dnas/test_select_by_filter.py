"""Selection where single filters decide, against enumeration."""

from typing import Any

import numpy as np
import pytest
from test_filter_cost import SPACES, positions_of

import dnas
from dnas.search.scores import Scores
from dnas.select.settle import total_score
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import build_cost


def scores_of(space: Space, seed: int) -> Scores:
    """Random, growing with the width; keeping a filter is worth something."""
    generator = np.random.default_rng(seed)

    def row(width: int) -> tuple[float, ...]:
        return tuple(np.sort(generator.random(width)).tolist())

    values: dict[str, Any] = {}
    for choice in space.choices:
        rows = tuple(row(choice.width) for _ in range(choice.count))
        values[choice.name] = rows if choice.by_filter else rows[0]
    return Scores(values, "random")


def allowed(space: Space, positions: dict[str, Any]) -> bool:
    """Whether every group keeps one of the numbers of filters that it may."""
    try:
        Architecture.at(space, positions)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", SPACES)
def test_the_best_within_the_budget_or_within_the_gap(kind: str) -> None:
    space = SPACES[kind]()
    cost = build_cost(space, "bops")
    every = [p for p in positions_of(space) if allowed(space, p)]
    costs = np.array([cost.at(p) for p in every])
    for seed, share in ((0, 0.4), (1, 0.6), (2, 0.8)):
        scores = scores_of(space, seed)
        limit = float(np.quantile(costs, share))
        values = np.array([total_score(scores, space, p) for p in every])
        best = values[costs <= limit].max()
        found = dnas.select(scores, space, dnas.Budget(bops=max(limit, 2.0)))
        certificate = found.certificate
        assert certificate is not None
        assert found.cost("bops") <= limit
        assert certificate.value == pytest.approx(total_score(scores, space, found.positions()))
        assert certificate.bound >= certificate.value
        assert certificate.bound >= best - 1e-6
        assert certificate.value >= best - 1e-6  # on spaces as small as these
        print(
            kind,
            share,
            round(best, 3),
            round(certificate.value, 3),
            round(certificate.bound, 3),
            round(certificate.seconds, 2),
        )
