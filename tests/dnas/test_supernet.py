"""The supernet: sampling, scores, state, and the networks that it contains."""

import copy
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Chain, Residual, Shared, example, randomise
from scipy.stats import chisquare
from torch import Tensor, nn

import dnas
import quant.mixture
from dnas.search.budget import Budget
from dnas.search.mixed import MixedLayer
from dnas.search.relax import MODES, Relaxation
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from quant.kernel import kernel_available


def make(model: nn.Module | None = None, mode: str = "gumbel_hard", seed: int = 0) -> Supernet:
    model = randomise(Residual()) if model is None else model
    space = build_space(model, example(model), (2, 4, 8), (2, 4, 8), (0.25, 0.5, 1.0))
    return Supernet(model, space, Relaxation(mode), seed=seed)


def train(supernet: Supernet, budget: Budget | None = None, steps: int = 5, choice_rate: float = 0.0) -> list[float]:
    x = example(supernet.model, batch=8)[0]
    y = torch.arange(8) % 5
    optimiser = torch.optim.SGD(
        [
            {"params": list(supernet.weight_parameters()), "lr": 0.01},
            {"params": list(supernet.choice_parameters()), "lr": choice_rate},
        ]
    )
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(supernet(x), y)
        optimiser.zero_grad()
        (loss + (budget.penalty(supernet) if budget else 0.0)).backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def sampled(supernet: Supernet) -> dict[str, int]:
    return {name: int(weights.argmax()) for name, weights in supernet._sample.weights.items()}


def test_a_hard_sample_is_the_fixed_network() -> None:
    supernet = make()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    supernet.train()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = example(supernet.model)[0]
    with torch.no_grad():
        for _ in range(5):
            got = supernet(x)
            positions = sampled(supernet)
            options = {c.name: c.options[positions[c.name]] for c in supernet.space.choices}
            for weights in supernet._sample.weights.values():
                assert sorted(weights.tolist()) == [0.0] * (len(weights) - 1) + [1.0]
            supernet.eval()
            with supernet.evaluate_as(Architecture(supernet.space, options)):
                assert torch.equal(supernet(x), got)
            supernet.train()
            for module in supernet.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_hard_samples_follow_the_softmax(temperature: float) -> None:
    model = Chain()
    space = build_space(model, example(model), (2, 3, 4, 8), (8,), (1.0,))
    supernet = Supernet(model, space, Relaxation(start=temperature, end=temperature), seed=11).train()
    logits = torch.tensor([0.3, -1.0, 0.0, 1.2])
    with torch.no_grad():
        for own in supernet.logits().values():
            own.copy_(logits)
        draws: Counter[int] = Counter()
        joint: Counter[tuple[int, ...]] = Counter()
        for _ in range(2000):
            supernet._draw()
            found = sampled(supernet)
            draws.update(found[c.name] for c in space.searched())
            joint[tuple(found[c.name] for c in list(space.searched())[:2])] += 1
    expected = torch.softmax(logits.double(), 0).numpy()
    total = sum(draws.values())
    assert chisquare([draws[i] for i in range(4)], expected * total).pvalue > 1e-3
    pairs = [joint[i, j] for i in range(4) for j in range(4)]
    assert chisquare(pairs, np.outer(expected, expected).ravel() * 2000).pvalue > 1e-3  # choices are independent


def test_evaluation_by_samples_draws_as_training_does() -> None:
    model = Chain()
    supernet = Supernet(model, build_space(model, example(model), (2, 8), (8,), (1.0,)), seed=3).eval()
    likely = supernet.most_probable().positions()
    draws: Counter[tuple[int, ...]] = Counter()
    with torch.no_grad(), supernet.evaluate_sampled():
        for _ in range(400):
            supernet(*example(model))
            found = sampled(supernet)
            draws[tuple(found[c.name] for c in supernet.space.searched())] += 1
    count = 2 ** len(list(supernet.space.searched()))
    assert len(draws) == count
    assert chisquare(list(draws.values())).pvalue > 1e-3  # the logits are all equal
    supernet(*example(model))
    assert {name: likely[name] for name in sampled(supernet)} == sampled(supernet)


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_options_sum_to_one(mode: str) -> None:
    supernet = make(mode=mode).train()
    supernet(*example(supernet.model))
    for name, weights in supernet._sample.weights.items():
        assert float(weights.detach().sum()) == pytest.approx(1.0, abs=1e-6), name
        hard = sorted(weights.detach().tolist())[-1] == 1.0
        assert hard == (mode in ("gumbel_hard", "reinmax") or len(weights) == 1), name


