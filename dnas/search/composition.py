"""Widths by filter as a composition: a layer learns which share of its filters gets each width, their order says which.

The relaxation of Zur's thesis, with two repairs: filters are taken by sensitivity instead of by index, and shares are
rounded by largest remainder instead of giving all that is left to the widest option.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dnas.search.relax import Relaxation, probabilities, straight_through


class Composition:
    """Maps rows of logits to decisions: layers that learn a composition have one row for all of their filters."""

    def __init__(self, composed: Sequence[slice], decisions: int) -> None:
        """Lays out the rows.

        Args:
            composed: the decisions of every choice that is a composition.
            decisions: of all choices.
        """
        inside = {i for rows in composed for i in range(rows.start, rows.stop)}
        starts = {rows.start: rows.stop - rows.start for rows in composed}
        row_of, counts = [], []
        for i in range(decisions):
            if i not in inside or i in starts:
                counts.append(starts.get(i, 0))
            row_of.append(len(counts) - 1)
        self.rows = len(counts)
        self._row_of = torch.tensor(row_of, dtype=torch.int64)
        self._first = torch.tensor([i for i in range(decisions) if i not in inside or i in starts], dtype=torch.int64)
        self._counts = torch.tensor(counts, dtype=torch.float32)
        self._composed = list(composed)

    def row_of(self, decision: int) -> int:
        """The row of the logits that a decision follows."""
        return int(self._row_of[decision])

    def first(self, matrix: Tensor) -> Tensor:
        """The rows of a matrix of decisions that stand for the rows of the logits."""
        return matrix.index_select(0, self._first.to(matrix.device))

    def sample(self, logits: Tensor, relaxation: Relaxation, temperature: float, noise: Tensor) -> Tensor:
        """Weights of the rows' options, shape (rows, K): shares of the filters, or weights of one decision.

        Shares of n filters vary as those of a multinomial sample do: the noise is divided by the root of n.
        """
        if relaxation.mode == "softmax":
            return probabilities(logits, temperature)
        counts = self._counts.to(logits.device).unsqueeze(1)
        noise = noise.to(logits.device)
        single = probabilities(logits + noise, temperature)
        shares = probabilities(logits + noise / counts.clamp_min(1.0).sqrt(), 1.0)
        return torch.where(counts > 0, shares, single)

    def expand(self, weights: Tensor, places: Tensor, exists: Tensor, hard: bool) -> Tensor:
        """Weights of every decision's options, shape (decisions, K).

        The filter at place s of n (the most sensitive at 0) takes the options that [s / n, (s + 1) / n] meets when the
        shares are laid end to end, the widest option first.

        Args:
            weights: shape (rows, K).
            places: shape (decisions,).
            exists: which options a decision has; shape (decisions, K).
            hard: one option per decision, gradients straight through.
        """
        row_of = self._row_of.to(weights.device)
        found = weights.index_select(0, row_of)
        n = self._counts.to(weights.device).index_select(0, row_of).unsqueeze(1)
        upper = found.flip(1).cumsum(1).flip(1)  # laid end to end from the last option on
        start, length = places.unsqueeze(1) / n.clamp_min(1.0), 1.0 / n.clamp_min(1.0)
        meets = (torch.minimum(upper, start + length) - torch.maximum(upper - found, start)).clamp_min(0.0) * n
        meets = meets / meets.sum(1, keepdim=True).clamp_min(1e-12)
        soft = torch.where(n > 0, meets, found)
        if not hard:
            return soft
        marked = soft.detach().masked_fill(~exists, -1.0).argmax(1)
        return straight_through(soft, torch.nn.functional.one_hot(marked, soft.shape[1]).to(soft.dtype))

    def rounded(self, shares: Tensor, places: Tensor, chances: Tensor) -> Tensor:
        """The chances with those of compositions replaced by whole filters, rounded by largest remainder."""
        chances = chances.clone()
        for rows in self._composed:
            row = self.row_of(rows.start)
            counts = largest_remainder(shares[row].tolist(), rows.stop - rows.start)
            widths = [option for option in reversed(range(len(counts))) for _ in range(counts[option])]
            own = torch.tensor(widths, device=chances.device)[places[rows]]
            chances[rows] = torch.nn.functional.one_hot(own, chances.shape[1]).to(chances.dtype)
        return chances


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to shares (which add up to 1) that add up to `total`; ties go to the later share."""
    exact = [share * total for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (exact[i] - counts[i], i), reverse=True)
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
