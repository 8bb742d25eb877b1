"""The whole frontier: the best-scored architecture for every budget, each with its certificate."""

from dataclasses import replace

import numpy as np

from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from dnas.space.preflight import extreme_cost


def frontier(
    scores: Scores, space: Space, budget: Budget, points: int = 40, time_limit: float = 60.0, solver: str = "auto"
) -> list[Architecture]:
    """Selects for many values of the first budget, from the cheapest network to the dearest; other budgets hold as they are.

    Args:
        scores: of the options.
        space: the space.
        budget: its first cost is varied.
        points: selections, at budgets that are spaced evenly in their logarithm.
        time_limit: seconds, for one selection.
        solver: as of `select`.

    Returns:
        architectures with certificates, by ascending cost, without those that cost as much as another and score no higher.

    Raises:
        BudgetError: the other budgets leave no architecture.
    """
    name, *others = budget.caps
    cost = build_cost(space, name, budget.functions)
    low, high = (extreme_cost(space, cost, dearest) for dearest in (False, True))
    found: list[Architecture] = []
    reason: BudgetError | None = None
    for limit in np.geomspace(max(low, 1.0 + 1e-9), max(high, low, 1.0 + 1e-9), points):
        caps = {name: max(float(np.ceil(limit)), 1.0 + 1e-9), **{other: budget.caps[other] for other in others}}
        try:
            chosen = select(scores, space, Budget(functions=budget.functions, **caps), time_limit, solver)
        except BudgetError as error:
            reason = error
            continue
        assert chosen.certificate is not None
        last = found[-1].certificate if found else None
        if last is None or chosen.certificate.value > last.value:
            found.append(replace(chosen, functions=budget.functions))
    if not found and reason is not None:
        raise reason
    return found
