"""Architectures to compare with: uniform ones, and random ones at a given cost."""

import numpy as np

from dnas.search.budget import Budget, BudgetError
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import Cost, build_cost


def uniform_architecture(space: Space, weight_bits: int, act_bits: int, filters: float = 1.0) -> Architecture:
    """The same widths everywhere and the same share of filters in every group that the space searches.

    Args:
        space: the space.
        weight_bits: one of its weight options.
        act_bits: one of its activation options.
        filters: share of filters; each group takes the option nearest to it.

    Raises:
        ValueError: a width that some searched choice does not have.
    """
    options = {}
    sizes = {group.choice: group.size for group in space.groups}
    for choice in space.choices:
        if not choice.searched:
            options[choice.name] = choice.options[0]
        elif choice.kind == "filters":
            wanted = filters * sizes[choice.name]
            options[choice.name] = min(choice.options, key=lambda count: (abs(count - wanted), count))
        else:
            bits = weight_bits if choice.kind == "weight_bits" else act_bits
            options[choice.name] = choice.options[choice.index(bits)]
    return Architecture(space, options)


def uniform_candidates(space: Space, budget: Budget) -> list[Architecture]:
    """Every (weight bits, activation bits) at the largest width that fits, without those that another one contains."""
    widths = {
        c.kind: sorted({o for d in space.searched() if d.kind == c.kind for o in d.options}) for c in space.searched()
    }
    ratios = sorted({c / g.size for g in space.groups for c in space.choice(g.choice).options}, reverse=True)
    found: list[tuple[tuple[float, float, float], Architecture]] = []
    for weight in widths.get("weight_bits", [0]):
        for act in widths.get("act_bits", [0]):
            if space.pairs is not None and (weight, act) not in space.pairs:
                continue
            for ratio in ratios:
                options = uniform_architecture(space, weight, act, ratio).options
                architecture = Architecture(space, options, functions=budget.functions)
                if budget.holds(architecture):
                    found.append(((weight, act, ratio), architecture))
                    break
    return [
        architecture
        for key, architecture in found
        if not any(other != key and all(o >= k for o, k in zip(other, key, strict=True)) for other, _ in found)
    ]


def random_architecture(
    space: Space, budget: Budget, seed: int, lowest: float = 0.96, attempts: int = 20_000
) -> Architecture:
    """Independent choices, tilted by exp(-lambda cost) towards the budget, rejected unless they spend 96 to 100 % of it.

    Args:
        space: the space.
        budget: every budget holds; the tightest one is spent to `lowest` at least.
        seed: of the draw.
        lowest: share of the tightest budget that has to be spent, unless the dearest architecture spends less.
        attempts: draws before giving up.

    Raises:
        BudgetError: no draw fell between `lowest` and the budget.
    """
    budget.check(space)
    limits = budget.limits(space)
    costs = [build_cost(space, name, budget.functions) for name in limits]
    generator = np.random.default_rng(seed)

    def spent(positions: dict[str, int]) -> float:
        return max(cost.at(positions) / limits[cost.name] for cost in costs)

    full = {choice.name: len(choice.options) - 1 for choice in space.choices}
    if spent(full) < lowest and _legal(space, full):
        return Architecture(space, {c.name: c.options[-1] for c in space.choices}, functions=budget.functions)
    marginals = _marginals(space, costs, limits)
    low, high = -50.0, 200.0
    for _ in range(30):  # bisection on the tilt until the median draw spends the budget
        tilt = (low + high) / 2
        draws = [spent(_draw(space, marginals, tilt, generator)) for _ in range(15)]
        low, high = (tilt, high) if float(np.median(draws)) > (1 + lowest) / 2 else (low, tilt)
    closest = 0.0
    for _ in range(attempts):
        positions = _draw(space, marginals, (low + high) / 2, generator)
        share = spent(positions)
        if lowest <= share <= 1.0 and _legal(space, positions):
            options = {choice.name: choice.options[positions[choice.name]] for choice in space.choices}
            return Architecture(space, options, functions=budget.functions)
        closest = max(closest, share if share <= 1 else 0.0)
    raise BudgetError(
        f"no random architecture spent {lowest:.0%} to 100 % of {dict(budget.caps)} in {attempts} draws (closest: "
        f"{closest:.1%}); allow more options in the space, or lower `lowest`"
    )


def _legal(space: Space, positions: dict[str, int]) -> bool:
    if space.pairs is None:
        return True
    return all(
        (
            space.choice(layer.weight_choice).options[positions[layer.weight_choice]],
            space.choice(layer.act_choice).options[positions[layer.act_choice]],
        )
        in space.pairs
        for layer in space.layers
    )


def _marginals(space: Space, costs: list[Cost], limits: dict[str, float]) -> dict[str, np.ndarray]:
    """Share of the budget that each option of a choice costs with every other choice at its dearest."""
    full = {choice.name: len(choice.options) - 1 for choice in space.choices}
    return {
        choice.name: np.array(
            [
                max(cost.at({**full, choice.name: i}) / limits[cost.name] for cost in costs)
                for i in range(len(choice.options))
            ]
        )
        for choice in space.choices
    }


def _draw(
    space: Space, marginals: dict[str, np.ndarray], tilt: float, generator: np.random.Generator
) -> dict[str, int]:
    total = max(float(np.max(list(map(np.max, marginals.values())))), 1e-12)
    positions = {}
    for choice in space.choices:
        weights = np.exp(-tilt * (marginals[choice.name] - marginals[choice.name].min()) / total)
        positions[choice.name] = int(generator.choice(len(choice.options), p=weights / weights.sum()))
    return positions
