"""How well one ordering of networks agrees with another: Kendall's tau and Spearman's rho, with bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAPS = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """tau: Kendall's tau-b; spearman: rank correlation; r2: squared Pearson correlation; intervals: of 95 %."""

    n: int
    tau: float
    tau_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]
    r2: float


def rank_agreement(predicted: Sequence[float] | Array, measured: Sequence[float] | Array, seed: int = 0) -> Agreement:
    """Compares two numbers per network; numbers that are all equal agree with none (0).

    Args:
        predicted: shape (n,).
        measured: shape (n,).
        seed: of the bootstrap, which draws networks.

    Raises:
        ValueError: fewer than 3 networks, or different numbers of them.
    """
    a, b = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"rank_agreement: {len(a)} and {len(b)} numbers; needed are 3 or more, equally many")
    generator = np.random.default_rng(seed)
    draws = np.stack([generator.integers(0, len(a), len(a)) for _ in range(BOOTSTRAPS)])
    drawn = kendall_of_draws(a, b, draws), spearman_of_draws(a, b, draws)
    edges = [tuple(float(v) for v in np.percentile(values, (2.5, 97.5))) for values in drawn]
    return Agreement(
        len(a), _statistic(stats.kendalltau, a, b), (edges[0][0], edges[0][1]), _statistic(stats.spearmanr, a, b),
        (edges[1][0], edges[1][1]), _statistic(stats.pearsonr, a, b) ** 2,
    )  # fmt: skip


def _statistic(measure: Callable[[Array, Array], Any], a: Array, b: Array) -> float:
    """Of two rows of numbers; 0 where all of one are equal, which orders nothing."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(measure(a, b).statistic)


def kendall_of_draws(a: Array, b: Array, draws: NDArray[np.int64]) -> Array:
    """Tau-b of every draw of networks, from how often it has each: the correlation of the signs of all differences.

    Args:
        a, b: numbers of the networks, shape (n,).
        draws: networks of every draw, shape (draws, n).
    """
    counts = np.stack([np.bincount(rows, minlength=len(a)) for rows in draws]).astype(float)
    one, other = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    both, first, second = (((counts @ signs) * counts).sum(axis=1) for signs in (one * other, one**2, other**2))
    return _ratios(both, np.sqrt(first * second))


def spearman_of_draws(a: Array, b: Array, draws: NDArray[np.int64]) -> Array:
    """Spearman's rho of every draw; arguments as of `kendall_of_draws`."""
    one, other = (stats.rankdata(values[draws], axis=1) - (draws.shape[1] + 1) / 2 for values in (a, b))
    return _ratios((one * other).sum(axis=1), np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))


def _ratios(numbers: Array, norms: Array) -> Array:
    """0 where the norm is, as nothing is ordered there."""
    return np.divide(numbers, norms, out=np.zeros_like(numbers), where=norms > 0)