def test_a_resumed_supernet_draws_the_same() -> None:
    first = make(seed=3).train()
    train(first, Budget(bops=0.1), 3)
    second = make(seed=99).train()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert float(second.multiplier("bops")[0]) == float(first.multiplier("bops")[0]) > 0
    assert train(second, Budget(bops=0.1), 3) == train(first, Budget(bops=0.1), 3)
    for key, value in first.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second.state_dict()[key]), key
    assert first.scores().values == second.scores().values


def test_sampling_does_not_touch_the_global_generator() -> None:
    supernet = make().train()
    before = torch.random.get_rng_state()
    supernet._draw()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", MODES)
def test_scores_do_not_contain_the_price(mode: str) -> None:
    free, priced = make(Residual(), mode), None
    priced = copy.deepcopy(free)
    assert train(free.train()) == train(priced.train(), Budget(bops=0.01, strength=1e4, rate=10.0))
    assert float(priced.multiplier("bops")[0]) > 1
    assert free.scores().values == priced.scores().values
    assert any(any(values) for values in free.scores().values.values())


def test_scores_are_the_gradient_of_the_task() -> None:
    """For a soft relaxation: what the loss loses per unit of an option's weight, by finite differences."""
    supernet = make(mode="softmax").train()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    supernet.double()
    x, y = example(supernet.model)[0].double(), torch.arange(4)
    F.cross_entropy(supernet(x), y).backward()
    name = "c.act_bits" if "c.act_bits" in supernet.logits() else "short.act_bits"
    benefit = supernet.choices.benefits()[name]
    # the same through the chain rule: d loss / d logit_k = p_k (g_k - sum_j p_j g_j), g = -benefit + constant
    p = torch.softmax(supernet.logits()[name].detach(), 0)
    found = supernet.choices.rows(supernet.choices.logits.grad)[name]
    wanted = -p * (benefit - (p * benefit).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)


def test_evaluation_is_discrete_and_repeatable() -> None:
    supernet = make().eval()
    x = example(supernet.model)[0]
    with torch.no_grad():
        for logits in supernet.logits().values():
            logits[1] = 1.0
        got = supernet(x)
        assert torch.equal(got, supernet(x))
        with supernet.evaluate_as(supernet.most_probable()):
            assert torch.equal(got, supernet(x))
    assert {c.options.index(supernet.most_probable()[c.name]) for c in supernet.space.searched()} == {1}
    assert int(supernet.draws) == 0


def test_parameters_are_parted() -> None:
    supernet = make()
    choices = {id(p) for p in supernet.choice_parameters()}
    weights = {id(p) for p in supernet.weight_parameters()}
    learned = {id(p) for p in supernet.parameters() if p.requires_grad}
    assert not choices & weights
    assert choices | weights == learned
    assert {id(p) for p in supernet.step_parameters()} <= weights
    assert {id(p) for p in supernet.model.parameters()} <= weights


def test_one_optimiser_over_everything() -> None:
    supernet = make(mode="gumbel_soft").train()
    optimiser = torch.optim.Adam(supernet.parameters(), lr=0.01)
    budget = Budget(bops=0.1)
    before = {name: value.detach().clone() for name, value in supernet.named_parameters()}
    for _ in range(2):
        loss = F.cross_entropy(supernet(example(supernet.model)[0]), torch.arange(4)) + budget.penalty(supernet)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    changed = {n for n, p in supernet.named_parameters() if n in before and not torch.equal(p.detach(), before[n])}
    assert "choices.logits" in changed
    assert any(n.endswith("stem.layer.weight") for n in changed)


def test_the_users_model_is_left_alone() -> None:
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    supernet = make(model)
    train(supernet.train())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, MixedLayer) for module in model.modules())


