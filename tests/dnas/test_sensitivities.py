"""Sensitivities of the untrained network: alone they are the search, or they say where it starts."""

from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dnas.board import Board
from dnas.engine import Engine
from dnas.search.measure import measure_scores
from dnas.search.neighbourhood import NeighbourhoodTraining
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import as_needed, first_architecture, images_seen, search
from dnas.select.reference import dearest_architecture
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from tests.dnas.test_neighbourhood import BUDGET, ENGINE, Counted, built, images_passed

ALONE = SearchConfig(searcher="neighbourhood", start="sensitivities", rounds=0, score_images=48)


@pytest.mark.parametrize("granularity", ["layer", "filter"])
def test_without_rounds_nothing_is_trained_and_options_are_switched_in_the_dearest_network(granularity: str) -> None:
    model, space = built(granularity=granularity)
    supernet, other = Supernet(model, space, seed=3), Supernet(model, space, seed=3)
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    weights, held_back = Counted(0), Counted(1)
    scores, history = search(supernet, BUDGET, weights, held_back, Counted(2), None, ALONE, Engine(ENGINE))
    assert (len(history), weights.read) == (1, [])
    for name, value in before.items():
        assert torch.equal(value, supernet.model.state_dict()[name]), name
    dearest = other.with_filters(dearest_architecture(space))
    assert scores == measure_scores(other.eval(), dearest, held_back.batches)
    assert supernet.most_probable().options == supernet.with_filters(select(scores, space, BUDGET)).options
    assert BUDGET.holds(supernet.most_probable())


def test_the_dearest_network_has_the_last_option_of_every_choice() -> None:
    _, space = built()
    costs = [float(dearest_architecture(space).cost(name, relative=True)) for name in ("bops", "weight_bits")]
    assert costs == pytest.approx([1.0, 1.0])


def test_the_first_round_trains_around_what_sensitivities_select(monkeypatch: pytest.MonkeyPatch) -> None:
    model, space = built()
    around: list[Architecture] = []

    def noted(supernet: Supernet, base: Architecture, *others: object) -> Scores:
        around.append(base)
        return measure_scores(supernet, base, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(import_module("dnas.search.neighbourhood"), "measure_scores", noted)
    config = SearchConfig(
        searcher="neighbourhood", start="sensitivities", epochs=1, rounds=2, score_images=16, train="always"
    )
    weights, held_back = Counted(0), Counted(1)
    _, history = search(
        Supernet(model, space, seed=3), BUDGET, weights, held_back, Counted(2), None, config, Engine(ENGINE)
    )
    alone, _ = search(
        Supernet(model, space, seed=3), BUDGET, Counted(0), Counted(1), Counted(2), None,
        replace(ALONE, score_images=2 * 16), Engine(ENGINE),
    )  # fmt: skip
    assert len(history) == 3
    assert weights.read == [0, 1, 2, 0, 1, 2, 3, 4, 5]  # each round its half of the epoch; the measurement none
    assert around[0].options == dearest_architecture(space).options
    assert around[1].options == select(alone, space, BUDGET).options


def test_a_measurement_before_the_first_round_takes_no_part_of_the_schedule_of_rates() -> None:
    found: dict[str, list[float]] = {}
    for start in ("uniform", "sensitivities"):
        model, space = built()
        config = SearchConfig(searcher="neighbourhood", start=start, epochs=2, rounds=3, score_images=16)

        def best(scores: Scores, space: Space = space) -> Architecture:
            return select(scores, space, BUDGET)

        training = NeighbourhoodTraining(
            Supernet(model, space, seed=3), first_architecture(space, BUDGET, start), best, best, BUDGET, Counted(0),
            Counted(1), Counted(2), None, config, Engine(ENGINE), Board(None),
        )  # fmt: skip
        taken: list[float] = []
        step = training.optimiser.step

        def noted(loss: Tensor, fraction: float) -> None:
            taken.append(fraction)  # noqa: B023
            step(loss, fraction)  # noqa: B023

        training.optimiser.step = noted  # type: ignore[method-assign]
        Engine(ENGINE).fit(training, None, Board(None), 0)
        found[start] = taken
    assert found["sensitivities"] == pytest.approx(found["uniform"])
    assert found["uniform"][0] == 0


def test_a_search_that_was_killed_after_the_first_measurement_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig(
        searcher="neighbourhood", start="sensitivities", epochs=1, rounds=2, score_images=16, train="always"
    )

    def run(checkpoint: Path | None) -> tuple[Scores, Supernet]:
        model, space = built()
        supernet = Supernet(model, space, seed=3)
        scores, _ = search(
            supernet, BUDGET, Counted(0), Counted(1), Counted(2), None, config, Engine(ENGINE), checkpoint
        )
        return scores, supernet

    def killed(*_: object) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    whole, trained = run(None)
    with monkeypatch.context() as patched:
        patched.setattr(NeighbourhoodTraining, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "search.ckpt")
    resumed, supernet = run(tmp_path / "search.ckpt")
    assert resumed == whole
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, supernet.model.state_dict()[name]), name


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path: Path) -> None:
    model, space = built()
    supernet = Supernet(model, space, seed=3)
    rounds = SearchConfig(searcher="neighbourhood", epochs=0, rounds=2, score_images=16)
    for config, refused in ((rounds, False), (rounds, False), (ALONE, True)):
        with pytest.raises(ValueError, match="another schedule") if refused else nullcontext():
            search(
                supernet,
                BUDGET,
                Counted(0),
                Counted(1),
                Counted(2),
                None,
                config,
                Engine(ENGINE),
                tmp_path / "search.ckpt",
            )


