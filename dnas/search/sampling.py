"""Random architectures: uniform, or independent choices tilted by exp(-t share of cost) until they cost what is asked for."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dnas.space.choice import Space
from dnas.space.cost import Cost

_EITHER = np.geomspace(1.0, 4096.0, 37)
TILTS = np.concatenate([-_EITHER[::-1], np.zeros(1), _EITHER])
"""Tilts whose costs are looked up; the cost falls with the tilt, from about the space's largest to about its smallest."""
LOOKUP = 64
"""Draws per tilt of that table."""
CANDIDATES = 32
"""Draws of which the one nearest to the wanted cost is taken."""


def spent(
    space: Space, costs: Sequence[Cost], limits: Mapping[str, float], draws: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of the tightest budget for every row of draws (architectures, choices); shape (architectures,)."""
    column = {choice.name: i for i, choice in enumerate(space.choices)}
    shares = np.zeros(len(draws))
    for cost in costs:
        for row, constant in zip(cost.rows, cost.constants, strict=True):
            value = np.full(len(draws), float(constant))
            for factor in row:
                value += factor.table[tuple(draws[:, column[name]] for name in factor.choices)]
            shares = np.maximum(shares, value / limits[cost.name])
    return shares


def marginals(space: Space, costs: Sequence[Cost], limits: Mapping[str, float]) -> list[NDArray[np.float64]]:
    """Share of the budget that each option of a choice costs with every other choice at its dearest."""
    full = [len(choice.options) - 1 for choice in space.choices]
    found = []
    for i, choice in enumerate(space.choices):
        draws = np.tile(full, (len(choice.options), 1))
        draws[:, i] = range(len(choice.options))
        found.append(spent(space, costs, limits, draws))
    return found


def draw(
    marginal: Sequence[NDArray[np.float64]], tilt: float, generator: np.random.Generator, count: int
) -> NDArray[np.int64]:
    """Positions of `count` random architectures; shape (count, choices).

    Args:
        marginal: of every choice, see `marginals`.
        tilt: 0 draws every option alike.
        generator: of the draw.
        count: architectures.
    """
    total = max(float(max(map(np.max, marginal))), 1e-12)
    uniform = generator.random((count, len(marginal)))
    draws = np.zeros(uniform.shape, dtype=np.int64)
    for i, own in enumerate(marginal):
        slopes = -tilt * (own - own.min()) / total
        weights = np.exp(slopes - slopes.max())
        edges = np.cumsum(weights / weights.sum())
        draws[:, i] = np.minimum(np.searchsorted(edges, uniform[:, i], side="right"), len(weights) - 1)
    return draws


class Draws(Protocol):
    """Numbered random architectures."""

    def positions(self, number: int) -> NDArray[np.int64]:
        """Positions of the choices of architecture `number`; shape (choices,)."""


class Neighbours:
    """Random neighbours of some architectures: every choice keeps its option or, seldom, takes another, nearer ones first.

    The n-th draw depends on the seed and n alone.
    """

    def __init__(self, space: Space, middles: NDArray[np.int64], mutation: float, seed: int) -> None:
        """Takes the architectures in turn.

        Args:
            space: without choices by filter.
            middles: positions, shape (architectures, choices).
            mutation: probability (0 to 1) of another option; of these each step away from the middle halves it.
            seed: of all draws.
        """
        self.sizes = [len(choice.options) for choice in space.choices]
        self.middles, self.mutation, self.seed = middles, mutation, seed

    def positions(self, number: int) -> NDArray[np.int64]:
        """Positions of the choices of architecture `number`; shape (choices,)."""
        generator = np.random.default_rng([self.seed, 3, number])
        found = self.middles[number % len(self.middles)].copy()
        for i in np.flatnonzero(generator.random(len(found)) < self.mutation):
            steps = np.abs(np.arange(self.sizes[i]) - found[i])
            if len(steps) > 1:
                weights = np.where(steps > 0, 0.5**steps, 0.0)
                found[i] = generator.choice(len(steps), p=weights / weights.sum())
        return found


class Sampler:
    """Random architectures of a space; within a band of a cost, where one is given, spread evenly over its logarithm.

    A band may reach beyond what draws cost: they are then spread over the part that they reach. The n-th draw depends on
    the seed and n alone.
    """

    def __init__(
        self, space: Space, seed: int, cost: Cost | None = None, band: tuple[float, float] | None = None
    ) -> None:
        """Looks up which tilt costs what.

        Args:
            space: without choices by filter.
            seed: of all draws.
            cost: that the band is of.
            band: smallest and largest value of the cost, in its own unit.

        Raises:
            ValueError: a band that no draw falls into.
        """
        self.space, self.seed, self.cost, self.band = space, seed, cost, band
        self._marginals = [np.zeros(len(choice.options)) for choice in space.choices]
        if cost is None or band is None:
            return
        self._limits = {cost.name: band[1]}
        self._marginals = marginals(space, [cost], self._limits)
        generator = np.random.default_rng([seed, 1])
        draws = [draw(self._marginals, tilt, generator, LOOKUP) for tilt in TILTS]
        medians = np.array([np.median(spent(space, [cost], self._limits, found)) for found in draws])
        self._logs = np.minimum.accumulate(np.log(medians))
        reachable = float(np.exp(self._logs[-1])) * band[1], float(np.exp(self._logs[0])) * band[1]
        if reachable[0] > band[1] or reachable[1] < band[0]:
            raise ValueError(
                f"search.band allows {cost.name} from {band[0]:.4g} to {band[1]:.4g}, but random architectures of this space "
                f"cost {reachable[0]:.4g} to {reachable[1]:.4g}; change search.band"
            )

    def positions(self, number: int) -> NDArray[np.int64]:
        """Positions of the choices of architecture `number`; shape (choices,)."""
        generator = np.random.default_rng([self.seed, 2, number])
        if self.cost is None or self.band is None:
            return draw(self._marginals, 0.0, generator, 1)[0]
        lowest, highest = float(np.log(self.band[0] / self.band[1])), 0.0
        wanted = generator.uniform(max(lowest, self._logs[-1]), min(highest, self._logs[0]))
        tilt = float(np.interp(-wanted, -self._logs, TILTS))
        found = draw(self._marginals, tilt, generator, CANDIDATES)
        logs = np.log(spent(self.space, [self.cost], self._limits, found))
        outside = np.maximum(np.maximum(lowest - logs, logs - highest), 0.0)
        return found[np.lexsort((np.abs(logs - wanted), outside))[0]]

    def named(self, number: int) -> dict[str, int]:
        """The same by the choices' names."""
        return dict(zip([c.name for c in self.space.choices], self.positions(number).tolist(), strict=True))