@pytest.mark.parametrize("schedule", ["exponential", "cosine", "constant"])
def test_temperature_falls(schedule: str) -> None:
    supernet = Supernet(Chain(), make(Chain()).space, Relaxation(start=2.0, end=0.1, schedule=schedule))
    path = []
    for i in range(11):
        supernet.anneal(i / 10)
        path.append(float(supernet.temperature))
    assert path == sorted(path, reverse=True)
    assert path[0] == pytest.approx(2.0)
    assert path[-1] == pytest.approx(2.0 if schedule == "constant" else 0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        supernet.anneal(1.1)


def test_a_copy_after_training_is_independent() -> None:
    supernet = make(Residual()).train()
    train(supernet, Budget(bops=0.1), 2)
    other = copy.deepcopy(supernet)
    assert train(other, None, 2) == train(supernet, None, 2)  # same draws, same weights
    with torch.no_grad():
        for logits, own in zip(other.logits().values(), supernet.logits().values(), strict=True):
            logits.zero_()[0] = 9.0
            own.zero_()[-1] = 9.0
        x = example(supernet.model)[0]
        before = supernet.eval()(x)
        other.eval()(x)
        assert torch.equal(supernet(x), before)
        with other.evaluate_as(Architecture(other.space, {c.name: c.options[0] for c in other.space.choices})):
            smallest = other(x)
        assert not torch.equal(smallest, before)


def test_realise_straight_after_a_training_step() -> None:
    supernet = make().train()
    train(supernet, None, 1)
    dnas.realise(supernet, supernet.most_probable())


def test_a_module_under_two_names_is_mixed_under_both() -> None:
    supernet = make(Shared())
    assert isinstance(supernet.model.one, MixedLayer)
    assert supernet.model.one is supernet.model.two


@pytest.mark.parametrize("name", ["residual", "chain"])
def test_masked_filters_do_not_matter(name: str) -> None:
    """Whatever the removed filters hold, the network's output is the same."""
    model = randomise({"residual": Residual, "chain": Chain}[name]())
    supernet = make(model).eval()
    space: Space = supernet.space
    smallest = supernet.with_filters(Architecture(space, {c.name: c.options[0] for c in space.choices}))
    x = example(model)[0]
    with torch.no_grad(), supernet.evaluate_as(smallest):
        wanted = supernet(x)
        for layer in space.layers:
            weight = supernet.mixed_layer(layer.name).layer.weight
            for channel, (group, position) in enumerate(zip(layer.outputs.group, layer.outputs.position, strict=True)):
                if position not in smallest.kept[space.groups[group].choice]:
                    weight[channel] = 123.0
        torch.testing.assert_close(supernet(x), wanted)


def test_ranking_keeps_the_largest() -> None:
    supernet = make()
    group = supernet.space.groups[0]
    importance = torch.arange(group.size).flip(0).float()
    importance[5] = 100.0
    supernet.rank_filters({group.choice: importance})
    space = supernet.space
    half = Architecture(space, {c.name: c.options[max(len(c.options) - 2, 0)] for c in space.choices})
    ranked = supernet.with_filters(half).kept
    kept = ranked[group.choice]
    assert kept == tuple(sorted([5, *[i for i in range(group.size) if i != 5][: half[group.choice] - 1]]))
    # an architecture's own filters win over the ranking, and leave it as it was
    ranks = supernet.ranks.clone()
    chosen = Architecture(space, half.options, {**ranked, group.choice: (4, 5, 6, 7)})
    with torch.no_grad(), supernet.eval().evaluate_as(chosen):
        supernet(*example(supernet.model))
        index = supernet._group_offsets[0]
        assert supernet._sample.mask[index : index + group.size].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(ranks, supernet.ranks)


def test_cost_is_the_spaces_cost() -> None:
    supernet = make()
    with torch.no_grad():
        for logits in supernet.logits().values():
            logits.zero_()[0] = 60.0
    smallest = build_cost(supernet.space, "bops").at({c.name: 0 for c in supernet.space.choices})
    assert float(supernet.cost("bops").detach()) == pytest.approx(smallest)


def test_calibration_fits_this_data() -> None:
    model = Chain()
    supernet = make(model)
    before = supernet.mixed_layer("a").activation.steps[0].item()
    modes = [module.training for module in supernet.modules()]
    supernet.calibrate(example(model)[0] * 10)
    assert supernet.mixed_layer("a").activation.steps[0].item() == pytest.approx(10 * before, rel=1e-4)
    assert [module.training for module in supernet.modules()] == modes


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(input=self.a(input=x).relu().mean((2, 3)))
        return result


def test_calibration_of_layers_called_by_keyword(generator: torch.Generator) -> None:
    x = torch.rand(8, 1, 6, 6, generator=generator)
    supernet = Supernet(ByKeyword().eval(), build_space(ByKeyword().eval(), (x,)))
    before = [activation.steps.detach().clone() for activation in supernet.activations.values()]
    supernet.calibrate(10 * x)
    for steps, activation in zip(before, supernet.activations.values(), strict=True):
        assert not torch.equal(steps, activation.steps)


def test_calibration_keeps_no_tensor_to_the_end_of_the_pass() -> None:
    """Of large images the tensors that all layers read do not fit into memory together."""
    layers = [module for _ in range(4) for module in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers).eval(), torch.randn(4, 3, 8, 8)
    supernet = Supernet(model, build_space(model, x), seed=0)
    read: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        alive.append(sum(one() is not None for one in read))
        read.append(weakref.ref(inputs[0].untyped_storage()))

    for name in ("2", "4", "6"):
        supernet.mixed_layer(name).register_forward_pre_hook(watch)
    supernet.calibrate(x)
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_computes_what_plain_torch_computes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step in double precision: loss, and gradients of weights, steps and choices."""
    found = []
    for fast in (True, False):
        monkeypatch.setattr(quant.mixture, "kernel_available", lambda fast=fast: fast and kernel_available())
        torch.manual_seed(5)
        supernet = make(Residual(), mode).train().double()
        loss = F.cross_entropy(supernet(example(supernet.model)[0].double()), torch.arange(4))
        loss.backward()
        found.append(
            {name: p.grad for name, p in supernet.named_parameters() if p.grad is not None} | {"": loss.detach()}
        )
    assert found[0].keys() == found[1].keys() >= {"choices.logits"}
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-9, atol=1e-12, msg=name)


def test_relaxations_that_do_not_exist() -> None:
    for named in ({"mode": "hard"}, {"schedule": "linear"}, {"start": 0.1, "end": 1.0}, {"end": 0.0}):
        with pytest.raises(ValueError, match=r"relax\."):
            Relaxation(**named)


def test_a_space_of_another_model() -> None:
    with pytest.raises(ValueError, match="another model"):
        Supernet(Residual(), make(Chain()).space)


def test_calibration_takes_the_statistics_of_the_images_where_batch_norms_have_seen_none() -> None:
    torch.manual_seed(0)
    fading = nn.Conv2d(3, 8, 3, padding=1)
    nn.init.normal_(fading.weight, std=1e-2)  # initial statistics leave activations this small
    model = nn.Sequential(fading, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(16, 3, 8, 8)
    trained = copy.deepcopy(model).train()
    trained[1].momentum = None  # so that one pass makes the running statistics those of the images
    trained(x)
    trained.eval()
    own = copy.deepcopy(trained)
    own[1].running_var.mul_(4.0)  # type: ignore[operator]

    def step(network: nn.Module, images: Tensor = x) -> float:
        supernet = Supernet(network, build_space(network, x, (2, 8), (4,), (1.0,)), seed=0)
        supernet.calibrate(images)
        norm = next(m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d))
        assert torch.equal(norm.running_var, network[1].running_var)  # type: ignore[index]
        return float(supernet.activations["3/act_bits"].steps.detach()[0])  # type: ignore[index,union-attr]

    assert step(model) == pytest.approx(step(trained), rel=0.02)
    assert step(own) == pytest.approx(step(trained) / 2, rel=0.1)
    assert step(model, x[:1]) < 0.1 * step(model)  # one image has no statistics of its own
