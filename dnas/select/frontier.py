"""What single filters decide, as a few choices per layer: the best score for each total width and each number of filters.

Of all ways to give the filters of a layer their widths, only those on the frontier of (total width, score) matter to a
cost that adds up over filters. A price per bit and filter picks them: at price p every filter takes the option of largest
score - p * bits. Levels are such prices; at the same price, the filters of any subset are on the frontier of that subset.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnas.search.scores import Scores
from dnas.space.choice import Choice


@dataclass(frozen=True)
class Levels:
    """The widths of all filters (or channels) of one choice at falling prices.

    taken: option of every decision, shape (levels, decisions): the cheapest of all first, the dearest of all last.
    scores: of every decision at every level, shape (levels, decisions), the dearest option's taken as 0.
    channels: how many filters (channels) there are.
    """

    choice: Choice
    taken: NDArray[np.int64]
    scores: NDArray[np.float64]
    channels: int

    @staticmethod
    def of(choice: Choice, bits: Sequence[int], rows: Sequence[Sequence[float]], most: int, channels: int) -> "Levels":
        """At most `most` levels, evenly spread over the total width of all channels, both ends among them."""
        values = np.asarray(rows, dtype=np.float64)
        values = values - values[:, -1:]
        widths = np.outer(block_sizes(choice, channels), np.asarray(bits, dtype=np.float64))
        wider = widths[:, :, None] - widths[:, None, :]
        slopes = (values[:, :, None] - values[:, None, :]) / np.where(wider > 0, wider, np.inf)
        prices = np.unique(np.concatenate([[0.0], slopes[slopes > 0]]))[::-1]
        tried = np.concatenate([[prices[0] * 2 + 1.0], (prices[:-1] + prices[1:]) / 2, [prices[-1] / 2 - 1e-12, -1e12]])
        taken = np.stack([np.argmax(values - price * widths, axis=1) for price in tried])
        total = _total(widths, taken)
        keep = np.unique(np.searchsorted(total, np.linspace(total[0], total[-1], max(most, 2))))
        return Levels._at(choice, taken[np.minimum(keep, len(taken) - 1)], values, widths, channels)

    @staticmethod
    def _at(
        choice: Choice,
        taken: NDArray[np.int64],
        values: NDArray[np.float64],
        widths: NDArray[np.float64],
        channels: int,
    ) -> "Levels":
        """These levels, each once, the narrowest first."""
        taken = np.unique(taken, axis=0)
        taken = taken[np.argsort(_total(widths, taken), kind="stable")]
        return Levels(choice, taken, np.take_along_axis(values, taken.T, axis=1).T, channels)

    def within(
        self, bits: Sequence[int], rows: Sequence[Sequence[float]], most: int, legal: set[tuple[int, ...]]
    ) -> "Levels":
        """With the levels that subsets of the options have by themselves: a width that is legal may be on no frontier of all.

        Args:
            bits: as for `of`.
            rows: as for `of`.
            most: as for `of`, in each subset.
            legal: subsets of the options, by position.
        """
        values = np.asarray(rows, dtype=np.float64)
        values = values - values[:, -1:]
        parts = [self.taken]
        for options in legal:
            kept = list(options)
            own = Levels.of(self.choice, [bits[i] for i in kept], values[:, kept].tolist(), most, self.channels)
            parts.append(np.asarray(kept)[own.taken])
        widths = np.outer(block_sizes(self.choice, self.channels), np.asarray(bits, dtype=np.float64))
        return Levels._at(self.choice, np.concatenate(parts), values, widths, self.channels)

    def per_channel(self, channels: Sequence[int]) -> NDArray[np.int64]:
        """The option of these filters at every level; shape (levels, channels)."""
        return self.taken[:, np.asarray(channels) // self.choice.block]


def _total(widths: NDArray[np.float64], taken: NDArray[np.int64]) -> NDArray[np.float64]:
    """The total width at every level, from those of every decision's options; shape (levels,)."""
    found: NDArray[np.float64] = np.take_along_axis(widths, taken.T, axis=1).sum(0)
    return found


def ranking(scores: Scores, choice: Choice) -> NDArray[np.int64]:
    """The decisions of a group in the order in which they are kept: the largest benefit first."""
    rows = np.asarray(scores.rows(choice))
    return np.argsort(rows[:, 0] - rows[:, 1], kind="stable")


def kept_at(choice: Choice, order: NDArray[np.int64], count: int, size: int) -> NDArray[np.bool_]:
    """Which of `size` channels stay where `count` do, the first in the order; shape (size,).

    A last block that is shorter than the others only stays where all do.
    """
    if count == size:
        return np.ones(size, dtype=bool)
    whole = [i for i in order if (i + 1) * choice.block <= size]
    kept = np.zeros(choice.count, dtype=bool)
    kept[whole[: count // choice.block]] = True
    return np.repeat(kept, choice.block)[:size]


def block_sizes(choice: Choice, size: int) -> NDArray[np.float64]:
    """How many channels every decision stands for; shape (decisions,)."""
    return np.minimum(choice.block, size - choice.block * np.arange(choice.count)).astype(np.float64)
