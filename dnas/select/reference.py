"""Architectures to compare with: uniform ones, and random ones at a given cost."""

from collections.abc import Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray

from dnas.search.budget import Budget, BudgetError
from dnas.search.sampling import draw, marginals, spent
from dnas.select.random_filters import legal, random_by_filter
from dnas.space.architecture import Architecture
from dnas.space.choice import PAIR, Option, Space
from dnas.space.cost import build_cost

BISECTION_DRAWS = 101
ROUNDING = 1e-9
"""By which a loosened budget is above the cost that it has to hold."""
BATCH = 500
"""Architectures drawn at once."""


STRUCTURE = ("kernel", "depth", "branch")
"""Kinds of choices of which a uniform network has one option everywhere; where nothing is said the dearest."""


def uniform_architecture(
    space: Space, weight_bits: int, act_bits: int, filters: float = 1.0, structure: Mapping[str, int] | None = None
) -> Architecture:
    """The same widths everywhere and the same share of filters in every group that the space searches.

    Args:
        space: the space.
        weight_bits: one of its weight options.
        act_bits: one of its activation options.
        filters: share of filters; each group takes the option nearest to it.
        structure: option of the choices of kinds `kernel`, `depth` and `branch`; each takes the one nearest to it.

    Raises:
        ValueError: a width that some searched choice does not have.
    """
    options: dict[str, Option] = {}
    sizes = {group.choice: group.size for group in space.groups}
    for choice in space.choices:
        option: Option
        if not choice.searched:
            option = choice.options[0]
        elif choice.kind == "filters":
            wanted = filters * sizes[choice.name]
            option = min(choice.options, key=lambda count: (abs(count - wanted), count))
        elif choice.kind in STRUCTURE:
            side = (structure or {}).get(choice.kind, choice.options[-1])
            option = min(choice.options, key=lambda o: (abs(o - side), o))
        elif choice.kind == "pair_bits":
            option = choice.options[choice.index(PAIR * weight_bits + act_bits)]
        else:
            option = choice.options[choice.index(weight_bits if choice.kind == "weight_bits" else act_bits)]
        options[choice.name] = (option,) * choice.count if choice.by_filter and choice.kind != "filters" else option
    return Architecture(space, options)


def dearest_architecture(space: Space) -> Architecture:
    """The last option of every choice: all filters, layers and branches at the widest bits."""
    return Architecture(
        space,
        {
            choice.name: (choice.options[-1],) * choice.count
            if choice.by_filter and choice.kind != "filters"
            else choice.options[-1]
            for choice in space.choices
        },
    )


def uniform_rules(space: Space) -> list[tuple[int, int, dict[str, int]]]:
    """(weight bits, activation bits, structure) of every uniform network that the space has, narrow ones first."""
    widths = {
        kind: sorted({o for c in space.searched() if c.kind in (kind, "pair_bits") for o in getattr(c, kind)})
        for kind in ("weight_bits", "act_bits")
    }
    structures = {
        kind: sorted({o for c in space.searched() if c.kind == kind for o in c.options}) for kind in STRUCTURE
    }
    structures = {kind: options for kind, options in structures.items() if options}
    joint = [set(zip(c.weight_bits, c.act_bits, strict=True)) for c in space.searched() if c.kind == "pair_bits"]
    return [
        (weight, act, dict(zip(structures, sides, strict=True)))
        for weight, act, *sides in product(
            widths["weight_bits"] or [0], widths["act_bits"] or [0], *structures.values()
        )
        if _runs(space, weight, act) and all((weight, act) in pairs for pairs in joint)
    ]


def _runs(space: Space, weight: int, act: int) -> bool:
    """Whether a pair of widths is legal, 0 standing for the widths of a side that is not searched, layer by layer."""
    if space.pairs is None or (weight, act) in space.pairs:
        return True
    return 0 in (weight, act) and legal(space, uniform_architecture(space, weight, act).positions())


def uniform_candidates(space: Space, budget: Budget) -> list[Architecture]:
    """Every (weight bits, activation bits, structure) at the largest width that fits, without those that another contains."""
    ratios = sorted({c / g.size for g in space.groups for c in space.choice(g.choice).options}, reverse=True)
    found: list[tuple[tuple[float, ...], Architecture]] = []
    for weight, act, structure in uniform_rules(space):
        for ratio in ratios:
            options = uniform_architecture(space, weight, act, ratio, structure).options
            architecture = Architecture(space, options, functions=budget.functions)
            if budget.holds(architecture):
                found.append(((weight, act, *structure.values(), ratio), architecture))
                break
    return [
        architecture
        for key, architecture in found
        if not any(other != key and all(o >= k for o, k in zip(other, key, strict=True)) for other, _ in found)
    ]


