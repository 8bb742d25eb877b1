"""BINAS' accuracy estimator: what every option adds to the expected accuracy, and how sure that is.

The paper measures one conditional mean per option. Here one pool of records gives all effects at once: effect-coded ridge
regression, the first orders of the ANOVA decomposition of accuracy under the distribution that sub-networks are drawn from.
Its prior knows that choices are alike, of one kind, in one part of the network or in one role: what they have in common is
learned from all of them (a mixed model: Searle et al. 1992), so that fewer records do.
The effect of a choice inside a block that may be left out counts only where the block runs, as in the paper's bilinear form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnas.search.pool import Pool
from dnas.search.scores import Scores, nested
from dnas.space.choice import Space

STRENGTHS, RATIOS = np.logspace(-2, 5, 29), (1.0, 16.0, 1e4)
"""Of the ridge penalty on main effects, and how much more joint ones are penalised: tried by leaving one record out."""
SHARES = (0.0, 10.0, 100.0)
"""Prior variances of what choices have in common, in those of their own main effects: tried in the same way."""
LEAST = 20
"""Records that an estimator can be fitted to."""
AVERAGED, LEAST_WEIGHT = 12, 0.01
"""Pairs of strengths that effects and errors are averaged over at most, and the weight below which one is left out."""
FREE = 1e5
"""How much less than a main effect the mean of a batch of images is penalised."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """The effect of a choice (one name) or the joint effect of two, within the blocks that they are in.

    gates: (choice, least position) that all must hold for the term to count. centre: for every choice of the term the share
    of records at each option, of those in which the gates are open. start: of its columns; shape: options per choice.
    """

    choices: tuple[str, ...]
    gates: tuple[tuple[str, int], ...]
    centre: tuple[Array, ...]
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many columns it has."""
        return int(np.prod(self.shape))


def pairs_of(space: Space, neighbours: bool = False) -> list[tuple[str, str]]:
    """The searched choices that meet in a layer, and optionally those of layers that follow each other."""
    found: dict[tuple[str, str], None] = {}
    last: list[str] = []
    for layer in space.layers:
        names = [space.groups[g].choice for g in (*layer.inputs.counts, *layer.outputs.counts)]
        names += [layer.weight_choice, layer.act_choice, *([layer.kernel_choice] if layer.kernel_choice else [])]
        own = [name for name in dict.fromkeys(names) if space.choice(name).searched]
        pairs = list(combinations(own, 2)) + ([(a, b) for a in last for b in own if a != b] if neighbours else [])
        for a, b in pairs:
            found[min(a, b), max(a, b)] = None
        last = own
    return list(found)


class Design:
    """The columns of the regression for any positions."""

    def __init__(self, space: Space, pool: Pool, pairs: Sequence[tuple[str, str]]) -> None:
        """Lays out the terms and takes their centres from the pool."""
        self.choices = pool.choices
        self.column = {name: i for i, name in enumerate(pool.choices)}
        gates = space.gates_by_choice()
        self.terms: list[Term] = []
        start = 0
        wanted: list[tuple[str, ...]] = [(choice.name,) for choice in space.searched()]
        wanted += list(pairs)
        self.mains = len(list(space.searched()))
        for names in wanted:
            own = tuple(dict.fromkeys(gate for name in names for gate in gates.get(name, ())))
            own = tuple(gate for gate in own if gate[0] not in names)
            opened = self._opened(pool.positions, own)
            shape = tuple(len(space.choice(name).options) for name in names)
            centre = tuple(
                np.bincount(pool.positions[opened, self.column[name]], minlength=size) / max(int(opened.sum()), 1)
                for name, size in zip(names, shape, strict=True)
            )
            self.terms.append(Term(names, own, centre, start, shape))
            start += self.terms[-1].size
        self.size = start

    def _opened(self, positions: NDArray[np.int64], gates: Iterable[tuple[str, int]]) -> NDArray[np.bool_]:
        opened = np.ones(len(positions), dtype=bool)
        for name, least in gates:
            opened &= positions[:, self.column[name]] >= least
        return opened

    def common(self, space: Space) -> Array:
        """Which main effects share what: shape (columns of main effects, shared effects), 0 or 1.

        An option shares an effect with that of the same number of all choices of its kind, another one with those of them
        in the same part of the network, and one with those in the same role there.
        """
        shared: dict[tuple[Any, ...], int] = {}
        entries = []
        for term in self.terms[: self.mains]:
            choice = space.choice(term.choices[0])
            for option in range(term.size):
                own = (choice.kind, term.size, option)
                for family in ((), ("part", part_of(choice.name)), ("role", role_of(choice.name))):
                    column = shared.setdefault((*family, *own), len(shared))
                    entries.append((term.start + option, column))
        found = np.zeros((self.terms[self.mains - 1].start + self.terms[self.mains - 1].size, len(shared)))
        found[tuple(np.array(entries).T)] = 1.0
        return found

    def matrix(self, positions: NDArray[np.int64]) -> Array:
        """Shape (n, columns), from positions of shape (n, choices)."""
        found = np.zeros((len(positions), self.size))
        for term in self.terms:
            value = self._opened(positions, term.gates).astype(float)[:, None]
            for name, centre in zip(term.choices, term.centre, strict=True):
                coded = np.eye(len(centre))[positions[:, self.column[name]]] - centre
                value = (value[:, :, None] * coded[:, None, :]).reshape(len(positions), -1)
            found[:, term.start : term.start + term.size] = value
        return found


