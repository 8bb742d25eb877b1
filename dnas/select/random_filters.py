"""Random architectures where single filters decide."""

from collections.abc import Mapping, Sequence

import numpy as np

from dnas.search.budget import Budget, BudgetError
from dnas.space.architecture import Architecture
from dnas.space.choice import Position, Space
from dnas.space.cost import Cost

BISECTIONS, DRAWS = 14, 15


def legal(space: Space, positions: Mapping[str, Position]) -> bool:
    """Whether every layer has legal pairs of widths only (a removed filter counts as well)."""
    if space.pairs is None:
        return True
    for layer in space.layers:
        weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
        if weight.name == act.name:
            continue
        found = [positions[weight.name], positions[act.name]]
        taken = [{p} if isinstance(p, int) else set(p) for p in found]
        if any((weight.weight_bits[w], act.act_bits[a]) not in space.pairs for w in taken[0] for a in taken[1]):
            return False
    return True


def _draw(space: Space, tilt: float, generator: np.random.Generator) -> dict[str, Position]:
    """Independent decisions, an option's chance falling with its share of the dearest one by exp(-tilt share)."""
    sizes = {group.choice: group.size for group in space.groups}
    found: dict[str, Position] = {}
    for choice in space.choices:
        shares = np.asarray(choice.options, dtype=float)
        weights = np.exp(-tilt * shares / shares.max())
        weights /= weights.sum()
        if not choice.by_filter:
            found[choice.name] = int(generator.choice(len(choice.options), p=weights))
        elif choice.kind == "filters":
            count, size = int(generator.choice(choice.options, p=weights)), sizes[choice.name]
            whole = size // choice.block if count < size else choice.count
            stay = set(generator.permutation(whole)[: count // choice.block if count < size else choice.count].tolist())
            found[choice.name] = tuple(int(i in stay) for i in range(choice.count))
        else:
            found[choice.name] = tuple(generator.choice(len(choice.options), size=choice.count, p=weights).tolist())
    return found


def random_by_filter(
    space: Space,
    budget: Budget,
    costs: Sequence[Cost],
    limits: Mapping[str, float],
    generator: np.random.Generator,
    lowest: float,
    attempts: int,
) -> Architecture:
    """As `random_architecture`, every filter drawing for itself.

    Raises:
        BudgetError: no draw fell between `lowest` and the budget.
    """

    def spent(positions: Mapping[str, Position]) -> float:
        return max(cost.at(positions) / limits[cost.name] for cost in costs)

    full = space.extreme(dearest=True)
    if spent(full) <= 1.0 and spent(full) < lowest and legal(space, full):
        return Architecture.at(space, full, functions=budget.functions)
    low, high = -50.0, 50.0
    for _ in range(BISECTIONS):
        tilt = (low + high) / 2
        median = float(np.median([spent(_draw(space, tilt, generator)) for _ in range(DRAWS)]))
        low, high = (tilt, high) if median > (1 + lowest) / 2 else (low, tilt)
    closest = 0.0
    for _ in range(min(attempts, 2000)):
        positions = _draw(space, (low + high) / 2, generator)
        share = spent(positions)
        if lowest <= share <= 1.0 and legal(space, positions):
            return Architecture.at(space, positions, functions=budget.functions)
        closest = max(closest, share if share <= 1.0 else 0.0)
    raise BudgetError(
        f"no random architecture spent {lowest:.0%} to 100 % of {dict(budget.caps)} (closest: {closest:.1%}); allow more "
        "options in the space, or lower `lowest`"
    )
