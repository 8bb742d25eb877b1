"""The search: what each step may change, and whether it arrives at its budget."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dnas.board import Board
from dnas.data import Batches, Data, DataConfig, load_data
from dnas.engine import Engine, EngineConfig
from dnas.pretrain import PretrainConfig, float_training
from dnas.recipe import OptimiserConfig
from dnas.search.budget import Budget
from dnas.search.relax import Relaxation
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, SearchTraining
from dnas.searcher import search
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from tests.networks import Residual, example

ENGINE = EngineConfig(device="cpu", progress=False)


class Fixed:
    """The same few batches in every epoch."""

    def __init__(self, seed: int, count: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def training(level: str = "two", teacher: nn.Module | None = None, **settings: object) -> SearchTraining:
    model = Residual()
    supernet = Supernet(model, build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 1.0)))
    config = SearchConfig(**{"searcher": "gumbel", "level": level, "epochs": 4, **settings})  # type: ignore[arg-type]
    choices = Fixed(1) if level == "two" else None
    return SearchTraining(
        supernet, Budget(bops=0.1), Fixed(0), choices, Fixed(2), teacher, config, Engine(ENGINE), Board(None)
    )


def snapshot(found: SearchTraining) -> dict[str, list[Tensor]]:
    supernet = found.supernet
    steps = {id(p) for p in supernet.step_parameters()}
    return {
        "choices": [p.detach().clone() for p in supernet.choice_parameters()],
        "weights": [p.detach().clone() for p in supernet.weight_parameters() if id(p) not in steps],
        "steps": [p.detach().clone() for p in supernet.weight_parameters() if id(p) in steps],
    }


def changed(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
    return {
        name for name in before if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


def test_level_two_trains_in_turns() -> None:
    """After the warm-up a step of the weights leaves the choices, and a step of the choices leaves the weights."""
    found = training()
    first, second = Fixed(0).batches[0], Fixed(1).batches[0]
    before = snapshot(found)
    found.step((first, None), 0.5)
    middle = snapshot(found)
    assert changed(before, middle) == {"weights", "steps"}
    found._train_choices(*second)
    assert changed(middle, snapshot(found)) == {"choices"}
    assert all(p.requires_grad for p in found.supernet.weight_parameters())
    numbers = found.step((first, second), 0.5)
    assert changed(middle, snapshot(found)) == {"choices", "weights", "steps"}
    assert set(numbers) == {"loss", "choice_loss", "penalty"}


@pytest.mark.parametrize("level", ["two", "one"])
def test_the_warm_up_leaves_the_choices_alone(level: str) -> None:
    found = training(level, warmup=0.5)
    for i, batch in enumerate(found.batches(0)):
        numbers = found.step(batch, 0.49 * i / 3)
        assert set(numbers) == {"loss"}
    assert all(float(p.detach().abs().max()) == 0 for p in found.supernet.choice_parameters())
    assert float(found.supernet.temperature) == found.supernet.relaxation.start
    assert all(float(state[0]) == 0 for state in found.supernet.multipliers.values())
    found.step(next(iter(found.batches(0))), 0.5)
    assert all(float(p.detach().abs().max()) > 0 for p in found.supernet.choice_parameters())


def test_level_one_trains_both_on_one_batch() -> None:
    found = training("one")
    before = snapshot(found)
    ((first, second), *_) = found.batches(0)
    assert second is None
    numbers = found.step((first, None), 0.5)
    assert changed(before, snapshot(found)) == {"choices", "weights", "steps"}
    assert set(numbers) == {"loss", "penalty"}


def test_the_price_does_not_reach_weights() -> None:
    """With level one, the penalty's gradient is that of the choices alone."""
    found = training("one")
    penalty = found.budget.penalty(found.supernet)
    grads = torch.autograd.grad(penalty, list(found.supernet.weight_parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)


def test_every_batch_of_the_weights_meets_one_of_the_choices() -> None:
    found = training()
    pairs = list(found.batches(0))
    assert len(pairs) == found.steps() == 3
    found.choices = Fixed(1, count=2)  # fewer: they begin again
    again = list(found.batches(0))
    assert len(again) == 3
    assert again[2][1] is not None
    assert torch.equal(again[2][1][0], again[0][1][0])  # type: ignore[index]


def test_distillation_reads_the_teacher() -> None:
    teacher = Residual().eval()
    batch = Fixed(0).batches[0]
    found = [float(training(teacher=teacher, distill=share).step((batch, None), 0.0)["loss"]) for share in (0.0, 0.5)]
    assert found[0] != found[1]
    assert all(p.grad is None for p in teacher.parameters())


def test_evaluation_changes_nothing() -> None:
    found = training()
    for batch in found.batches(0):
        found.step(batch, 0.5)
    before = {name: value.clone() for name, value in found.supernet.state_dict().items() if isinstance(value, Tensor)}
    generator = found.supernet.choices.get_extra_state()["generator"]
    numbers = found.evaluate(0)
    for name, value in before.items():
        assert torch.equal(found.supernet.state_dict()[name], value), name
    assert torch.equal(found.supernet.choices.get_extra_state()["generator"], generator)
    assert found.supernet.training
    assert {
        "accuracy",
        "temperature",
        "bops_expected_over_budget",
        "bops_argmax_over_budget",
        "bops_multiplier",
    } <= set(numbers)


def test_the_temperature_falls_from_start_to_end() -> None:
    found = training(warmup=0.5)
    batch = next(iter(found.batches(0)))
    temperatures = []
    for fraction in (0.0, 0.49, 0.5, 0.75, 0.999):
        found.step(batch, fraction)
        temperatures.append(float(found.supernet.temperature))
    relaxation = Relaxation()
    assert temperatures[:3] == [relaxation.start] * 3
    assert temperatures[3] == pytest.approx(relaxation.temperature(0.5))
    assert temperatures[4] == pytest.approx(relaxation.end, rel=0.01)


@pytest.mark.parametrize("level", ["two", "one"])
def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path: Path, level: str) -> None:
    class Killed(BaseException):
        pass

    def run(kill: int | None, path: Path) -> SearchTraining | None:
        torch.manual_seed(4)
        found = training(level, distill=0.0)
        if kill is not None:
            step, count = found.step, 0

            def killed(*args: object) -> dict[str, Tensor]:
                nonlocal count
                count += 1
                if count > kill:
                    raise Killed
                return step(*args)  # type: ignore[arg-type]

            found.step = killed  # type: ignore[method-assign, assignment]
        try:
            Engine(ENGINE).fit(found, path, Board(None), 0)
        except Killed:
            return None
        return found

    whole = run(None, tmp_path / "whole.ckpt")
    for kill in (1, 5, 4):
        assert run(kill, tmp_path / "parts.ckpt") is None
    parts = run(None, tmp_path / "parts.ckpt")
    assert whole is not None
    assert parts is not None
    assert not changed(snapshot(whole), snapshot(parts))
    assert whole.supernet.scores() == parts.supernet.scores()
    assert float(whole.supernet.draws) == float(parts.supernet.draws)


