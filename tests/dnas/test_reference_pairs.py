"""Uniform networks where a target's legal pairs meet widths that are not searched."""

import pytest

from dnas.search.budget import Budget
from dnas.select.random_filters import legal
from dnas.select.reference import bits_suffice, uniform_architecture, uniform_candidates, uniform_rules
from dnas.space.build import build_space
from dnas.space.target import Target
from tests.networks import Residual, example

PAIRS = ((4, 4), (4, 8), (8, 8))


@pytest.mark.parametrize(
    ("weights", "acts", "expected"),
    [
        ((4, 8), (8,), [(4, 0), (8, 0)]),
        ((8,), (4, 8), [(0, 8)]),  # (8, 4) is not legal
        ((4,), (4, 8), [(0, 4), (0, 8)]),
        ((4, 8), (4, 8), list(PAIRS)),
    ],
)
def test_uniform_networks_are_those_whose_layers_are_all_legal(
    weights: tuple[int, ...], acts: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    model = Residual()
    space = build_space(model, example(model), weights, acts, (0.5, 1.0), target=Target(pairs=PAIRS))
    rules = uniform_rules(space)
    assert [(weight, act) for weight, act, _ in rules] == expected
    assert all(legal(space, uniform_architecture(space, w, a).positions()) for w, a, _ in rules)
    assert uniform_candidates(space, Budget(bops=1.0))
    assert bits_suffice(space, Budget(bops=1.0))
