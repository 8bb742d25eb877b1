import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr
from torch import Tensor, nn

from dnas.engine import NumericsError
from dnas.recipe import (
    Optimiser,
    OptimiserConfig,
    distillation_losses,
    evaluate,
    evaluate_by_batch,
    reestimate_batch_norm,
    task_loss,
    teacher_logits,
)
from dnas.space.batch_norm import batch_statistics


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


# --- losses


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_equals_the_divergence(generator: torch.Generator, temperature: float) -> None:
    student, teacher = (3 * torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    p = np.exp(log_softmax(teacher.numpy() / temperature, axis=1))
    q = np.exp(log_softmax(student.numpy() / temperature, axis=1))
    wanted = rel_entr(p, q).sum(1).mean() * temperature**2
    assert float(distillation_losses(student, teacher, temperature).mean()) == pytest.approx(wanted, rel=1e-12)
    assert float(distillation_losses(teacher, teacher, temperature).mean()) == pytest.approx(0, abs=1e-12)


def test_distillation_moves_only_the_student(generator: torch.Generator) -> None:
    student, teacher = (torch.randn(7, 4, generator=generator, requires_grad=True) for _ in range(2))
    found = teacher_logits(nn.Linear(4, 4), teacher, 0.5)
    assert found is not None
    assert not found.requires_grad
    task_loss(student, torch.zeros(7, dtype=torch.int64), found, 0.5).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_task_loss_is_a_share_of_both(generator: torch.Generator) -> None:
    logits, target = torch.randn(7, 4, generator=generator), torch.randn(7, 4, generator=generator)
    labels = torch.randint(4, (7,), generator=generator)
    hard, soft = F.cross_entropy(logits, labels), distillation_losses(logits, target).mean()
    assert float(task_loss(logits, labels, target, 0.3)) == pytest.approx(float(0.7 * hard + 0.3 * soft))
    assert float(task_loss(logits, labels, None, 0.3)) == pytest.approx(float(hard), rel=1e-6)
    assert float(task_loss(logits, labels, target, 0.0)) == pytest.approx(float(hard), rel=1e-6)
    assert teacher_logits(None, logits, 0.5) is None
    assert teacher_logits(nn.Linear(4, 4), logits, 0.0) is None


# --- optimiser


def test_schedule_is_warm_up_then_cosine() -> None:
    config = OptimiserConfig(lr=0.2, warmup=0.1)
    optimiser = Optimiser([("w", nn.Parameter(torch.ones(2, 2)))], [], config)
    assert optimiser.rate(0.0) == pytest.approx(0.2 * 1e-3 / 0.101)
    assert optimiser.rate(0.05) == pytest.approx(0.2 * 0.051 / 0.101)
    assert optimiser.rate(0.1) == pytest.approx(0.2)
    assert optimiser.rate(0.55) == pytest.approx(0.1)
    assert optimiser.rate(0.325) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert optimiser.rate(1.0) == pytest.approx(0, abs=1e-12)
    rates = [optimiser.rate(i / 1000) for i in range(1001)]
    assert max(rates) <= 0.2
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert Optimiser([("w", nn.Parameter(torch.ones(2, 2)))], [], OptimiserConfig(lr=0.2, warmup=0.0)).rate(0.0) == 0.2


def test_weight_decay_reaches_weights_alone() -> None:
    """Without gradients of the task, only decay moves a parameter."""
    weight, bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    flat_step, wide_step = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 1, 1, 1))
    named = [("weight", weight), ("bias", bias), ("flat", flat_step), ("wide", wide_step)]
    optimiser = Optimiser(named, [flat_step, wide_step], OptimiserConfig(weight_decay=0.1, warmup=0.0))
    optimiser.step(sum((p.sum() * 0 for _, p in named), torch.zeros(())), 0.0)
    assert float(weight.detach()[0, 0]) < 1
    for parameter in (bias, flat_step, wide_step):
        assert torch.equal(parameter.detach(), torch.ones_like(parameter))


def test_steps_have_a_rate_of_their_own() -> None:
    weight, step = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2))
    config = OptimiserConfig(lr=0.1, momentum=0.0, weight_decay=0.0, step_lr=0.5, clip=100.0, warmup=0.0)
    Optimiser([("w", weight), ("s", step)], [step], config).step(weight.sum() + step.sum(), 0.0)
    assert float(weight.detach()[0, 0]) == pytest.approx(-0.1)
    assert float(step.detach()[0]) == pytest.approx(0.95)


