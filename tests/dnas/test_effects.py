"""The accuracy estimator on synthetic accuracies whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from dnas.models import elastic_mobilenet
from dnas.search import effects
from dnas.search.budget import Budget
from dnas.search.classical import conditional_means
from dnas.search.effects import fit_effects, pairs_of
from dnas.search.pool import Pool
from dnas.search.rank import kendall_of_draws, rank_agreement, spearman_of_draws
from dnas.search.sampling import draw
from dnas.search.scores import Scores
from dnas.select.program import enumerate_positions
from dnas.select.select import select
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from tests.networks import Residual, example

Truth = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def elastic() -> Space:
    torch.manual_seed(0)
    model = elastic_mobilenet(
        3, 5, stem=(8, 8), stem_stride=1, stages=(8, 12), strides=(1, 2), depth=3, expansion=4, last=(16, 16)
    )
    return build_space(
        model.eval(), torch.randn(2, 3, 8, 8), (2, 8), (4,), {"*.expand.0": (0.5, 1.0)}, kernels=(3, 5), min_depth=1,
        branches=("*.se",),
    )  # fmt: skip


def small() -> Space:
    torch.manual_seed(0)
    return build_space(
        Residual(), example(Residual()), (2, 8), (2, 8), (0.5, 1.0), exclude=("c", "d", "short", "head.*")
    )


def truth(space: Space, seed: int = 0, joint: float = 0.0) -> Truth:
    """70 plus an effect per option, only where its block runs, plus products of options that meet in a layer."""
    generator = np.random.default_rng(seed)
    gates = space.gates_by_choice()
    column = {choice.name: i for i, choice in enumerate(space.choices)}
    effects = {c.name: np.sort(generator.normal(0, 1, len(c.options))) for c in space.searched()}
    pairs = {
        names: joint * generator.normal(0, 1, [len(space.choice(n).options) for n in names])
        for names in pairs_of(space)
    }

    def value(positions: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.full(len(positions), 70.0)
        for names, table in [*(((name,), effect) for name, effect in effects.items()), *pairs.items()]:
            opened = np.ones(len(positions), dtype=bool)
            for name in names:
                for gate, least in gates.get(name, ()):
                    opened &= positions[:, column[gate]] >= least
            found += opened * table[tuple(positions[:, column[name]] for name in names)]
        return found

    return value


def pool(space: Space, value: Truth, n: int, seed: int, noise: float = 0.0, spread: float = 0.0) -> Pool:
    generator = np.random.default_rng(seed)
    positions = draw([np.zeros(len(c.options)) for c in space.choices], 0.0, generator, n)
    batch = np.arange(n) % 8
    accuracy = value(positions) + noise * generator.normal(size=n) + spread * generator.normal(size=8)[batch]
    names = tuple(choice.name for choice in space.choices)
    return Pool(names, positions, accuracy, batch, np.full(n, 512))


@pytest.mark.parametrize(("make", "joint"), [(elastic, 0.0), (elastic, 0.3), (small, 0.5)])
def test_without_noise_the_prediction_is_the_truth(make: Callable[[], Space], joint: float) -> None:
    space = make()
    value = truth(space, joint=joint)
    estimator = fit_effects(space, pool(space, value, 1500, 0, spread=3.0))
    test = pool(space, value, 300, 1)
    error = estimator.predict(test.positions) - test.accuracy
    assert float(np.std(error)) < (0.1 if joint else 0.05) * float(np.std(test.accuracy))  # the ridge shrinks
    assert estimator.r2 > 0.98


def test_scores_add_up_to_the_prediction() -> None:
    space = elastic()
    estimator = fit_effects(space, pool(space, truth(space, joint=0.3), 400, 0, noise=0.5), neighbours=True)
    scores = estimator.scores(space)
    scores.check(space)
    assert Scores.from_json(scores.to_json()) == scores
    positions = pool(space, truth(space), 200, 3).positions
    predicted, added = estimator.predict(positions), scores.of(space, positions)
    assert np.abs((predicted - predicted[0]) - (added - added[0])).max() < 1e-9


def test_selection_with_joint_scores_is_that_of_enumeration() -> None:
    space = small()
    scores = fit_effects(space, pool(space, truth(space, joint=1.0), 400, 0, noise=0.5)).scores(space)
    assert scores.joint
    names = [choice.name for choice in space.choices]
    every = list(enumerate_positions(space))
    values = scores.of(space, np.array([[p[name] for name in names] for p in every]))
    for share in (0.3, 0.45, 0.7):
        budget = Budget(bops=share)
        found = select(scores, space, budget)
        limit = budget.limits(space)["bops"]
        cost = build_cost(space, "bops")
        best = max(v for v, p in zip(values, every, strict=True) if cost.at(p) <= limit)
        assert found.certificate is not None
        assert found.certificate.value == pytest.approx(best, abs=1e-5)
        assert found.certificate.bound >= best - 1e-9


def test_effects_lie_within_their_standard_errors() -> None:
    """Of the contrasts between the two options of a choice, about 95 % within 1.96 errors, over pools."""
    space = elastic()
    value = truth(space)
    inside, count = 0, 0
    for seed in range(6):
        estimator = fit_effects(space, pool(space, value, 600, 10 + seed, noise=2.0))
        for term in estimator.design.terms[: estimator.design.mains]:
            if term.gates or term.shape != (2,):
                continue
            low, high = (
                np.zeros((1, len(space.choices)), dtype=np.int64),
                np.zeros((1, len(space.choices)), dtype=np.int64),
            )
            high[0, estimator.design.column[term.choices[0]]] = 1
            weights = np.zeros(estimator.design.size)
            weights[[term.start, term.start + 1]] = -1.0, 1.0
            found, error = estimator.contrast(weights)
            inside += abs(found - float(value(high)[0] - value(low)[0])) < 1.96 * error
            count += 1
    assert count > 40
    assert stats.binom.cdf(inside, count, 0.95) > 1e-3


@pytest.mark.parametrize("joint", [0.15, 0.6])
def test_joint_effects_lie_within_theirs(joint: float) -> None:
    """Of two choices with two options: how far both together differ from the sum of each, over pools and truths."""
    space = small()
    column = {choice.name: i for i, choice in enumerate(space.choices)}
    inside, count = 0, 0
    for seed in range(12):
        value = truth(space, seed, joint)
        estimator = fit_effects(space, pool(space, value, 300, 10 + seed, noise=1.5))
        for term in estimator.design.terms[estimator.design.mains :]:
            if term.gates or term.shape != (2, 2):
                continue
            corners = np.zeros((4, len(space.choices)), dtype=np.int64)
            for row, (i, j) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                corners[row, [column[name] for name in term.choices]] = i, j
            signs = np.array([1, -1, -1, 1])
            effects, errors = estimator.table(term)
            found, wanted = float(signs @ effects.ravel()), float(signs @ value(corners))
            inside += abs(found - wanted) < 1.96 * 4 * float(errors.max())  # four entries that move together
            count += 1
    assert count > 50
    assert 0.88 < inside / count <= 1.0


def test_image_batches_of_different_difficulty_do_not_matter() -> None:
    space = elastic()
    value = truth(space)
    test = pool(space, value, 300, 1)
    plain = fit_effects(space, pool(space, value, 500, 0, noise=0.5)).predict(test.positions)
    spread = fit_effects(space, pool(space, value, 500, 0, noise=0.5, spread=10.0)).predict(test.positions)
    taus = [rank_agreement(found, test.accuracy).tau for found in (plain, spread)]
    assert taus[1] > 0.9
    assert abs(taus[0] - taus[1]) < 0.02


def test_the_papers_form_counts_depth_once() -> None:
    """The public code adds E[Acc | d = b] - E[Acc] once more for every block b that runs: it is told apart."""
    space = elastic()
    value = truth(space)
    records, test = pool(space, value, 20_000, 0), pool(space, value, 300, 1)
    mean, scores = conditional_means(space, records)
    column = {choice.name: i for i, choice in enumerate(space.choices)}
    paper = mean + scores.of(space, test.positions)
    twice = paper.copy()
    for choice, gates in space.gates_by_choice().items():
        for gate, least in gates if space.choice(choice).searched and len(gates) == 1 else ():
            if space.choice(gate).kind == "depth":
                at = records.positions[:, column[gate]] == least
                shift = records.accuracy[at].mean() - records.accuracy.mean()
                twice += shift * (test.positions[:, column[gate]] >= least)
    errors = [float(np.mean((found - test.accuracy) ** 2)) for found in (paper, twice)]
    assert errors[0] < 0.1 * float(np.var(test.accuracy))
    assert errors[1] > 3 * errors[0]


def test_rank_agreement_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=200)
    b = a + generator.normal(size=200)
    found = rank_agreement(a, b)
    assert found.tau == stats.kendalltau(a, b).statistic
    assert found.spearman == stats.spearmanr(a, b).statistic
    assert found.tau_interval[0] < found.tau < found.tau_interval[1]
    assert rank_agreement(a, -a).tau == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="3 or more"):
        rank_agreement([1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize("values", [3, 1000])
def test_draws_of_networks_agree_as_scipy_says(values: int) -> None:
    """With many ties among the numbers and with hardly any; a draw has networks several times."""
    generator = np.random.default_rng(values)
    a, b = generator.integers(0, values, (2, 12)).astype(float)
    draws = generator.integers(0, 12, (50, 12))
    draws[0] = 7  # nothing is ordered there
    for found, measure in (
        (kendall_of_draws(a, b, draws), stats.kendalltau),
        (spearman_of_draws(a, b, draws), stats.spearmanr),
    ):
        assert found[0] == 0
        assert found[1:] == pytest.approx([measure(a[rows], b[rows]).statistic for rows in draws[1:]])


def test_equal_numbers_order_nothing() -> None:
    """As from a supernet that was hardly trained; NaN would be no valid JSON."""
    found = rank_agreement([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert (found.tau, found.spearman, found.r2, found.tau_interval) == (0.0, 0.0, 0.0, (0.0, 0.0))


def test_a_pool_is_tied_to_its_space() -> None:
    space = small()
    records = pool(space, truth(space), 20, 0)
    again = Pool.from_json(records.to_json(), space)
    assert (again.positions == records.positions).all()
    assert (again.accuracy == records.accuracy).all()
    with pytest.raises(ValueError, match="another space"):
        Pool.from_json(records.to_json(), elastic())


def test_pure_noise_has_no_effects() -> None:
    """More columns than records, and batches of images that differ: leaving one out must not see what it left out."""
    space = elastic()
    estimator = fit_effects(space, pool(space, lambda positions: np.full(len(positions), 70.0), 200, 0, 3.0, 2.0))
    assert estimator.r2 < 0.45  # the batches' means alone explain 4 of 13
    assert np.abs(estimator.effects).max() < 1.0
    assert estimator.design.size > 200


def test_left_out_records_are_predicted_as_well_as_new_ones() -> None:
    space = elastic()
    value = truth(space, joint=0.3)
    estimator = fit_effects(space, pool(space, value, 300, 0, noise=2.0))
    new = pool(space, value, 2000, 1, noise=2.0)
    r2 = 1 - float(np.mean((estimator.predict(new.positions) - new.accuracy) ** 2) / np.var(new.accuracy))
    assert abs(estimator.r2 - r2) < 0.15


def test_what_choices_have_in_common_is_learned_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where choices of a kind are worth the same, few records predict better than if each were learned alone."""
    space = elastic()
    kinds = sorted({choice.kind for choice in space.searched()})

    def value(positions: np.ndarray) -> np.ndarray:
        total = np.full(len(positions), 50.0)
        for i, choice in enumerate(space.choices):
            if choice.searched:
                total += (1 + kinds.index(choice.kind)) * positions[:, i]
        return total

    records, test = pool(space, value, 100, 5, noise=4.0), pool(space, value, 300, 6)
    found = fit_effects(space, records)
    monkeypatch.setattr(effects, "SHARES", (0.0,))
    alone = fit_effects(space, records)
    assert found.shared > 0
    missed, missed_alone = (float(np.mean((e.predict(test.positions) - test.accuracy) ** 2)) for e in (found, alone))
    assert missed < 0.7 * missed_alone
