"""The neighbourhood search: where it draws, what it measures, where it goes, and that it resumes."""

import contextlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dnas.board import Board
from dnas.engine import Engine, EngineConfig
from dnas.search.budget import Budget
from dnas.search.measure import measure_scores
from dnas.search.neighbourhood import NeighbourhoodTraining
from dnas.search.relax import Relaxation
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import first_architecture, images_seen, search
from dnas.select.reference import loosened, uniform_architecture, widest_uniform
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from tests.networks import Residual, example

ENGINE = EngineConfig(device="cpu", progress=False)
BUDGET = Budget(bops=0.1)


class Counted:
    """The same few batches in every epoch; counts what is read."""

    def __init__(self, seed: int, count: int = 6) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
            for _ in range(count)
        ]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for i, batch in enumerate(self.batches):
            self.read.append(i)
            yield batch


def built(**options: object) -> tuple[nn.Module, Space]:
    torch.manual_seed(0)
    model = Residual()
    return model, build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 1.0), **options)  # type: ignore[arg-type]


def images_passed(model: nn.Module) -> list[int]:
    """Grows by the images of every forward pass."""
    found: list[int] = []
    model.register_forward_hook(lambda module, args, output: found.append(len(args[0])))
    return found


def training(weights: Counted | None = None, **settings: object) -> NeighbourhoodTraining:
    model, space = built()
    supernet = Supernet(model, space, seed=3)
    config = SearchConfig(searcher="neighbourhood", score_images=16, **settings)  # type: ignore[arg-type]

    def best(scores: Scores) -> Architecture:
        return select(scores, space, BUDGET)

    return NeighbourhoodTraining(
        supernet, first_architecture(space, BUDGET), best, best, BUDGET, weights or Counted(0), Counted(1), Counted(2),
        None, config, Engine(ENGINE), Board(None),
    )  # fmt: skip


def test_a_choice_leaves_the_middle_as_often_as_it_is_told() -> None:
    model, space = built()
    supernet = Supernet(model, space)
    middle = uniform_architecture(space, 4, 2, 1.0)
    supernet.choices.concentrate(middle.positions(), 0.3)
    chances = {name: p.tolist() for name, p in supernet.probabilities().items()}
    for choice in space.searched():
        assert chances[choice.name][choice.index(middle[choice.name])] == pytest.approx(0.7)
    layer = next(c for c in space.searched() if c.kind == "weight_bits")
    assert chances[layer.name] == pytest.approx([0.15, 0.7, 0.15])
    supernet.choices.concentrate(uniform_architecture(space, 2, 2, 1.0).positions(), 0.3)
    assert supernet.probabilities()[layer.name].tolist() == pytest.approx([0.7, 0.2, 0.1])
    supernet.train()
    drawn = 0
    for _ in range(400):
        supernet(torch.randn(1, 3, 8, 8))
        drawn += int(supernet.choices.logits.shape[0] > 0 and supernet._sample.weights[layer.name][0] == 1)
    assert drawn / 400 == pytest.approx(0.7, abs=0.08)


def test_filters_that_decide_stay_in_the_neighbourhood_too() -> None:
    model, space = built(granularity="filter")
    supernet = Supernet(model, space)
    middle = first_architecture(space, BUDGET)
    supernet.choices.concentrate(middle.positions(), 0.2)
    found, positions = supernet.most_probable(), middle.positions()
    for choice in space.searched():
        rows = supernet.probabilities()[choice.name].detach().reshape(-1, choice.width)
        taken = positions[choice.name]
        expected = [taken] * len(rows) if isinstance(taken, int) else list(taken)
        forced = supernet.choices.forced[supernet.choices.index[choice.name]].tolist()
        kept = [row[i].item() for row, i in zip(rows, expected, strict=True)]
        assert kept == pytest.approx([1.0 if always else 0.8 for always in forced])
        assert found[choice.name] == middle[choice.name]


def test_a_composition_gives_each_width_the_share_of_filters_that_the_middle_does() -> None:
    model, space = built(granularity="filter")
    supernet = Supernet(model, space, Relaxation(filters="composition"))
    middle = first_architecture(space, BUDGET)
    supernet.choices.concentrate(middle.positions(), 0.2)
    for choice in space.searched():
        if choice.kind == "weight_bits":
            shares = supernet.probabilities()[choice.name].detach().mean(0)
            assert shares[middle.positions()[choice.name][0]].item() == pytest.approx(0.8)  # type: ignore[index]


def test_the_widest_uniform_network_keeps_more_filters_than_all_others_that_fit() -> None:
    _, space = built()
    found = widest_uniform(space, BUDGET)
    assert found is not None
    assert BUDGET.holds(found)

    def filters(architecture: Architecture) -> int:
        return sum(int(architecture[group.choice]) for group in space.groups)

    fitting = [
        architecture
        for weight in (2, 4, 8)
        for act in (2, 8)
        for share in (0.5, 1.0)
        if BUDGET.holds(architecture := uniform_architecture(space, weight, act, share))
    ]
    assert filters(found) == max(map(filters, fitting))


