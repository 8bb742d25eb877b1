"""Budgets that each can be met, but not together: the error says how far each would have to be raised."""

import re

import pytest

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores, no_scores
from dnas.select.program import enumerate_positions
from dnas.select.select import select
from dnas.space.build import build_space
from dnas.space.choice import Layer, Space
from dnas.space.cost import build_cost
from dnas.space.target import Target
from tests.dnas.test_effects import small
from tests.networks import Residual, example


def coarseness(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    """Costs more the fewer bits there are."""
    return float(c_in * (10 - weight_bits) + 2 * (9 - act_bits))


FUNCTIONS = {"coarseness": coarseness}


def nothing(space: Space) -> Scores:
    return Scores({choice.name: no_scores(choice) for choice in space.choices}, "none")


def test_the_error_names_what_the_other_budgets_leave() -> None:
    space = small()
    names = ("bops", "coarseness")
    costs = {name: build_cost(space, name, FUNCTIONS) for name in names}
    every = [tuple(costs[name].at(positions) for name in names) for positions in enumerate_positions(space)]
    cheap, coarse = min(cost for cost, _ in every) * 1.2, min(cost for _, cost in every) * 1.1
    assert not any(a <= cheap and b <= coarse for a, b in every)
    expected = {
        "bops": min(a for a, b in every if b <= coarse), "coarseness": min(b for a, b in every if a <= cheap),
    }  # fmt: skip
    with pytest.raises(BudgetError, match="no architecture meets the budgets") as caught:
        select(nothing(space), space, Budget(functions=FUNCTIONS, bops=cheap, coarseness=coarse))
    text = str(caught.value)
    found = dict(re.findall(r"budget\.(\w+) would have to allow (\S+)", text))
    assert {name: float(value) for name, value in found.items()} == {
        name: pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }
    for name, value in expected.items():  # so far is enough
        raised = {"bops": cheap, "coarseness": coarse, name: value}
        assert Budget(functions=FUNCTIONS, **raised).holds(
            select(nothing(space), space, Budget(functions=FUNCTIONS, **raised))
        )
    heaviest = re.findall(r"; (\S+) enters most of it, (\d+)%", text)
    assert len(heaviest) == 2
    assert all(name in {choice.name for choice in space.choices} for name, _ in heaviest)


def test_a_budget_that_legal_pairs_keep_from_being_met() -> None:
    space = build_space(
        Residual(), example(Residual()), (2, 8), (2, 8), (0.5, 1.0), exclude=("c", "d", "short", "head.*"),
        target=Target("uneven", pairs=((2, 8), (8, 2), (8, 8))),
    )  # fmt: skip
    cost = build_cost(space, "bops")
    legal = [
        cost.at(positions)
        for positions in enumerate_positions(space)
        if all(
            (space.choice(layer.weight_choice).options[positions[layer.weight_choice]],
             space.choice(layer.act_choice).options[positions[layer.act_choice]]) in (space.pairs or ())
            for layer in space.layers
            if space.choice(layer.weight_choice).searched
        )
    ]  # fmt: skip
    limit = min(legal) * 0.99
    assert limit > min(cost.at(positions) for positions in enumerate_positions(space))
    with pytest.raises(BudgetError, match="would have to allow") as caught:
        select(nothing(space), space, Budget(bops=limit))
    (value,) = re.findall(r"would have to allow (\S+)", str(caught.value))
    assert float(value) == pytest.approx(min(legal), rel=1e-5)