# --- digits: does it arrive?


class Digits(nn.Sequential):
    """Three convolutions and a linear layer: learns digits in a few seconds."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for c_in, c_out, stride in ((1, 16, 1), (16, 16, 2), (16, 24, 1)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


@functools.cache
def digits() -> Data:
    return load_data(DataConfig("digits", "digits"), 0)


def batches(name: str, shuffle: bool) -> Batches:
    data = digits()
    return Batches(
        data.splits[name], batch_size=32, seed=1, mean=data.mean, std=data.std, shuffle=shuffle, drop_last=shuffle
    )


@functools.cache
def trained() -> nn.Module:
    """The float network."""
    torch.manual_seed(0)
    model = Digits()
    config = PretrainConfig(epochs=6, optimiser=OptimiserConfig(lr=0.1))
    training = float_training(model, batches("weights", True), batches("validation", False), config, Engine(ENGINE))
    history = Engine(ENGINE).fit(training, None, Board(None), 0)
    assert history[-1]["accuracy"] > 85
    return model.eval()


@functools.cache
def searched(bops: float, level: str = "two") -> tuple[Supernet, Scores, dict[str, float]]:
    """A short search on digits."""
    model = trained()
    images = next(iter(batches("weights", False).epoch(0)))[0]
    space = build_space(model, (images,), (2, 3, 4, 6, 8), (2, 3, 4, 6, 8), (0.25, 0.5, 0.75, 1.0))
    supernet = Supernet(model, space)
    supernet.calibrate(images)
    config = SearchConfig("gumbel", 10, level=level, choice_lr=0.05, score_images=256, score_rounds=1)
    scores, history = search(
        supernet, Budget(bops=bops), batches("weights", True), batches("choices", True), batches("validation", False),
        model, config, Engine(ENGINE),
    )  # fmt: skip
    return supernet, scores, history[-1]


@pytest.mark.parametrize("bops", [0.1, 0.03])
def test_the_expected_cost_arrives_at_the_budget(bops: float) -> None:
    supernet, _, numbers = searched(bops)
    assert float(supernet.cost("bops", relative=True).detach()) == pytest.approx(bops, rel=0.1)
    assert numbers["bops_expected_over_budget"] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("bops", [0.1, 0.03])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", ["measured", "gradient"])
def test_a_selection_spends_its_budget(bops: float, times: int, method: str) -> None:
    """Also one that the search was not trained at: no choice can be made dearer within what the budget leaves."""
    supernet, measured, _ = searched(bops)
    scores = measured if method == "measured" else supernet.scores(method)
    chosen = select(scores, supernet.space, Budget(bops=times * bops))
    share = chosen.cost("bops", relative=True) / (times * bops)
    assert 0.9 <= share <= 1
    for choice in supernet.space.choices:
        for option in choice.options[choice.index(chosen[choice.name]) + 1 :]:
            dearer = Architecture(supernet.space, {**chosen.options, choice.name: option})
            assert dearer.cost("bops", relative=True) > times * bops, (choice.name, option)


@pytest.mark.parametrize("searcher", ["gumbel", "score_function"])
def test_epochs_of_learned_choices_are_whole(searcher: str) -> None:
    """Half an epoch would be none."""
    with pytest.raises(ValueError, match=r"search\.epochs is 0\.5; allowed: whole numbers"):
        SearchConfig(searcher=searcher, epochs=0.5)