def test_a_budget_without_a_uniform_network_starts_at_the_dearest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    _, space = built()
    tight = Budget(
        bops=1.0001 * float(uniform_architecture(space, 2, 2, 0.5).cost("bops", relative=True)), weight_bits=0.11
    )
    assert tight.holds(first_architecture(space, tight))
    monkeypatch.setattr(import_module("dnas.searcher"), "widest_uniform", lambda *_: None)
    found = first_architecture(space, BUDGET)
    assert BUDGET.holds(found)
    positions = found.positions()
    for choice in space.searched():  # nothing dearer fits
        if positions[choice.name] + 1 < choice.width:
            dearer = Architecture.at(space, {**positions, choice.name: positions[choice.name] + 1})
            assert not BUDGET.holds(dearer)


def shares(space: Space, weight: int, act: int, filters: float) -> dict[str, float]:
    found = uniform_architecture(space, weight, act, filters)
    return {name: float(found.cost(name, relative=True)) for name in ("bops", "weight_bits")}


def test_a_budget_is_loosened_as_far_as_the_cheapest_full_network_needs_it() -> None:
    _, space = built()
    full, half = shares(space, 2, 2, 1.0), shares(space, 2, 2, 0.5)
    narrow = Budget(bops=half["bops"])
    assert loosened(space, narrow, 100).caps == pytest.approx({"bops": full["bops"]})
    assert narrow.holds(uniform_architecture(space, 2, 2, 0.5))
    assert not narrow.holds(uniform_architecture(space, 2, 2, 1.0))
    assert loosened(space, narrow, 1.0).caps == narrow.caps
    model = Residual()
    finer = build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 0.75, 1.0))
    part = 1.001 * shares(finer, 2, 2, 0.75)["bops"] / half["bops"]
    assert part < full["bops"] / half["bops"]
    assert loosened(finer, narrow, part).caps == pytest.approx({"bops": part * half["bops"]})


def test_a_budget_that_holds_a_full_network_stays_as_it_is() -> None:
    _, space = built()
    for bops in (shares(space, 2, 2, 1.0)["bops"] * 1.0001, 0.5, 1.0):
        assert loosened(space, Budget(bops=bops), 2.0).caps == {"bops": bops}
    assert loosened(space, Budget(bops=1e12), 2.0).caps == {"bops": 1e12}


def test_a_budget_is_not_loosened_for_wider_bits_alone() -> None:
    """Where no uniform network gains a filter by it, a search has nothing to look for beyond its budget."""
    model = Residual()
    space = build_space(model, example(model), (2, 4, 8), (2, 8), (0.25, 1.0))
    quarter = shares(space, 2, 2, 0.25)["bops"]
    for bops in (1.01 * quarter, 0.4 * shares(space, 2, 2, 1.0)["bops"]):
        assert loosened(space, Budget(bops=bops), 2.0).caps == {"bops": bops}
    assert loosened(space, Budget(bops=0.6 * shares(space, 2, 2, 1.0)["bops"]), 2.0).caps["bops"] > bops
    fixed = build_space(model, example(model), (2, 4, 8), (2, 8), (1.0,))
    tight = 1.0001 * shares(fixed, 2, 2, 1.0)["bops"]
    assert loosened(fixed, Budget(bops=tight), 2.0).caps == {"bops": tight}


def test_several_budgets_are_loosened_each_by_its_own_factor_and_absolute_ones_stay_absolute() -> None:
    _, space = built()
    full, half = shares(space, 2, 2, 1.0), shares(space, 2, 2, 0.5)
    absolute = float(uniform_architecture(space, 2, 2, 0.5).cost("bops"))
    found = loosened(space, Budget(bops=absolute, weight_bits=0.9), 100)
    assert found.caps == pytest.approx(
        {"bops": float(uniform_architecture(space, 2, 2, 1.0).cost("bops")), "weight_bits": 0.9}
    )
    both = loosened(space, Budget(bops=half["bops"], weight_bits=half["weight_bits"]), 100)
    assert both.caps == pytest.approx(full)
    assert loosened(space, Budget(macs=0.3), 100).caps == {"macs": 1.0}


def test_without_widths_to_search_a_full_network_is_one_of_fixed_widths() -> None:
    model = Residual()
    space = build_space(model, example(model), (4,), (4,), (0.5, 1.0))
    full = float(uniform_architecture(space, 4, 4, 1.0).cost("bops", relative=True))
    assert loosened(space, Budget(bops=full / 2), 3.0).caps == pytest.approx({"bops": full})


