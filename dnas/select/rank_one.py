"""Tables that are a product of two vectors over two sets of choices."""

from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

RELATIVE = 1e-12


@dataclass(frozen=True)
class Split:
    """table[x, y] = left[x] * right[y]; left is at most 1 and nothing is negative. names: of the axes of each."""

    left_names: tuple[str, ...]
    left: NDArray[np.float64]
    right_names: tuple[str, ...]
    right: NDArray[np.float64]


def split_rank_one(names: tuple[str, ...], table: NDArray[np.float64]) -> Split | None:
    """The split of a table's axes with the fewest entries on its two sides; None where none is of rank one.

    Args:
        names: of the axes, two or more.
        table: not negative.
    """
    axes = range(len(names))
    halves = [left for size in range(1, len(names)) for left in combinations(axes, size)]

    def entries(left: tuple[int, ...]) -> int:
        inside = prod(table.shape[i] for i in left)
        return inside + table.size // inside

    for left in sorted(halves, key=entries):
        right = tuple(i for i in axes if i not in left)
        matrix = np.transpose(table, (*left, *right)).reshape(prod(table.shape[i] for i in left), -1)
        top = np.unravel_index(int(np.argmax(matrix)), matrix.shape)
        largest = float(matrix[top])
        if largest <= 0:
            return None
        column, row = matrix[:, top[1]] / largest, matrix[top[0]]
        if np.abs(np.outer(column, row) - matrix).max() <= RELATIVE * largest:
            return Split(
                tuple(names[i] for i in left),
                column.reshape([table.shape[i] for i in left]),
                tuple(names[i] for i in right),
                row.reshape([table.shape[i] for i in right]),
            )
    return None
