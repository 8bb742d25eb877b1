"""Scores measured on few images, shrunk to what choices of one kind have in common (empirical Bayes).

Bits are worth most where there are few, in every layer: a layer's scores are an amount times a curve that all layers share,
plus something of its own. How much of its own to believe follows from how far the layers are from the curve and from how
noisy the measurement is; with many images the scores stay as measured. Without it a selector picks what was overrated.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize_scalar, nnls

from dnas.search.scores import Scores
from dnas.space.choice import Choice, Space

KINDS = ("weight_bits", "act_bits", "filters")
"""Kinds of choices whose options are amounts of the same thing."""
LEAST = 4
"""Choices of a kind, and options of a choice, that a common curve needs: three or more lie too well on any curve."""
TURNS = 50
"""Of fitting the amounts and the curve in turn; they converge in a few."""

Array = NDArray[np.float64]


def shrunk(scores: Scores, errors: Mapping[str, Sequence[float]], space: Space) -> Scores:
    """Scores nearer to the truth than what was measured, on average over a kind's choices.

    Args:
        scores: as measured.
        errors: standard error of every option's score; choices that are missing are left as they are, and those without any
            error: of their layers nothing was measured.
        space: their space.

    Returns:
        the posterior means of a normal model whose spread around the common curve has the highest marginal likelihood;
        choices of other kinds, of fewer than LEAST options, or of a ladder that fewer than LEAST choices share, as measured.
    """
    ladders: dict[tuple[str, tuple[int, ...]], list[Choice]] = {}
    for choice in space.searched():
        if choice.kind in KINDS and any(errors.get(choice.name, ())) and len(choice.options) >= LEAST:
            ladders.setdefault((choice.kind, _amounts(choice)), []).append(choice)
    values = dict(scores.values)
    for choices in ladders.values():
        if len(choices) < LEAST:
            continue
        seen = np.array([scores.values[choice.name] for choice in choices])
        variances = np.square([errors[choice.name] for choice in choices])
        for choice, row in zip(choices, posterior(seen, variances), strict=True):
            values[choice.name] = tuple((row - row[-1]).tolist())
    return Scores(values, scores.method, scores.joint)


def _amounts(choice: Choice) -> tuple[int, ...]:
    """What options are amounts of: bits, or eighths of the most filters, as groups of other sizes round to."""
    if choice.kind != "filters":
        return tuple(int(option) for option in choice.options)
    return tuple(round(8 * option / choice.options[-1]) for option in choice.options)


def posterior(seen: Array, variances: Array) -> Array:
    """Posterior means of rows that are alike; shape (rows, options), as `seen` and `variances` are.

    The fit has taken an offset and an amount of every row, and the curve but for its ends, out of the squares that are left:
    they stand for as many as there were.
    """
    curves = common_curve(seen)
    rows, options = seen.shape
    own = np.square(seen - curves) * rows * options / ((rows - 1) * (options - 2))
    if not own.max() > 0:
        return seen

    def surprise(log_spread: float) -> float:
        total = np.exp(2 * log_spread) + variances
        return float(np.sum(np.log(total) + own / total))

    largest = 0.5 * np.log(own.max())
    spread = np.exp(2 * minimize_scalar(surprise, bounds=(largest - 12, largest + 1), method="bounded").x)
    return curves + (seen - curves) * spread / (spread + variances)


def common_curve(seen: Array) -> Array:
    """The least-squares fit of rows by (offset - amount * curve): one falling curve, amounts not negative."""
    count = seen.shape[1]
    curve = np.linspace(1.0, 0.0, count)
    offsets, amounts = np.zeros(len(seen)), np.zeros(len(seen))
    for _ in range(TURNS):
        columns = np.stack([np.ones(count), -np.ones(count), -curve], 1)
        found = np.array([nnls(columns, row)[0] for row in seen])
        offsets, amounts = found[:, 0] - found[:, 1], found[:, 2]
        if not np.square(amounts).sum() > 0:
            break
        wanted = (amounts[:, None] * (offsets[:, None] - seen)).sum(0) / np.square(amounts).sum()
        curve = isotonic_regression(wanted, increasing=False).x
        curve = (curve - curve[-1]) / max(curve[0] - curve[-1], 1e-12)
    fitted: Array = offsets[:, None] - amounts[:, None] * curve
    return fitted
