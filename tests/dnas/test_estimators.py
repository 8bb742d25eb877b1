"""Gradient estimators against the exact gradient, by enumerating every sample they can draw."""

from itertools import product

import pytest
import torch
from torch import Tensor

from dnas.engine import Engine, EngineConfig
from dnas.search.budget import Budget
from dnas.search.relax import Relaxation, relax
from dnas.search.score_function import score_function
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import images_seen, search
from dnas.space.build import build_space
from tests.dnas.test_neighbourhood import Counted
from tests.networks import Residual, example

LOGITS = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
LOSSES = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)


def exact(losses: Tensor) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (torch.softmax(logits, 0) * losses).sum().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize(
    ("baseline", "samples"), [("none", 1), ("none", 2), ("leave_one_out", 2), ("leave_one_out", 3)]
)
def test_the_score_function_is_unbiased(baseline: str, samples: int) -> None:
    """The expectation over all ways to draw the samples."""
    logits = LOGITS.clone().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    logs = torch.log_softmax(logits, 0)
    for drawn in product(range(3), repeat=samples):
        chance = logs.detach()[list(drawn)].sum().exp()
        expected = expected + chance * score_function(LOSSES[list(drawn)], logs[list(drawn)], baseline)
    (found,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(found, exact(LOSSES), atol=1e-12)


def test_a_baseline_of_the_other_samples_cuts_the_deviation() -> None:
    """Of losses with a large common part, which says nothing about the options."""
    deviations = {}
    for baseline in ("none", "leave_one_out"):
        torch.manual_seed(0)
        found = []
        for _ in range(400):
            logits = LOGITS.clone().requires_grad_()
            logs = torch.log_softmax(logits, 0)
            drawn = torch.multinomial(logs.detach().exp(), 4, replacement=True)
            (gradient,) = torch.autograd.grad(score_function(20 + LOSSES[drawn], logs[drawn], baseline), logits)
            found.append(gradient)
        deviations[baseline] = float(torch.stack(found).std(0).mean())
    assert deviations["leave_one_out"] < deviations["none"] / 10


def test_too_few_samples_for_a_baseline_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        score_function(LOSSES[:1], LOSSES[:1])
    with pytest.raises(ValueError, match="allowed"):
        score_function(LOSSES, LOSSES, "mean")


def quadratic(sample: Tensor) -> Tensor:
    matrix = torch.tensor([[1.0, 0.4, -0.2], [0.3, -2.0, 0.8], [0.1, 0.5, 0.7]], dtype=torch.float64)
    return sample @ matrix @ sample + (sample * LOSSES).sum()


def straight_through_gradient(mode: str) -> Tensor:
    """The expectation of a mode's gradient, over the options that the noise can pick."""
    total = torch.zeros(3, dtype=torch.float64)
    chances = torch.softmax(LOGITS, 0)
    for option in range(3):
        logits = LOGITS.clone().requires_grad_()
        noise = torch.full((1, 3), -100.0, dtype=torch.float64)
        noise[0, option] = 100.0
        sample = relax(logits.unsqueeze(0), Relaxation(mode, 1.0, 1.0), 1.0, noise)[0]
        assert sample.tolist() == [float(i == option) for i in range(3)]
        (gradient,) = torch.autograd.grad(quadratic(sample), logits)
        total += chances[option] * gradient
    return total


def test_reinmax_is_exact_for_a_loss_of_second_order() -> None:
    losses = torch.stack([quadratic(torch.eye(3, dtype=torch.float64)[i]) for i in range(3)])
    assert torch.allclose(straight_through_gradient("reinmax"), exact(losses), atol=1e-12)


def test_the_log_probability_of_a_draw_is_that_of_its_options() -> None:
    model = Residual()
    space = build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 1.0))
    supernet = Supernet(model, space)
    with torch.no_grad():
        supernet.choices.logits.normal_()
    drawn = supernet.choices.sample()
    expected = 1.0
    for name, chances in supernet.probabilities().items():
        if name in supernet.choices.index:
            expected *= float((chances * supernet.choices.rows(drawn)[name]).sum().detach())
    found = supernet.choices.log_probability(supernet.choices.drawn).exp()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_search_by_score_function_moves_the_logits_to_its_budget_and_counts_its_images() -> None:
    torch.manual_seed(0)
    model = Residual()
    space = build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 1.0))
    supernet = Supernet(model, space)
    config = SearchConfig(
        searcher="score_function", epochs=20, choice_lr=0.1, scores="logits", samples=3, warmup=0.5, batch_size=8
    )
    sets = Counted(0), Counted(1), Counted(2)
    passed = 0

    def count(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal passed
        passed += len(args[0]) * module.training

    supernet.model.register_forward_hook(count)
    search(supernet, Budget(bops=0.1), *sets, model, config, Engine(EngineConfig(device="cpu", progress=False)))
    assert float(supernet.cost("bops", relative=True).detach()) == pytest.approx(0.1, rel=0.25)
    assert passed == images_seen(config, space, 6 * 8)


def test_compositions_have_no_score_function() -> None:
    model = Residual()
    space = build_space(model, example(model), (2, 4), (8,), (1.0,), granularity="filter")
    supernet = Supernet(model, space, Relaxation(filters="composition"))
    config = SearchConfig(searcher="score_function", epochs=1)
    with pytest.raises(ValueError, match="independent filters"):
        search(supernet, Budget(bops=0.5), Counted(0), Counted(1), Counted(2), None, config)