def loosened(space: Space, budget: Budget, factor: float) -> Budget:
    """The budget that a search goes around: loosened until the cheapest uniform network keeps all of its filters.

    A narrow network on 2 bits is a poor place to measure options at: around the full one the options of few filters, which
    most of a small budget's networks consist of, are told apart better. Every cost is loosened as far as that network needs
    it, and by `factor` at most. A budget that holds it, or whose uniform networks gain no filter by that, stays as it is.

    Args:
        space: the space.
        budget: what the selection has to meet.
        factor: at least 1, which leaves every budget as it is.
    """
    least = full_width_shares(space, budget)
    if least is None or factor == 1 or max(least.values()) <= 1:
        return budget
    ratios = {name: min(share * (1 + ROUNDING), factor) if share > 1 else 1.0 for name, share in least.items()}
    caps: dict[str, float | None] = {
        name: min(cap * ratios[name], 1.0) if cap <= 1 else cap * ratios[name] for name, cap in budget.caps.items()
    }
    looser = Budget(strength=budget.strength, rate=budget.rate, functions=budget.functions, **caps)
    return looser if _most_filters(space, looser) > _most_filters(space, budget) else budget


def full_width_shares(space: Space, budget: Budget) -> dict[str, float] | None:
    """What the cheapest uniform network that keeps all filters costs, as shares of all limits; None where there is none."""
    limits = budget.limits(space)
    costs = {name: build_cost(space, name, budget.functions) for name in limits}
    found = []
    for weight, act, structure in uniform_rules(space):
        positions = uniform_architecture(space, weight, act, 1.0, structure).positions()
        found.append({name: costs[name].at(positions) / limit for name, limit in limits.items()})
    return min(found, key=lambda share: (max(share.values()), sum(share.values())), default=None)


def bits_suffice(space: Space, budget: Budget) -> bool:
    """Whether bits of whole layers alone meet the budget: a uniform network does that keeps all filters.

    Not where kernels, depth or branches are searched, or where single filters decide: a network that was trained without
    them says little about these options.
    """
    if any(choice.by_filter or choice.kind in STRUCTURE for choice in space.searched()):
        return False
    if any(space.choice(group.choice).options[-1] != group.size for group in space.groups):
        return False  # a space in which no network keeps all filters
    least = full_width_shares(space, budget)
    return least is not None and max(least.values()) <= 1


def _most_filters(space: Space, budget: Budget) -> int:
    """How many filters the widest uniform network within a budget keeps; 0 where there is none."""
    found = widest_uniform(space, budget)
    return 0 if found is None else _filters(found)


def _filters(architecture: Architecture) -> int:
    """How many filters an architecture keeps, of groups that run."""
    space, positions = architecture.space, architecture.positions()
    return sum(
        int(architecture[group.choice])
        for group in space.groups
        if any(space.runs(name, positions) for name in group.members)
    )


def widest_uniform(space: Space, budget: Budget) -> Architecture | None:
    """Of the uniform networks within a budget that with most filters; of these that with the most even, then widest bits.

    None where the budget leaves no uniform network.
    """
    candidates = uniform_candidates(space, budget)

    def rank(architecture: Architecture) -> tuple[float, int, int]:
        positions = architecture.positions()
        running = [layer for layer in space.layers if space.runs(layer.name, positions)]
        layers = [layer for layer in running if space.choice(layer.weight_choice).searched]
        weight = sum(sum(architecture.weight_bits(layer)) for layer in layers)
        act = sum(sum(architecture.act_bits(layer)) for layer in layers)
        return _filters(architecture), -abs(weight - act), weight + act

    return max(candidates, key=rank, default=None)


def random_architecture(
    space: Space, budget: Budget, seed: int, lowest: float = 0.96, attempts: int = 20_000
) -> Architecture:
    """Independent choices tilted by exp(-lambda cost) towards the budget; rejected unless they spend 96 to 100 % of it.

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
    if any(choice.by_filter for choice in space.searched()):
        return random_by_filter(space, budget, costs, limits, generator, lowest, attempts)

    def architecture(positions: NDArray[np.int64]) -> Architecture:
        options = {c.name: c.options[i] for c, i in zip(space.choices, positions.tolist(), strict=True)}
        return Architecture(space, options, functions=budget.functions)

    full = np.array([[len(choice.options) - 1 for choice in space.choices]])
    most = float(spent(space, costs, limits, full)[0])
    if most < lowest and _legal(space, full[0]):
        return architecture(full[0])
    marginal = marginals(space, costs, limits)
    low, high = -50.0, 200.0
    for _ in range(30):  # bisection on the tilt until the median draw spends the budget
        tilt = (low + high) / 2
        shares = spent(space, costs, limits, draw(marginal, tilt, generator, BISECTION_DRAWS))
        low, high = (tilt, high) if float(np.median(shares)) > (1 + lowest) / 2 else (low, tilt)
    closest = 0.0
    for start in range(0, attempts, BATCH):
        drawn = draw(marginal, (low + high) / 2, generator, min(BATCH, attempts - start))
        shares = spent(space, costs, limits, drawn)
        for positions in drawn[(shares >= lowest) & (shares <= 1.0)]:
            found = architecture(positions)
            if _legal(space, positions) and all(found.cost(name) <= limit for name, limit in limits.items()):
                return found
        closest = max(closest, float(shares[shares <= 1.0].max(initial=0.0)))
    if most <= 1.0 and _legal(space, full[0]):
        return architecture(full[0])
    raise BudgetError(
        f"no random architecture spent {lowest:.0%} to 100 % of {dict(budget.caps)} in {attempts} draws (closest: "
        f"{closest:.1%}); allow more options in the space, or lower `lowest`"
    )


def _legal(space: Space, positions: NDArray[np.int64]) -> bool:
    return legal(space, dict(zip([c.name for c in space.choices], positions.tolist(), strict=True)))
