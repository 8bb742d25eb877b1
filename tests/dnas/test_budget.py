"""The budget controller: its penalty, its multiplier, and what it converges to."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from networks import Chain, example
from torch import Tensor

from dnas.search.budget import Budget, BudgetError
from dnas.search.supernet import Supernet
from dnas.space.build import build_space
from dnas.space.cost import reference_cost


@pytest.fixture
def supernet() -> Supernet:
    model = Chain()
    return Supernet(model, build_space(model, example(model), (2, 4, 8), (2, 4, 8), (0.25, 0.5, 1.0)), seed=1).train()


def state(supernet: Supernet, name: str = "bops") -> float:
    return float(supernet.multiplier(name)[0])


def set_logits(supernet: Supernet, towards: int, strength: float = 20.0) -> None:
    """Pulls every choice to its cheapest (0) or dearest (-1) option."""
    with torch.no_grad():
        for logits in supernet.logits().values():
            logits.zero_()
            logits[towards] = strength


def step(budget: Budget, supernet: Supernet) -> Tensor:
    supernet(*example(supernet.model))
    return budget.penalty(supernet)


def test_the_formula_and_its_gradient(supernet: Supernet) -> None:
    budget = Budget(bops=0.1, strength=2.0, rate=0.05)
    supernet.multiplier("bops").data[0] = 0.7
    penalty = step(budget, supernet)
    limit = 0.1 * reference_cost(supernet.space, "bops")
    violation = math.log(float(supernet.cost("bops").detach()) / limit)
    multiplier = 0.7 + 0.05 * violation
    assert violation > 0
    assert state(supernet) == pytest.approx(multiplier)
    assert float(penalty.detach()) == pytest.approx(multiplier * violation + violation**2, rel=1e-5)
    penalty.backward()
    found = supernet.choices.logits.grad.clone()
    supernet.choices.logits.grad = None
    torch.log(supernet.cost("bops") / limit).backward()
    slope = supernet.choices.logits.grad.clone()
    torch.testing.assert_close(found, (multiplier + 2.0 * violation) * slope, rtol=1e-4, atol=1e-6)
    assert float(found.norm()) > 0


def test_a_met_budget_pushes_nothing(supernet: Supernet) -> None:
    set_logits(supernet, 0)
    penalty = step(Budget(bops=0.9), supernet)
    penalty.backward()
    grad = supernet.choices.logits.grad
    assert grad is None or not grad.any()


def test_the_multiplier_rises_falls_and_rises_again(supernet: Supernet) -> None:
    budget, path = Budget(bops=0.2), []
    for towards in (-1, 0, -1):
        set_logits(supernet, towards)
        for _ in range(40):
            step(budget, supernet)
            path.append(state(supernet))
    violated, met, again = path[:40], path[40:80], path[80:]
    assert all(b > a for a, b in pairwise(violated))
    assert all(b < a or b == 0.0 for a, b in pairwise(met))
    assert met[-1] == 0.0
    assert all(b > a for a, b in pairwise(again))
    assert again[0] > 0


def test_the_multiplier_moves_once_per_training_step(supernet: Supernet) -> None:
    budget = Budget(bops=0.05)
    step(budget, supernet)
    after = state(supernet)
    assert after > 0
    first, second = float(budget.penalty(supernet).detach()), float(budget.penalty(supernet).detach())
    assert state(supernet) == after
    assert first == second
    with torch.no_grad():
        step(budget, supernet)
    assert state(supernet) == after
    supernet.eval()
    step(budget, supernet)
    assert state(supernet) == after
    supernet.train()
    step(budget, supernet)
    assert state(supernet) > after


def test_several_budgets_add_up(supernet: Supernet) -> None:
    caps = {"bops": 0.1, "weight_bits": 0.2, "peak_activation_bits": 0.5, "activation_traffic_bits": 0.4}
    total = float(step(Budget(**caps), supernet).detach())
    model = Supernet(Chain(), supernet.space, seed=1).train()
    single = [float(step(Budget(**{name: cap}), model).detach()) for name, cap in caps.items()]
    assert total == pytest.approx(sum(single), rel=1e-6)
    assert set(supernet.multipliers) == set(caps)


@pytest.mark.parametrize(
    ("caps", "word"),
    [
        ({"bop": 0.1}, "unknown budget 'bop'"),
        ({}, "no budget is set"),
        ({"bops": None}, "no budget is set"),
        ({"bops": 0.0}, "allowed: a share"),
        ({"bops": -3}, "allowed: a share"),
        ({"bops": float("nan")}, "allowed: a share"),
        ({"bops": float("inf")}, "allowed: a share"),
    ],
)
def test_malformed_budgets(caps: dict[str, Any], word: str) -> None:
    with pytest.raises(BudgetError, match=word):
        Budget(**caps)


def test_shares_and_absolute_values(supernet: Supernet) -> None:
    space = supernet.space
    assert Budget(bops=0.25, macs=1000).limits(space) == {"bops": 0.25 * reference_cost(space, "bops"), "macs": 1000.0}


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("pull", [0.05, 1.0])
def test_converges_to_the_limit(supernet: Supernet, share: float, pull: float) -> None:
    """A task that always prefers the dearest options, weakly or strongly, ends at the limit and not beyond."""
    budget = Budget(bops=share)
    optimiser = torch.optim.Adam(supernet.choice_parameters(), lr=0.05)
    spent = []
    for _ in range(600):
        supernet.draws.add_(1)  # what a forward pass counts
        task = -pull * sum(torch.softmax(x, 0) @ torch.linspace(0, 1, len(x)) for x in supernet.logits().values())
        optimiser.zero_grad()
        (task + budget.penalty(supernet)).backward()
        optimiser.step()
        spent.append(float(supernet.cost("bops", relative=True).detach()) / share)
    tail = spent[-50:]
    # a strong pull drives probabilities to 0 and 1 at once: the cost then stays below the limit, between two options
    assert (0.95 if pull < 1 else 0.8) <= sum(tail) / len(tail) <= 1.03
    assert max(tail) < 1.05