def part_of(name: str) -> str:
    """The part of the network that a choice is in: its path up to the first number, and that number."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return parts[0]


def role_of(name: str) -> str:
    """What a choice is to its block: its path with a star for every number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


@dataclass(frozen=True)
class Estimator:
    """Expected accuracy (%) of any architecture of a space.

    intercept: the mean accuracy of the pool. effects and errors: shape (columns,), an option's effect and its standard
    error, of the posterior under the prior, averaged over the strengths by how well they predict left-out records. Effects
    are shrunk towards 0, which errors do not cover: the mean of many choices may be too small by more than its error.
    covariance: of the main effects less their mean over the options, shape (columns, columns) of these. noise: variance of a
    record that its images explain; misfit: the rest of the residual variance; r2: of the left-out predictions. strengths: of
    the penalty on main and on joint effects; shared: prior variance of what choices have in common, in that of their own
    effects.
    """

    design: Design
    intercept: float
    effects: Array
    errors: Array
    covariance: Array
    noise: float
    misfit: float
    r2: float
    strengths: tuple[float, float]
    shared: float

    def predict(self, positions: NDArray[np.int64]) -> Array:
        """Expected accuracy, shape (n,), at positions of shape (n, choices)."""
        return self.intercept + self.design.matrix(positions) @ self.effects

    def contrast(self, weights: Array) -> tuple[float, float]:
        """A weighted sum of main effects and its standard error; weights of shape (columns,), 0 at joint effects."""
        mains = weights[: len(self.covariance)]
        variance = float(mains @ self.covariance @ mains)
        return float(weights @ self.effects), max(variance, 0.0) ** 0.5

    def table(self, term: Term) -> tuple[Array, Array]:
        """Effects and standard errors of a term, shape as the term's: centred as they enter the prediction."""
        columns = slice(term.start, term.start + term.size)
        effects, errors = self.effects[columns].reshape(term.shape), self.errors[columns].reshape(term.shape)
        for axis, centre in enumerate(term.centre):
            mean = np.tensordot(centre, effects, (0, axis))
            effects = effects - np.expand_dims(mean, axis)
        return effects, errors

    def scores(self, space: Space) -> Scores:
        """A table for the selector: the sum of its entries is the prediction, up to a constant."""
        values: dict[str, tuple[Any, ...]] = {choice.name: (0.0,) * len(choice.options) for choice in space.choices}
        joint: dict[tuple[str, ...], Array] = {}
        for term in self.design.terms:
            effects, _ = self.table(term)
            names = (*term.choices, *dict.fromkeys(name for name, _ in term.gates))
            table = effects
            for name in names[len(term.choices) :]:
                least = max(least for gate, least in term.gates if gate == name)
                opened = (np.arange(len(space.choice(name).options)) >= least).astype(float)
                table = table[..., None] * opened
            if len(names) == 1:
                values[names[0]] = tuple((np.asarray(values[names[0]]) + table).tolist())
            else:
                joint[names] = joint.get(names, np.zeros(table.shape)) + table
        return Scores(values, "binas", tuple((names, nested(table.tolist())) for names, table in joint.items()))


