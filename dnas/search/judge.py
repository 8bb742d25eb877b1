"""How far an estimator can be trusted: on sub-networks that it was not fitted to, beside cost alone, and over pool sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from dnas.search.effects import LEAST, Array, Estimator, fit_effects, pairs_of, part_of, summary
from dnas.search.pool import Pool
from dnas.search.predictors import PREDICTORS, fit_predictor
from dnas.search.rank import rank_agreement
from dnas.space.choice import Space
from dnas.space.conventions import LayerCost
from dnas.space.cost import Cost, build_cost
from dnas.space.latency import LATENCY

SHARES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Of the records, for the ranking over the size of the pool."""
HELD = 0.01
"""How far below the whole pool's tau a smaller one's may be to be said to hold it."""


def costs_of(cost: Cost, pool: Pool) -> NDArray[np.float64]:
    """The cost of every record's sub-network; shape (n,)."""
    return np.array([cost.at(dict(zip(pool.choices, row.tolist(), strict=True))) for row in pool.positions])


def judge_estimator(space: Space, pool: Pool, test: Pool, cost: Cost, neighbours: bool = False) -> dict[str, Any]:
    """Ranking of sub-networks that an estimator was not fitted to by their one-shot accuracy.

    Args:
        space: the space.
        pool: what the estimator is fitted to.
        test: the sub-networks that judge it.
        cost: for the ranking by cost alone, and for the half of the test in the middle of its range.
        neighbours: as in `fit_effects`.

    Returns:
        `held_out`, `cost alone`, `band` and `cost alone in band`: agreement; `sizes`: tau over the number of records;
        `enough`: the smallest of these from which on tau is within HELD of that of all; `predictors`: agreement of learned
        ones; `predicted`, `measured` and `costs`: of the test.
    """
    costs = costs_of(cost, test)
    middle = (costs >= np.quantile(costs, 0.25)) & (costs <= np.quantile(costs, 0.75))
    sizes = []
    for share in SHARES:
        count = int(share * len(pool))
        if count >= LEAST:
            predicted = fit_effects(space, pool.take(slice(count)), neighbours).predict(test.positions)
            sizes.append({"records": count, **asdict(rank_agreement(predicted, test.accuracy))})
    return {
        "held_out": asdict(rank_agreement(predicted, test.accuracy)),
        "cost alone": asdict(rank_agreement(costs, test.accuracy)),
        "band": asdict(rank_agreement(predicted[middle], test.accuracy[middle])),
        "cost alone in band": asdict(rank_agreement(costs[middle], test.accuracy[middle])),
        "predictors": {
            name: asdict(rank_agreement(fit_predictor(name, space, pool)(test.positions), test.accuracy))
            for name in PREDICTORS
        },
        "sizes": sizes, "enough": enough([(entry["records"], entry["tau"]) for entry in sizes]),
        "predicted": predicted.tolist(), "measured": test.accuracy.tolist(), "costs": costs.tolist(),
        "images": int(test.images[0]),
    }  # fmt: skip


def enough(taus: Sequence[tuple[int, float]]) -> int:
    """The least number of records from which on tau stays within HELD of the last, or above it.

    Args:
        taus: numbers of records, ascending, with their taus.
    """
    found = taus[-1][0]
    for records, tau in reversed(taus):
        if tau < taus[-1][1] - HELD:
            break
        found = records
    return found


