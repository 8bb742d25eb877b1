"""How well one ordering of networks agrees with another: Kendall's tau and Spearman's rho, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Compares two numbers per network.

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
    taus, rhos = [], []
    for _ in range(BOOTSTRAPS):
        rows = generator.integers(0, len(a), len(a))
        taus.append(float(stats.kendalltau(a[rows], b[rows]).statistic))
        rhos.append(float(stats.spearmanr(a[rows], b[rows]).statistic))
    edges = [tuple(float(v) for v in np.nanpercentile(values, (2.5, 97.5))) for values in (taus, rhos)]
    return Agreement(
        len(a), float(stats.kendalltau(a, b).statistic), (edges[0][0], edges[0][1]),
        float(stats.spearmanr(a, b).statistic), (edges[1][0], edges[1][1]), float(np.corrcoef(a, b)[0, 1] ** 2),
    )  # fmt: skip
