"""Filters that decide for themselves: supernet, architecture, realised network and files agree; samples and gradients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equivalence import assert_close
from networks import NETWORKS, example, randomise
from torch import Tensor, nn

import dnas
from dnas.search.relax import MODES, Relaxation
from dnas.search.supernet import Supernet
from dnas.select.random_filters import _draw
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.exported import check_costs
from quant.brevitas import quantised_layers
from quant.graph import read_layers

FINE: dict[str, Any] = {"weight_bits": (0, 2, 4, 8), "act_bits": (3, 8), "granularity": "filter"}


def built(name: str, relaxation: Relaxation | None = None, **options: Any) -> tuple[Supernet, tuple[Any, ...]]:
    model = randomise(NETWORKS[name]()).eval().double()
    inputs = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in example(model))
    supernet = Supernet(model, dnas.build_space(model, inputs, **{**FINE, **options}), relaxation).eval()
    supernet.calibrate(*inputs)
    return supernet, inputs


def drawn(space: Space, seed: int) -> Architecture:
    return Architecture.at(space, _draw(space, 0.0, np.random.default_rng(seed)))


@pytest.mark.parametrize("options", [{}, {"act_granularity": "filter"}, {"filter_block": 3, "filters": (0.5, 1.0)}])
@pytest.mark.parametrize("name", ["residual", "separable", "concat", "flat", "grouped", "transposed", "two_inputs"])
@torch.no_grad()
def test_masked_is_realised(name: str, options: dict[str, Any]) -> None:
    supernet, inputs = built(name, **options)
    outputs = []
    for seed in range(2):
        architecture = supernet.with_filters(drawn(supernet.space, seed))
        with supernet.evaluate_as(architecture):
            outputs.append(supernet(*inputs))
        realised = dnas.realise(supernet, architecture).eval()
        assert_close(realised(*inputs), outputs[-1], 1e-10)
        widths = {layer.name: [spec.bits for spec in layer.weights] for layer in quantised_layers(realised)}
        for layer in supernet.space.layers:
            kept = [w for w, k in zip(architecture.weight_bits(layer), _stays(architecture, layer), strict=True) if k]
            if "Transpose" not in layer.kind or layer.groups == 1:
                assert widths[layer.name] == kept
        again = Architecture.from_json(architecture.to_json(), supernet.space)
        assert again == architecture
        assert again.cost("bops") == architecture.cost("bops")
    assert not torch.allclose(*outputs)


def _stays(architecture: Architecture, layer: Any) -> list[bool]:
    kept = architecture.kept or {}
    groups = architecture.space.groups
    return [p in kept[groups[g].choice] for g, p in zip(layer.outputs.group, layer.outputs.position, strict=True)]


@pytest.mark.parametrize("options", [{}, {"act_granularity": "filter"}])
def test_files_hold_every_filters_width_and_the_same_cost(options: dict[str, Any], tmp_path: Path) -> None:
    supernet, inputs = built("residual", **options)
    architecture = supernet.with_filters(drawn(supernet.space, 1))
    realised, images = dnas.realise(supernet, architecture).float().eval(), inputs[0].float()
    files = {format: tmp_path / f"{format}.onnx" for format in ("qcdq", "qonnx")}
    for format, path in files.items():
        dnas.export(realised, images, path, format)
        found = check_costs(architecture, read_layers(path))
        assert found["bops"] == architecture.cost("bops")
        assert found["weight_bits"] == architecture.cost("weight_bits")
    verified = dnas.verify(realised, images, images, files)
    assert all(run["differing_predictions"] == 0 for run in verified["runtimes"].values())
    bits = architecture.cost("weight_bits")
    assert bits / 8 <= verified["packed"]["weights"] < bits / 8 + len(supernet.space.layers)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("filters", ["independent", "composition"])
def test_gradients_reach_every_logit_that_matters(mode: str, filters: str) -> None:
    supernet, inputs = built("residual", Relaxation(mode, filters=filters))
    supernet.train()
    target = torch.zeros_like(supernet.choices.logits)
    for _ in range(60):
        supernet(*inputs).square().sum().backward()
        target += supernet.choices.logits.grad.abs()
        supernet.choices.logits.grad = None
    rows = supernet.choices.logit_rows() if filters == "composition" else supernet.logits()
    assert sum(row.numel() for row in rows.values()) <= target.numel()
    silent = (target.sum(1) == 0).sum()
    assert int(silent) <= int(supernet.choices.forced.sum()) + (12 if filters == "composition" else 0)


def test_a_filter_of_every_group_always_stays() -> None:
    supernet, inputs = built("residual")
    supernet.train()
    with torch.no_grad():
        for name, row in supernet.logits().items():
            if name.endswith(".filters"):
                row[:, 1] = -300.0  # nobody wants to stay
    for _ in range(3):
        supernet(*inputs)
        mask = supernet._sample.mask.detach()
        for index, group in enumerate(supernet.space.groups):
            choice = supernet.space.choice(group.choice)
            own = mask[supernet._group_offsets[index] :][: group.size]
            assert float(own.sum()) == (choice.options[0] if choice.by_filter else group.size)
    likely = supernet.most_probable()
    assert float(supernet.cost("macs").detach()) == pytest.approx(likely.cost("macs"), rel=1e-6)


def test_the_expected_cost_is_the_mean_of_samples() -> None:
    supernet, _ = built("separable")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        logits = supernet.choices.logits
        logits.copy_(torch.randn(logits.shape, generator=generator))
    cost, values = supernet.cost_table("bops"), []
    for _ in range(400):
        positions: dict[str, Any] = {}
        found = supernet.choices.sample().detach()
        for choice in supernet.space.choices:
            rows = supernet.choices.index.get(choice.name)
            taken = found[rows].argmax(1).tolist() if rows else [0] * choice.count
            positions[choice.name] = tuple(taken) if choice.by_filter else taken[0]
        values.append(cost.at(positions))
    mean, error = np.mean(values), np.std(values) / len(values) ** 0.5
    assert abs(float(supernet.cost("bops").detach()) - mean) < 4 * error


def test_a_composition_gives_the_widest_option_to_those_that_lose_most() -> None:
    model = NETWORKS["chain"]()
    weight = model.get_submodule("a").weight
    with torch.no_grad():
        weight[3] = torch.tensor([0.5, -1.0] * 13 + [0.5]).reshape(3, 3, 3)  # exact at two bits
        weight[5] = torch.linspace(-1.0, 1.0, 27).reshape(3, 3, 3)  # spread out: no grid of four codes fits
        weight[[0, 1, 2, 4, 6, 7]] = weight[3].clone()
    space = dnas.build_space(model.eval(), example(model), (2, 8), (8,), (1.0,), granularity="filter")
    supernet = Supernet(model, space, Relaxation("softmax", filters="composition"))
    assert supernet.logits()["a.weight_bits"].shape == (2,)
    with torch.no_grad():
        supernet.logits()["a.weight_bits"][1] -= (
            1.7 * supernet.choices.price_temperature()
        )  # about one of eight at 8 bits
    likely = supernet.most_probable()
    assert likely["a.weight_bits"].count(8) == 1
    assert likely["a.weight_bits"][5] == 8


@pytest.mark.parametrize("filters", ["independent", "composition"])
def test_a_search_meets_its_budget(filters: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    x = torch.randn(96, 1, 6, 6, generator=generator)
    y = x[:, 0, :3].mean((1, 2)).argsort().argsort() % 3
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)]
    space = dnas.build_space(model.eval(), x, **{**FINE, "act_bits": (2, 4, 8)})
    supernet = Supernet(model, space, Relaxation(filters=filters))
    supernet.calibrate(x)
    budget = dnas.Budget(bops=0.15)
    config = dnas.SearchConfig(searcher="gumbel", epochs=25, batch_size=32, score_images=96, choice_lr=0.1)
    scores, history = dnas.search(supernet, budget, batches, batches, batches, None, config)
    assert history[-1]["bops_expected_over_budget"] < 1.15
    architecture = dnas.select(scores, space, budget)
    assert 0.9 * 0.15 <= architecture.cost("bops", relative=True) <= 0.15
    assert dnas.random_architecture(space, budget, 0).cost("bops", relative=True) <= 0.15
    uniform = dnas.uniform_architecture(space, 4, 4, 0.5)
    assert dnas.realise(supernet, uniform)(x).shape == (96, 3)


def test_zero_bits_need_filters_that_decide() -> None:
    model = NETWORKS["chain"]()
    with pytest.raises(ValueError, match="granularity=filter"):
        dnas.build_space(model, example(model), (0, 4), (8,))
    with pytest.raises(ValueError, match=r"space\.granularity: 'nothing\.\*' matches no layer"):
        dnas.build_space(model, example(model), granularity={"nothing.*": "filter"})
    with pytest.raises(ValueError, match="filter_block is 0"):
        dnas.build_space(model, example(model), granularity="filter", filter_block=0)


def test_a_cost_that_does_not_add_up_is_refused() -> None:
    supernet, _ = built("chain")
    with pytest.raises(ValueError, match="bops_uniq of layer a does not add up over channels"):
        supernet.cost("bops_uniq")


@pytest.mark.parametrize("block", [1, 3, 4])
@torch.no_grad()
def test_where_blocks_decide_whole_ones_are_filled_in(block: int) -> None:
    """Of every count on offer: the blocks of the best filters, at the cost before, in supernet and realised network."""
    supernet, inputs = built("residual", filter_block=block, filters=(0.25, 1.0))
    space, generator = supernet.space, torch.Generator().manual_seed(block)
    fine = [group for group in space.groups if space.choice(group.choice).by_filter]
    assert any(group.size % 3 for group in fine)
    importance = {group.choice: torch.rand(group.size, generator=generator) for group in fine}
    supernet.rank_filters(importance)
    for share in (0.0, 0.5, 0.75, 1.0):
        architecture = dnas.uniform_architecture(space, 4, 8, share)
        filled = supernet.with_filters(architecture)
        assert filled.cost("bops") == architecture.cost("bops")
        for group in fine:
            size, count = group.size, int(architecture[group.choice])
            blocks = [range(i, min(i + block, size)) for i in range(0, size, block)]
            worth = importance[group.choice]
            best = sorted((b for b in blocks if len(b) == block or count == size), key=lambda b: -float(worth[b].max()))
            assert set(filled.kept[group.choice]) == {i for b in best[: -(-count // block)] for i in b}
        realised = dnas.realise(supernet, architecture).eval()
        assert realised.architecture.cost("bops") == architecture.cost("bops")
        with supernet.evaluate_as(architecture):
            assert_close(realised(*inputs), supernet(*inputs), 1e-10)


def test_filters_that_decide_together_stay_together() -> None:
    supernet, _ = built("chain", filter_block=2)
    space = supernet.space
    group = next(group for group in space.groups if space.choice(group.choice).by_filter)
    likely = supernet.most_probable()
    options = {**likely.options, group.choice: 2}
    assert Architecture(space, options, {**likely.kept, group.choice: (2, 3)}).kept[group.choice] == (2, 3)
    with pytest.raises(ValueError, match=r"of the filters \[2, 3\].* \[3\] are kept; keep all of them or none"):
        Architecture(space, options, {**likely.kept, group.choice: (3, 4)})


def test_as_many_blocks_as_have_to_always_stay() -> None:
    supernet, _ = built("residual", filter_block=2, filters=(0.5, 1.0))
    space = supernet.space
    supernet.rank_filters({g.choice: -torch.arange(g.size).float() for g in space.groups})  # the best stand together
    for group in space.groups:
        choice = space.choice(group.choice)
        if choice.by_filter:
            rows = supernet.choices.index[choice.name]
            assert int(supernet.choices.forced[rows].sum()) * choice.block == choice.options[0]


def test_which_filters_stay_has_to_be_known() -> None:
    supernet, _ = built("chain")
    found = drawn(supernet.space, 0)
    loose = Architecture(supernet.space, found.options)
    with pytest.raises(ValueError, match=r"which .* filters stay is not known"):
        loose.cost("bops")
    with pytest.raises(ValueError, match="needed is one for each of"):
        Architecture(supernet.space, {**found.options, "a.weight_bits": (2,)})
    with pytest.raises(ValueError, match="one option for each of"):
        Architecture(supernet.space, {**found.options, "a.weight_bits": 2})
