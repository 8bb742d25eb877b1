"""One-shot training: which sub-networks a batch trains, from what they learn, where they are drawn, and that it resumes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from dnas.board import Board
from dnas.engine import Engine, EngineConfig, derived_seed
from dnas.search.budget import Budget, BudgetError
from dnas.search.effects import fit_effects
from dnas.search.one_shot import OneShotTraining
from dnas.search.pool import Pool
from dnas.search.sampling import Neighbours, Sampler
from dnas.search.scores import Scores, no_scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import images_seen, promising, search
from dnas.select.select import select
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.cost import build_cost, reference_cost
from tests.dnas.test_neighbourhood import ENGINE, Counted
from tests.networks import Residual, example
from tests.small import SMALL, dnas


def built() -> tuple[nn.Module, Space]:
    torch.manual_seed(0)
    model = Residual()
    return model, build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 1.0))


def training(teacher: nn.Module | None = None, **settings: object) -> OneShotTraining:
    model, space = built()
    config = SearchConfig(searcher="binas", **settings)  # type: ignore[arg-type]
    return OneShotTraining(
        Supernet(model, space, seed=3), Sampler(space, 7), Counted(0), Counted(2), teacher, config, Engine(ENGINE),
        Board(None),
    )  # fmt: skip


def record(trained: OneShotTraining) -> list[list[int]]:
    """The positions of every forward pass in training mode, as they come."""
    seen: list[list[int]] = []
    draw = trained.supernet._draw

    def watched() -> None:
        draw()
        if trained.supernet.training:
            weights = trained.supernet._sample.weights
            seen.append([int(weights[c.name].argmax()) for c in trained.supernet.space.choices])

    trained.supernet._draw = watched  # type: ignore[method-assign]
    return seen


def test_a_batch_trains_the_largest_the_smallest_and_the_drawn_ones() -> None:
    trained = training(paths=2)
    seen, space = record(trained), trained.supernet.space
    trained.supernet.train()
    trained.step(next(trained.batches(0)), 0.5)
    sampler = Sampler(space, 7)
    wanted = [
        [len(c.options) - 1 for c in space.choices], [0] * len(space.choices), sampler.positions(0).tolist(),
        sampler.positions(1).tolist(),
    ]  # fmt: skip
    assert seen == wanted


def test_the_gradient_is_the_sum_over_the_sub_networks() -> None:
    """Against the gradients of each, computed alone."""
    trained = training(distill=0.0)
    supernet = trained.supernet
    supernet.train()
    for norm in supernet.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    x, y = next(trained.batches(0))
    wanted: dict[str, Tensor] = {}
    space = supernet.space
    for positions in (space.extreme(True), space.extreme(False), Sampler(space, 7).named(0)):
        supernet.zero_grad()
        with supernet.taking(positions):
            nn.functional.cross_entropy(supernet(x), y).backward()
        for name, parameter in supernet.named_parameters():
            if parameter.grad is not None:
                wanted[name] = wanted.get(name, torch.zeros(())) + parameter.grad
    found: dict[str, Tensor] = {}

    def keep(fraction: float) -> None:
        found.update({n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None})

    trained.optimiser.update = keep  # type: ignore[method-assign]
    trained.step((x, y), 0.5)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], atol=1e-6), name


def test_all_but_the_largest_learn_from_the_largest() -> None:
    """With distillation alone, and the smallest equal to the largest but for its draw, labels do not matter to them."""
    losses = []
    for shift in (0, 1):
        trained = training(teacher=None, distill=1.0)
        trained.supernet.train()
        x, y = next(trained.batches(0))
        losses.append({k: float(v) for k, v in trained.step((x, (y + shift) % 5), 0.5).items()})
    assert losses[0]["loss_largest"] != losses[1]["loss_largest"]
    assert losses[0]["loss_smallest"] == losses[1]["loss_smallest"]
    assert losses[0]["loss"] == losses[1]["loss"]


def test_parts_read_every_batch_once_per_epoch() -> None:
    trained = training(epochs=2)
    read = sum(len(list(trained.batches(part))) for part in range(trained.epochs))
    assert read == trained.epochs * trained.steps()
    assert abs(read - 2 * len(trained.weights)) <= trained.epochs


def test_training_resumes(tmp_path: Path) -> None:
    whole, engine = training(epochs=1), Engine(EngineConfig(device="cpu", progress=False))
    engine.fit(whole, None, Board(None), 0)
    first = training(epochs=1)
    evaluate, calls = first.evaluate, []

    def cut(epoch: int) -> dict[str, float]:
        if epoch == 2:
            raise KeyboardInterrupt
        calls.append(epoch)
        return evaluate(epoch)

    first.evaluate = cut  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.fit(first, tmp_path / "a.ckpt", Board(None), 0)
    again = training(epochs=1)
    engine.fit(again, tmp_path / "a.ckpt", Board(None), 0)
    for (name, a), b in zip(whole.supernet.state_dict().items(), again.supernet.state_dict().values(), strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b), name


def test_draws_stay_in_the_band_and_spread_over_it() -> None:
    _, space = built()
    cost = build_cost(space, "bops")
    full = reference_cost(space, "bops")
    sampler = Sampler(space, 0, cost, (0.03 * full, 0.3 * full))
    values = np.array([cost.at(sampler.named(i)) for i in range(400)]) / full
    assert (values >= 0.03).mean() == 1.0
    assert (values <= 0.3).mean() == 1.0
    assert kstest(np.log(values / 0.03) / np.log(10), "uniform").pvalue > 0.01


def test_draws_spread_over_what_a_band_lets_them_reach() -> None:
    _, space = built()
    cost = build_cost(space, "bops")
    smallest, largest = (cost.at(space.extreme(side)) for side in (False, True))
    sampler = Sampler(space, 0, cost, (smallest / 10, largest * 10))
    values = np.array([cost.at(sampler.named(i)) for i in range(400)])
    assert values.min() < 1.1 * smallest
    assert values.max() > largest / 1.1
    places = np.log(values / smallest) / np.log(largest / smallest)
    assert (np.histogram(places, np.linspace(0, 1, 6))[0] > 50).all()


def test_without_a_band_every_option_is_drawn_alike() -> None:
    _, space = built()
    sampler = Sampler(space, 0)
    draws = np.stack([sampler.positions(i) for i in range(3000)])
    for column, choice in zip(draws.T, space.choices, strict=True):
        share = np.bincount(column, minlength=len(choice.options)) / len(column)
        assert np.abs(share - 1 / len(choice.options)).max() < 4 * 0.5 / np.sqrt(len(column))
    assert (sampler.positions(5) == Sampler(space, 0).positions(5)).all()


def test_a_band_out_of_reach_is_an_error() -> None:
    _, space = built()
    full = reference_cost(space, "bops")
    with pytest.raises(ValueError, match=r"search.band"):
        Sampler(space, 0, build_cost(space, "bops"), (1e-6 * full, 1e-5 * full))


def test_neighbours_take_other_options_as_often_as_they_are_told_and_near_ones_first() -> None:
    _, space = built()
    middles = np.array([[0] * len(space.choices), [len(c.options) - 1 for c in space.choices]])
    around = Neighbours(space, middles, 0.3, 0)
    draws = np.stack([around.positions(i) for i in range(4000)])
    changed = draws[::2] != middles[0]
    for column, choice in enumerate(space.choices):
        wanted = 0.3 if len(choice.options) > 1 else 0.0
        assert abs(changed[:, column].mean() - wanted) < 4 * 0.5 / np.sqrt(2000)
        if len(choice.options) == 3:
            far, near = (draws[::2, column] == 2).sum(), (draws[::2, column] == 1).sum()
            assert near / far == pytest.approx(2.0, rel=0.35)
    assert (draws[1::2] != middles[1]).mean() == pytest.approx(changed.mean(), abs=0.03)


def test_the_search_recentres_its_pool_and_keeps_it(tmp_path: Path) -> None:
    model, space = built()
    config = SearchConfig(searcher="binas", epochs=1, pool=60, pool_images=16, judged=10, band=(0.03, 0.5))
    results = []
    for checkpoint in (tmp_path / "a.ckpt", None):
        supernet = Supernet(model, space, seed=3)
        sets = (Counted(0), Counted(1, 8), Counted(2))
        results.append(
            search(supernet, Budget(bops=0.1), *sets, None, config, Engine(ENGINE), checkpoint, Board(None), 5)
        )
    assert results[0][0] == results[1][0]
    pool = Pool.from_json((tmp_path / "pool.json").read_text(), space)
    assert len(pool) == 60
    assert len(Pool.from_json((tmp_path / "judged.json").read_text(), space)) == 10
    for number, (low, high) in enumerate([(30, 40), (40, 50), (50, 60)]):  # around what all records before select
        scores = fit_effects(space, pool.take(slice(low))).scores(space)
        middles = promising(scores, space, Budget(bops=0.1), (0.03, 0.5))
        around = Neighbours(space, middles, config.mutation, derived_seed(5, "recentred", str(number)))
        assert (pool.positions[low:high] == np.stack([around.positions(i) for i in range(low, high)])).all()
    (tmp_path / "pool.json").write_text(pool.take(slice(45)).to_json())  # killed in the second round
    supernet = Supernet(model, space, seed=3)
    again = search(
        supernet, Budget(bops=0.1), Counted(0), Counted(1, 8), Counted(2), None, config, Engine(ENGINE), tmp_path / "a.ckpt",
        Board(None), 5,
    )  # fmt: skip
    assert again[0] == results[0][0]
    assert images_seen(config, space, 48) == 3 * 48 + (60 + 10 * 8) * 16


def test_records_of_another_search_are_refused_before_training(tmp_path: Path) -> None:
    """Who removes a checkpoint to search again would get a new supernet with the old one's measurements."""
    model, space = built()
    config = SearchConfig(searcher="binas", epochs=1, pool=50, pool_images=16, judged=10, recentred=0.0)

    def run(name: str, seed: int) -> None:
        sets = (Counted(0), Counted(1, 8), Counted(2))
        supernet = Supernet(model, space, seed=3)
        search(supernet, Budget(bops=0.1), *sets, None, config, Engine(ENGINE), tmp_path / name, Board(None), seed)

    run("a.ckpt", 5)
    before = (tmp_path / "pool.json").read_text()
    shutil.copy(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"of another search than b.ckpt"):
        run("b.ckpt", 5)
    (tmp_path / "a.ckpt").unlink()
    with pytest.raises(ValueError, match=r"of a search whose checkpoint a.ckpt is gone; remove it to search again"):
        run("a.ckpt", 6)
    assert not (tmp_path / "a.ckpt").exists()
    assert (tmp_path / "pool.json").read_text() == before
    for name in ("pool.json", "judged.json"):
        (tmp_path / name).unlink()
    run("a.ckpt", 6)
    assert (tmp_path / "pool.json").read_text() != before