def report(
    space: Space,
    estimator: Estimator,
    judged: dict[str, Any],
    functions: Mapping[str, LayerCost] | None = None,
    wider: Estimator | None = None,
) -> dict[str, Any]:
    """Everything about an estimator as plain data.

    `joint`: the spread of joint effects of choices that meet in a layer; `neighbours`: of choices of layers that follow each
    other, by `wider`, an estimator that has them.
    Of the effects `saved`, by the name of a cost, is what an option saves against the dearest one: bit operations, and
    microseconds where a table of measured times is among `functions`.
    """
    dearest, effects = space.extreme(dearest=True), summary(space, estimator)
    costs = {
        name: build_cost(space, name, functions)
        for name in ("bops", LATENCY)
        if name == "bops" or name in (functions or {})
    }
    for entry in effects:
        entry["saved"] = {
            name: [cost.at(dearest) - cost.at({**dearest, entry["choice"]: i}) for i in range(len(entry["options"]))]
            for name, cost in costs.items()
        }
    inside = {frozenset(pair) for pair in pairs_of(space)}
    joint = [entry for entry in _joint(space, estimator) if frozenset(entry["choices"]) in inside]
    around = [entry for entry in _joint(space, wider or estimator) if frozenset(entry["choices"]) not in inside]
    return {
        "intercept": estimator.intercept, "r2": estimator.r2, "noise_variance": estimator.noise,
        "misfit_variance": estimator.misfit, "strengths": list(estimator.strengths), "shared": estimator.shared,
        "effects": effects, "joint": joint, "neighbours": around, "findings": findings(space, estimator), "judged": judged,
    }  # fmt: skip


def _joint(space: Space, estimator: Estimator) -> list[dict[str, Any]]:
    """The root mean square of every joint effect, in the order of the layers."""
    return [
        {
            "choices": list(term.choices), "kinds": [space.choice(name).kind for name in term.choices],
            "spread": float(np.sqrt(np.mean(np.square(estimator.table(term)[0])))),
        }
        for term in estimator.design.terms[estimator.design.mains :]
    ]  # fmt: skip


def findings(space: Space, estimator: Estimator) -> list[str]:
    """For every kind of choice a plain sentence: where one more option pays most, if that is more than chance.

    What is compared are the slopes of the effects over a choice's options, by the part of the network that the choice is in;
    two differ if they are further apart than chance alone would put any two of all parts in one case of twenty (Bonferroni).
    """
    slopes: dict[str, dict[str, list[Array]]] = {}
    for term in estimator.design.terms[: estimator.design.mains]:
        choice = space.choice(term.choices[0])
        options = np.asarray(choice.options, dtype=float)
        if choice.kind == "filters":
            options = options / options[-1]
        weights = np.zeros(estimator.design.size)
        weights[term.start : term.start + term.size] = (options - options.mean()) / np.sum(
            (options - options.mean()) ** 2
        )
        slopes.setdefault(choice.kind, {}).setdefault(part_of(choice.name), []).append(weights)
    return [
        _sentence(kind, {part: np.mean(own, 0) for part, own in parts.items()}, estimator)
        for kind, parts in slopes.items()
    ]


UNITS = {
    "weight_bits": ("weight bits pay", "per bit"), "act_bits": ("activation bits pay", "per bit"),
    "filters": ("filters pay", "from none to all of them"), "kernel": ("larger kernels pay", "per step of the side"),
    "depth": ("depth pays", "per block"), "branch": ("optional branches pay", "each"),
}  # fmt: skip
"""What a kind of choice is called, with its verb, and the unit of its slope."""


def _sentence(kind: str, parts: Mapping[str, Array], estimator: Estimator) -> str:
    pays, unit = UNITS.get(kind, (f"{kind} pays", "per option"))
    pays = pays[0].upper() + pays[1:]
    name = pays.rsplit(" ", 1)[0]
    order = sorted(parts, key=lambda part: -estimator.contrast(parts[part])[0])
    best, least = order[0], order[-1]
    slope, error = estimator.contrast(parts[best])
    if len(order) == 1:
        return f"{name}: {slope:+.2f} +- {error:.2f} points {unit} in {best}."
    other, spread = estimator.contrast(parts[least])
    difference, deviation = estimator.contrast(parts[best] - parts[least])
    pairs = len(order) * (len(order) - 1) / 2
    if difference < float(norm.isf(0.025 / pairs)) * deviation:
        return f"{name}: no part of the network differs from another by more than chance."
    return (
        f"{pays} most in {best}: {slope:+.2f} +- {error:.2f} points {unit}; least in {least}: "
        f"{other:+.2f} +- {spread:.2f}."
    )