def test_a_search_for_a_small_budget_measures_around_full_networks_and_ends_within_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, space = built()
    narrow, full = Budget(bops=shares(space, 2, 2, 0.5)["bops"] * 1.1), shares(space, 2, 2, 1.0)["bops"]
    around: list[Architecture] = []

    def noted(supernet: Supernet, base: Architecture, *others: object) -> Scores:
        around.append(base)
        return measure_scores(supernet, base, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(import_module("dnas.search.neighbourhood"), "measure_scores", noted)
    supernet = Supernet(model, space, seed=3)
    config = SearchConfig(searcher="neighbourhood", epochs=1, rounds=3, score_images=16, loosen=4.0)
    scores, history = search(supernet, narrow, Counted(0), Counted(1), Counted(2), None, config, Engine(ENGINE))
    assert around[0].options == uniform_architecture(space, 2, 2, 1.0).options
    assert all(Budget(bops=full).holds(architecture) for architecture in around)
    over = [numbers["bops_argmax_over_budget"] for numbers in history]
    assert over[-1] <= 1.0 < max(over)
    assert supernet.most_probable().options == select(scores, space, narrow).options


def test_a_search_for_a_small_budget_is_that_for_the_looser_one() -> None:
    """It measures the same, so that its scores serve both budgets."""
    found = []
    for narrow in (True, False):
        model, space = built()
        caps = shares(space, 2, 2, 0.5 if narrow else 1.0)["bops"] * 1.0001
        config = SearchConfig(searcher="neighbourhood", epochs=1, rounds=2, score_images=16, loosen=4.0, train="always")
        supernet = Supernet(model, space, seed=3)
        budget = Budget(bops=caps)
        scores, _ = search(supernet, budget, Counted(0), Counted(1), Counted(2), None, config, Engine(ENGINE))
        assert select(scores, space, budget).cost("bops", relative=True) <= caps
        found.append(scores)
    assert found[0] == found[1]


def test_every_round_reads_the_images_that_follow_and_ends_within_the_budget() -> None:
    weights = Counted(0)
    found = training(weights, epochs=1.5, rounds=3)
    assert found.steps() == 3
    seen: list[Architecture] = []
    for epoch in range(3):
        for step, batch in enumerate(found.batches(epoch)):
            found.step(batch, (epoch * 3 + step) / 9)
        found.evaluate(epoch)
        seen.append(found.current)
    assert weights.read == [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 2]  # the first three of an epoch are passed over once
    assert all(BUDGET.holds(architecture) for architecture in seen)
    assert found.scores is not None
    assert select(found.scores, found.supernet.space, BUDGET).options == found.current.options
    assert found.supernet.most_probable().options == found.current.options


def test_later_rounds_weigh_more() -> None:
    first = Scores({"a": (0.0, 1.0), "b": ((0.0, 2.0), (4.0, 0.0))}, "x")
    second = Scores({"a": (1.0, 1.0), "b": ((0.0, 0.0), (0.0, 2.0))}, "y")
    assert first.mean(second) == Scores({"a": (0.5, 1.0), "b": ((0.0, 1.0), (2.0, 1.0))}, "y")


def test_a_search_that_was_killed_goes_on_to_the_same_network(tmp_path: Path) -> None:
    def run(checkpoint: Path | None, killed_in: int = 99) -> NeighbourhoodTraining:
        found = training(epochs=2, rounds=4)
        step = found.step

        def dies(batch: tuple[Tensor, Tensor], fraction: float) -> dict[str, Tensor]:
            if fraction * 4 >= killed_in:
                raise KeyboardInterrupt
            return step(batch, fraction)

        found.step = dies  # type: ignore[method-assign]
        with contextlib.suppress(KeyboardInterrupt):
            Engine(ENGINE).fit(found, checkpoint, Board(None), 0)
        return found

    whole = run(None)
    run(tmp_path / "search.ckpt", killed_in=2)
    resumed = run(tmp_path / "search.ckpt")
    assert resumed.current == whole.current
    assert resumed.scores == whole.scores
    for name, value in whole.supernet.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed.supernet.state_dict()[name]), name


def test_the_images_of_a_search_are_counted() -> None:
    model, space = built()
    supernet = Supernet(model, space)
    passed = images_passed(supernet.model)
    config = SearchConfig(searcher="neighbourhood", epochs=2, rounds=2, score_images=16, train="always")
    empty = Counted(2, 0)
    search(supernet, BUDGET, Counted(0), Counted(1), empty, model, config, Engine(ENGINE))
    assert sum(passed) == images_seen(config, space, 6 * 8)


def test_options_that_are_mixed_have_no_neighbourhood() -> None:
    model, space = built()
    supernet = Supernet(model, space, Relaxation(mode="softmax"))
    config = SearchConfig(searcher="neighbourhood")
    with pytest.raises(ValueError, match="draws whole architectures: it needs one of"):
        search(supernet, BUDGET, Counted(0), Counted(1), Counted(2), None, config, Engine(ENGINE))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"mutation": 1.0},
        {"mutation": 0.0},
        {"searcher": "neighbourhood", "mutation": 0.5},
        {"searcher": "random"},
        {"epochs": 1.5},
        {"loosen": 0.9},
    ],
)
def test_settings_that_make_no_search_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="search"):
        SearchConfig(**{"searcher": "gumbel", **wrong})  # type: ignore[arg-type]
