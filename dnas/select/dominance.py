"""Which of many labels are efficient: no other of the same group costs no more of everything and is worth as much."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Numbers = NDArray[np.float64]


def efficient(groups: Indices, costs: Numbers, values: Numbers) -> Indices:
    """The indices of the efficient labels, sorted by group.

    Sorted by the first cost, a label is dominated where the running maximum of the values before it reaches its own.
    Every further cost adds a divide and conquer over its ranks, bit by bit: exact, O(n log^R n) for R costs.

    Args:
        groups: labels of different groups are not compared; shape (n,), not negative.
        costs: shape (n, R).
        values: shape (n,).
    """
    if len(groups) == 0:
        return np.empty(0, dtype=np.int64)
    keys = [-values, *(costs[:, r] for r in reversed(range(costs.shape[1]))), groups]
    order = np.lexsort(keys)
    group = groups[order]
    if costs.shape[1] == 0:
        return order[np.append(True, group[1:] != group[:-1])]
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    lengths = np.diff(np.append(starts, len(group)))
    number = np.repeat(np.arange(len(starts)), lengths)
    worth = np.unique(values[order], return_inverse=True)[1].astype(np.int64)
    ranks = [_ranks(costs[order, r], number, starts, lengths) for r in range(1, costs.shape[1])]
    everyone = np.ones(len(order), dtype=bool)
    return order[~_dominated(number, ranks, worth, everyone, everyone)]


def _ranks(cost: Numbers, number: Indices, starts: Indices, lengths: Indices) -> Indices:
    """Ranks within the groups, ties in the order in which the labels stand."""
    found = np.empty(len(cost), dtype=np.int64)
    found[np.lexsort([cost, number])] = np.arange(len(cost)) - np.repeat(starts, lengths)
    return found


def _dominated(
    number: Indices, ranks: Sequence[Indices], worth: Indices, source: NDArray[np.bool_], target: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which targets some earlier source of the same number, lower in every rank, is worth as much as."""
    if not ranks:
        return _below_running_maximum(number, worth, source, target)
    found = np.zeros(len(number), dtype=bool)
    first, rest = ranks[0], ranks[1:]
    for bit in range(int(first.max(initial=0)).bit_length()):
        high = (first >> bit & 1).astype(bool)
        taken = np.flatnonzero((source & ~high) | (target & high & ~found))
        if not len(taken):
            continue
        block = first[taken] >> (bit + 1)
        part = number[taken] * (int(block.max()) + 1) + block
        order = np.argsort(part, kind="stable")
        chosen, part = taken[order], part[order]
        part = np.cumsum(np.append(0, part[1:] != part[:-1]))
        up = high[chosen]
        found[chosen] |= _dominated(
            part, [rank[chosen] for rank in rest], worth[chosen], source[chosen] & ~up, target[chosen] & up
        )
    return found


def _below_running_maximum(
    number: Indices, worth: Indices, source: NDArray[np.bool_], target: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Equal numbers stand together; `worth` are ranks of values, so that one maximum runs over all of them in integers."""
    step = int(worth.max()) + 2
    place = np.cumsum(np.append(0, number[1:] != number[:-1])) * step
    reached = np.maximum.accumulate(place + np.where(source, worth + 1, 0))
    before = np.append(0, reached[:-1])
    return target & (before >= place + worth + 1)
