"""search.train=needed: the supernet is trained where bits alone do not meet the budget, and nowhere else."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from dnas.engine import Engine
from dnas.search.budget import Budget
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import as_needed, images_seen, search
from dnas.select.reference import bits_suffice, uniform_architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from tests.dnas.test_neighbourhood import ENGINE, Counted, built, images_passed
from tests.networks import Residual, example

CONFIG = SearchConfig(searcher="neighbourhood", epochs=2, rounds=2, score_images=16)


def cheapest(space: Space, name: str = "bops") -> float:
    """Cost of the cheapest network of one width for weights and one for activations that keeps all filters."""
    pairs = product((2, 4, 8), (2, 8))
    return min(float(uniform_architecture(space, w, a, 1.0).cost(name, relative=True)) for w, a in pairs)


def test_bits_suffice_from_the_cheapest_uniform_network_of_full_width_on() -> None:
    _, space = built()
    for share, expected in ((0.999, False), (1.0, True), (1.001, True)):
        assert bits_suffice(space, Budget(bops=cheapest(space) * share)) is expected
    assert bits_suffice(space, Budget(bops=1e12))


def test_every_budget_has_to_be_met_by_bits_alone() -> None:
    _, space = built()
    bops, weights = cheapest(space), cheapest(space, "weight_bits")
    assert bits_suffice(space, Budget(bops=bops * 1.001, weight_bits=weights * 1.001))
    assert not bits_suffice(space, Budget(bops=bops * 1.001, weight_bits=weights * 0.99))
    assert not bits_suffice(space, Budget(macs=0.9))  # fewer MACs than all filters take


def test_options_that_a_network_was_trained_without_need_training() -> None:
    _, by_filter = built(granularity="filter")
    assert not bits_suffice(by_filter, Budget(bops=1.0))
    model = Residual()
    elastic = build_space(model, example(model), (2, 8), (8,), (1.0,), kernels=(1, 3))
    assert any(choice.kind == "kernel" for choice in elastic.searched())
    assert not bits_suffice(elastic, Budget(bops=1.0))


def test_fixed_filters_leave_it_to_bits() -> None:
    model = Residual()
    space = build_space(model, example(model), (2, 4, 8), (2, 8), (1.0,))
    assert bits_suffice(space, Budget(bops=cheapest(space) * 1.001))


@pytest.mark.parametrize(
    ("share", "train", "trained"), [(1.001, "needed", False), (0.6, "needed", True), (1.001, "always", True)]
)
def test_weights_change_where_training_is_needed_or_asked_for(
    share: float, train: str, trained: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model, space = built()
    budget = Budget(bops=cheapest(space) * share)
    supernet = Supernet(model, space, seed=3)
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    passed, weights = images_passed(supernet.model), Counted(0)
    config = SearchConfig(searcher="neighbourhood", epochs=2, rounds=2, score_images=16, train=train)
    _, history = search(supernet, budget, weights, Counted(1), Counted(2, 0), model, config, Engine(ENGINE))
    same = all(torch.equal(value, supernet.model.state_dict()[name]) for name, value in before.items())
    assert same is not trained
    assert (len(weights.read) > 0) is trained
    assert len(history) == (2 if trained else 1)
    assert budget.holds(supernet.most_probable())
    assert sum(passed) == images_seen(as_needed(config, space, budget), space, 6 * 8)
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "in place of search.rounds=2 and search.epochs=2 (search.train=always trains the supernet" in told
    ) is not trained


def test_what_is_spared_is_what_sensitivities_select_from_the_images_of_all_rounds() -> None:
    model, space = built()
    budget = Budget(bops=cheapest(space) * 1.2)
    found = []
    for config in (
        CONFIG,
        SearchConfig(searcher="neighbourhood", start="sensitivities", rounds=0, score_images=2 * 16),
    ):
        supernet = Supernet(model, space, seed=3)
        scores, _ = search(supernet, budget, Counted(0), Counted(1), Counted(2, 0), model, config, Engine(ENGINE))
        found.append((scores, supernet.most_probable().options))
    assert found[0] == found[1]


def test_spared_scores_do_not_depend_on_the_budget() -> None:
    model, space = built()
    found = []
    for factor in (1.001, 1.5):
        supernet = Supernet(model, space, seed=3)
        budget = Budget(bops=cheapest(space) * factor)
        found.append(search(supernet, budget, Counted(0), Counted(1), Counted(2, 0), model, CONFIG, Engine(ENGINE))[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("searcher", ["gumbel", "score_function", "binas"])
def test_other_searches_always_train(searcher: str) -> None:
    _, space = built()
    config = SearchConfig(searcher=searcher, epochs=2)
    assert as_needed(config, space, Budget(bops=1.0)) == config


def test_a_search_without_rounds_trains_nothing_anyway() -> None:
    _, space = built()
    config = SearchConfig(searcher="neighbourhood", start="sensitivities", rounds=0)
    assert as_needed(config, space, Budget(bops=0.1)) == replace(config, epochs=0)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search.train is 'never'; allowed: \['needed', 'always'\]"):
        SearchConfig(searcher="neighbourhood", train="never")


def test_a_space_in_which_no_network_keeps_all_filters_needs_training() -> None:
    model = Residual()
    for filters, needed in (((0.5, 1.0), False), ((0.5,), True), ((0.25, 0.5), True)):
        space = build_space(model, example(model), (2, 4, 8), (2, 8), filters)
        assert bits_suffice(space, Budget(bops=0.5)) is not needed