def test_a_pool_is_recentred_around_every_budget_that_a_run_has() -> None:
    """The budget itself, and the band of its first cost without and with its other caps; what is out of reach is left out."""
    _, space = built()
    generator = np.random.default_rng(0)
    scores = Scores({c.name: tuple(np.sort(generator.random(len(c.options))).tolist()) for c in space.choices}, "binas")
    budget = Budget(bops=0.1, weight_bits=0.4)

    def selected(**caps: float) -> list[int]:
        positions = select(scores, space, Budget(**caps)).positions()
        return [positions[choice.name] for choice in space.choices]  # type: ignore[misc]

    found = promising(scores, space, budget, (0.001, 0.5), 3).tolist()
    middle = (0.001 * 0.5) ** 0.5
    with pytest.raises(BudgetError):
        selected(bops=0.001)
    with pytest.raises(BudgetError):
        selected(bops=middle)
    assert found == [selected(bops=0.1, weight_bits=0.4), selected(bops=0.5), selected(bops=0.5, weight_bits=0.4)]
    assert found[1] != found[2]
    assert promising(scores, space, budget, None).tolist() == [selected(bops=0.1, weight_bits=0.4)]


def test_single_filters_and_bands_out_of_reach_fail_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("stage=preflight", *SMALL, "search=binas", "folder=run")
    assert dnas(monkeypatch, *given, "space.granularity=filter") == 1
    assert "search.searcher=binas draws one option per layer" in capsys.readouterr().err
    assert dnas(monkeypatch, *given, "search.band=[0.0001,0.001]") == 1
    assert "search.band allows bops" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_joint_scores_where_single_filters_decide_are_refused() -> None:
    model, _ = built()
    space = build_space(model, example(model), (2, 4), (2, 8), (0.5, 1.0), granularity={"a": "filter"})
    names = tuple(choice.name for choice in space.searched() if not choice.by_filter)[:2]
    table = tuple((0.0,) * len(space.choice(names[1]).options) for _ in space.choice(names[0]).options)
    scores = Scores({choice.name: no_scores(choice) for choice in space.choices}, "x", ((names, table),))
    with pytest.raises(ValueError, match="single filters decide"):
        select(scores, space, Budget(bops=0.5))