def test_clip_bounds_the_norm_of_all_gradients() -> None:
    weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    config = OptimiserConfig(lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.3, warmup=0.0)
    Optimiser([("w", weight), ("b", bias)], [], config).step(1e6 * (weight.sum() + bias.sum()), 0.0)
    moved = torch.cat([weight.detach().flatten(), bias.detach()])
    assert float(moved.norm()) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_is_named_and_changes_nothing(bad: float) -> None:
    """The parameter that is named is the one that has it, not merely the first one."""
    good, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = Optimiser([("good", good), ("other", other)], [], OptimiserConfig())
    with pytest.raises(NumericsError, match="gradient of other is not finite"):
        optimiser.step(good.sum() + other.sum() * bad, 0.5)
    assert torch.equal(good.detach(), torch.ones(2, 2))
    assert good.grad is not None
    assert torch.isfinite(good.grad).all()


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"clip": 0.0}, {"warmup": 1.0}, {"step_lr": -1.0}]
)
def test_wrong_rates(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimiserConfig(**wrong)


# --- batch norms


@pytest.mark.parametrize(
    ("sizes", "wanted"), [((4, 4, 1), (4, 5)), ((4, 3), (4, 3)), ((4, 1), (5,)), ((5,), (5,)), ((), ())]
)
def test_a_last_batch_of_one_image_joins_the_one_before(sizes: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """One image has no variance after a pooling; every image counts once."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Flatten())
    batches = [
        (torch.randn(size, 3, 4, 4, generator=generator), torch.randint(5, (size,), generator=generator))
        for size in sizes
    ]
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    accuracy, _ = evaluate_by_batch(model, batches)
    assert tuple(seen) == wanted
    correct, at = 0, 0
    if batches:
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        with batch_statistics(model), torch.no_grad():
            for size in wanted:
                correct += int((model(x[at : at + size]).argmax(1) == y[at : at + size]).sum())
                at += size
    assert accuracy == pytest.approx(100 * correct / max(sum(sizes), 1))


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[float | None]]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, [m.training for m in model.modules()], [norm.momentum for norm in norms(model)]


def assert_unchanged(model: nn.Module, before: tuple[dict[str, Tensor], list[bool], list[float | None]]) -> None:
    state, modes, momenta = snapshot(model)
    assert list(state) == list(before[0])
    for name, value in state.items():
        assert torch.equal(value, before[0][name]), name
    assert modes == before[1]
    assert momenta == before[2]


@pytest.mark.parametrize("fails", [False, True])
def test_batch_statistics_leave_no_trace(generator: torch.Generator, fails: bool) -> None:
    model, x = network(), torch.randn(8, 3, 8, 8, generator=generator)
    model(x)  # running statistics of their own
    model[3].eval()
    before = snapshot(model)
    try:
        with batch_statistics(model), torch.no_grad():
            one = model(x)
            assert torch.equal(one, model(x))  # dropout evaluates
            hidden = model[0](x)
            found = model[1](hidden)
            assert torch.allclose(found.mean((0, 2, 3)), model[1].bias.detach(), atol=1e-5)
            with batch_statistics(model):
                assert torch.equal(one, model(x))
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert_unchanged(model, before)


def test_reestimated_statistics_are_those_of_the_images(generator: torch.Generator) -> None:
    model, x = network(), 2 + 3 * torch.randn(12, 3, 8, 8, generator=generator)
    reestimate_batch_norm(model, [(x, torch.zeros(12))])
    with torch.no_grad():
        hidden = model[0](x)
        normed = F.batch_norm(hidden, None, None, model[1].weight, model[1].bias, True)
        deeper = model[4](normed.relu())
    for norm, wanted in ((model[1], hidden), (model[5], deeper)):
        assert torch.allclose(norm.running_mean, wanted.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(norm.running_var, wanted.transpose(0, 1).flatten(1).var(1), atol=1e-4)


def test_every_image_counts_alike(generator: torch.Generator) -> None:
    """Batches of different sizes: the mean is that of all images, the variance the mean of the batches' by size."""
    model, sizes = network(), (6, 5, 1)
    x = torch.randn(12, 3, 8, 8, generator=generator)
    x[11] += 50
    before = snapshot(model)
    parts = x.split(sizes)
    reestimate_batch_norm(model, [(part, torch.zeros(len(part))) for part in parts])
    with torch.no_grad():
        hidden = [model[0](part) for part in parts]
    variance = sum(len(h) * h.transpose(0, 1).flatten(1).var(1) for h in hidden) / 12
    assert torch.allclose(model[1].running_mean, torch.cat(hidden).mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model[1].running_var, variance, atol=1e-4)
    state, modes, momenta = snapshot(model)
    assert (modes, momenta) == before[1:]
    assert all(
        torch.equal(state[name], before[0][name]) for name in state if "running" not in name and "num" not in name
    )


def test_models_without_norms_are_left_alone() -> None:
    model = nn.Linear(3, 2)
    reestimate_batch_norm(model, [(torch.ones(4, 3), torch.zeros(4))])
    assert model.training


def test_evaluate(generator: torch.Generator) -> None:
    model, x = network(), torch.randn(30, 3, 8, 8, generator=generator)
    y = torch.randint(5, (30,), generator=generator)
    before = snapshot(model)
    accuracy, loss = evaluate(model, [(x[:13], y[:13]), (x[13:], y[13:])])
    assert_unchanged(model, before)
    with torch.no_grad():
        logits = model.eval()(x)
    assert accuracy == pytest.approx(100 * float((logits.argmax(1) == y).float().mean()))
    assert loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert evaluate(model, []) == (0.0, 0.0)