@pytest.mark.parametrize("granularity", ["layer", "filter"])
def test_images_are_counted_as_they_pass_in_whole_batches_and_of_an_epoch_at_most(granularity: str) -> None:
    model, space = built(granularity=granularity)
    supernet = Supernet(model, space, seed=3)
    passed = images_passed(supernet.model)
    config = SearchConfig(
        searcher="neighbourhood", start="sensitivities", epochs=1, rounds=2, score_images=30, train="always"
    )
    found = search(supernet, BUDGET, Counted(0), Counted(1), Counted(2, 0), None, config, Engine(ENGINE))[1]
    assert [numbers["images"] > 0 for numbers in found] == [True] * 3  # 48 of 60 that are asked for; 32 a round
    assert sum(numbers["images"] for numbers in found) == sum(passed)


def test_without_epochs_rounds_measure_around_what_the_one_before_selected_and_train_nothing() -> None:
    model, space = built()
    supernet, other = Supernet(model, space, seed=3), Supernet(model, space, seed=3).eval()
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    config = SearchConfig(searcher="neighbourhood", epochs=0, rounds=2, score_images=48)
    weights, held_back = Counted(0), Counted(1)
    found, history = search(supernet, BUDGET, weights, held_back, Counted(2), None, config, Engine(ENGINE))
    assert (len(history), weights.read) == (2, [])
    for name, value in before.items():
        assert torch.equal(value, supernet.model.state_dict()[name]), name
    first = measure_scores(other, other.with_filters(first_architecture(space, BUDGET)), held_back.batches)
    second = measure_scores(other, other.with_filters(select(first, space, BUDGET)), held_back.batches)
    assert found == first.mean(second)


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("rounds", [0, 2])
def test_the_images_of_such_a_search_are_counted(rounds: int, epochs: int) -> None:
    model, space = built()
    supernet = Supernet(model, space)
    passed = images_passed(supernet.model)
    config = SearchConfig(
        searcher="neighbourhood", start="sensitivities", epochs=epochs, rounds=rounds, train="always", score_images=24,
    )  # fmt: skip
    held_back = Counted(1, 12)
    search(supernet, BUDGET, Counted(0), held_back, Counted(2, 0), model, config, Engine(ENGINE))
    assert sum(passed) == images_seen(as_needed(config, space, BUDGET), space, 6 * 8)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"searcher": "neighbourhood", "rounds": 0}, "rounds is 0"),
        ({"searcher": "neighbourhood", "epochs": -1}, "epochs is -1"),
        ({"searcher": "binas", "epochs": 0}, "epochs is 0; allowed: more than 0, or 0 for search=neighbourhood"),
        ({"searcher": "binas", "start": "sensitivities"}, "goes with neighbourhood alone"),
        ({"searcher": "neighbourhood", "start": "random"}, r"search.start is 'random'; allowed: \['uniform', 'sens"),
    ],
)
def test_no_rounds_are_allowed_where_sensitivities_are_the_search(settings: dict[str, object], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        SearchConfig(**settings)  # type: ignore[arg-type]