def fit_effects(space: Space, pool: Pool, neighbours: bool = False) -> Estimator:
    """Fits the estimator to a pool.

    Args:
        space: the space, without choices by filter.
        pool: its records; batches of images differ in difficulty, which is taken out.
        neighbours: joint effects of layers that follow each other as well as those within layers.

    Raises:
        ValueError: fewer than LEAST records.
    """
    if len(pool) < LEAST:
        raise ValueError(f"a pool of {len(pool)} records; an estimator needs {LEAST} or more (search.pool)")
    design = Design(space, pool, pairs_of(space, neighbours))
    x, y = design.matrix(pool.positions), pool.accuracy - pool.accuracy.mean()
    common = design.common(space)
    mains = len(common)
    alike = x[:, :mains] @ common
    main, other, shared = x[:, :mains] @ x[:, :mains].T, x[:, mains:] @ x[:, mains:].T, alike @ alike.T
    batches = FREE * (pool.batch[:, None] == pool.batch[None, :])
    priors = list(product(RATIOS, SHARES))
    spectra = {prior: np.linalg.eigh(main + other / prior[0] + prior[1] * shared + batches) for prior in priors}
    fits = sorted(fit for prior, spectrum in spectra.items() for fit in _ridges(spectrum, y, prior))
    likely = np.array([(fits[0][0] / max(fit[0], 1e-300)) ** (len(y) / 2) for fit in fits[:AVERAGED]])
    likely = np.where(likely < LEAST_WEIGHT * likely.sum(), 0.0, likely)
    likely /= likely.sum()
    effects, variances, residual = np.zeros(design.size), np.zeros(design.size), 0.0
    covariance, each = np.zeros((mains, mains)), []
    for weight, (_, strength, (ratio, share)) in zip(likely, fits, strict=False):
        if weight == 0.0:
            continue
        values, vectors = spectra[ratio, share]
        kept = 1.0 / (np.maximum(values, 0.0) / strength + 1.0)
        alpha = vectors @ (kept * (vectors.T @ y))  # what is left of y, as (kernel + 1) alpha = y
        own = float(np.sum(alpha**2) / max(kept.sum(), 1.0))
        scaled = x * np.where(
            np.arange(design.size) < mains, 1.0, 1.0 / ratio
        )  # the records times the prior covariance
        scaled[:, :mains] += share * alike @ common.T
        turned = np.sqrt(kept)[:, None] * (vectors.T @ scaled)
        found = scaled.T @ alpha / strength
        known = turned[:, :mains].T @ turned[:, :mains] / strength
        covariance += weight * own * (np.eye(mains) + share * common @ common.T - known) / strength
        variances[mains:] += (
            weight * own * np.maximum(1.0 / ratio - np.square(turned[:, mains:]).sum(0) / strength, 0.0) / strength
        )
        effects += weight * found
        each.append((weight, found))
        residual += weight * own
    for weight, found in each:
        covariance += weight * np.outer((found - effects)[:mains], (found - effects)[:mains])
        variances[mains:] += weight * (found - effects)[mains:] ** 2
    centring = np.eye(mains)  # what shifts all options of a choice alike says nothing, and no record knows it
    for term in design.terms[: design.mains]:
        columns = slice(term.start, term.start + term.size)
        centring[columns, columns] -= term.centre[0]
    covariance = centring @ covariance @ centring.T
    variances[:mains] = np.maximum(np.diag(covariance), 0.0)
    errors = np.sqrt(variances)
    rate = pool.accuracy / 100
    noise = float(np.mean(1e4 * rate * (1 - rate) / pool.images))
    r2 = 1.0 - fits[0][0] / max(float(np.var(y)), 1e-12)
    return Estimator(
        design, float(pool.accuracy.mean()), effects, errors, covariance, noise, max(0.0, residual - noise), r2,
        (fits[0][1], fits[0][1] * fits[0][2][0]), fits[0][2][1],
    )  # fmt: skip


def _ridges(
    spectrum: tuple[Array, Array], y: Array, prior: tuple[float, float]
) -> list[tuple[float, float, tuple[float, float]]]:
    """(mean squared error of predictions that leave a record out, strength, prior) of every strength."""
    values, vectors = spectrum
    turned = vectors.T @ y
    found = []
    for strength in STRENGTHS:
        kept = 1.0 / (np.maximum(values, 0.0) / strength + 1.0)
        # y minus its prediction from all other records
        missed = (vectors @ (kept * turned)) / (np.square(vectors) @ kept)
        found.append((float(np.mean(missed**2)), float(strength), prior))
    return found


def summary(space: Space, estimator: Estimator) -> list[dict[str, Any]]:
    """The main effects as plain data: choice, kind, options, effects, errors; for reports.

    `loss_errors`: of the difference between the last option's effect and each one's.
    """
    each = np.eye(estimator.design.size)
    return [
        {
            "choice": term.choices[0], "kind": space.choice(term.choices[0]).kind,
            "options": list(space.choice(term.choices[0]).options),
            "effects": estimator.table(term)[0].tolist(), "errors": estimator.table(term)[1].tolist(),
            "loss_errors": [
                estimator.contrast(each[term.start + term.size - 1] - each[term.start + i])[1] for i in range(term.size)
            ],
        }
        for term in estimator.design.terms[: estimator.design.mains]
    ]  # fmt: skip
