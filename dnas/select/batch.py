"""Many solutions of a selection problem at once: what they are worth, what they spend, and how they are made feasible."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnas.select.problem import Array, Problem, Table

Positions = NDArray[np.int64]
"""Shape (solutions, choices), in the order of the problem's choices."""


class Batch:
    """Evaluates solutions as arrays."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.column = {name: i for i, name in enumerate(problem.sizes)}
        self.sizes = np.array(list(problem.sizes.values()), dtype=np.int64)
        self.limits = np.array([row.limit for row in problem.rows])

    def _sum(self, tables: Sequence[Table], positions: Positions) -> Array:
        found = np.zeros(len(positions))
        for names, table in tables:
            found += table[tuple(positions[:, self.column[name]] for name in names)]
        return found

    def value(self, positions: Positions) -> Array:
        """Shape (solutions,)."""
        return self.problem.constant + self._sum(self.problem.values, positions)

    def excess(self, positions: Positions) -> Array:
        """How far the worst resource is above its limit, as a share of it; 0 where all hold and nothing forbidden meets."""
        worst = np.zeros(len(positions))
        for row in self.problem.rows:
            over = (self._sum(row.tables, positions) - row.limit) / max(abs(row.limit), 1e-12)
            worst = np.maximum(worst, np.where(over > 0, np.maximum(over, 1e-12), 0.0))
        for names, table in self.problem.forbidden:
            worst += table[tuple(positions[:, self.column[name]] for name in names)]
        return worst

    def repaired(self, positions: Positions) -> tuple[Positions, bool]:
        """One solution made feasible by the single changes that lower its excess most per value lost.

        Args:
            positions: shape (choices,).

        Returns:
            positions, and whether they are feasible.
        """
        found = positions.copy()
        while True:
            over = float(self.excess(found[None])[0])
            if over == 0:
                return found, True
            near = self.neighbours(found)
            gain = over - self.excess(near)
            lost = np.maximum(float(self.value(found[None])[0]) - self.value(near), 1e-9)
            if not (gain > 0).any():
                return found, False
            found = near[int(np.argmax(np.where(gain > 0, gain / lost, -np.inf)))]

    def neighbours(self, positions: Positions) -> Positions:
        """All solutions that differ in one choice; shape (changes, choices)."""
        found = []
        for i, size in enumerate(self.sizes):
            for option in range(size):
                if option != positions[i]:
                    changed = positions.copy()
                    changed[i] = option
                    found.append(changed)
        return np.array(found).reshape(-1, len(self.sizes))

    def named(self, positions: Positions) -> dict[str, int]:
        """One solution by the choices' names."""
        return dict(zip(self.problem.sizes, positions.tolist(), strict=True))
