"""Costs against brute force, closed forms, counted floating-point operations and published numbers."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, Attention, Chain, Functional, Grouped, Residual, Separable, Shared, Transposed, example
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from dnas.models.elastic_mobilenet import elastic_mobilenet
from dnas.models.resnet import resnet18, resnet20
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Layer, Space
from dnas.space.conventions import LAYER_COSTS
from dnas.space.cost import COSTS, Cost, Factor, build_cost, reference_cost, smooth_maximum
from dnas.space.slicing import kept_channels, slice_channels, slice_layer

SMALL: dict[str, dict[str, Any]] = {
    "residual": {"weight_bits": (3, 8), "act_bits": (8,), "filters": (0.5, 1.0), "exclude": ("head.fc", "c", "d")},
    "separable": {"weight_bits": (2, 8), "act_bits": (2, 5), "filters": (0.25, 1.0)},
    "concat": {"weight_bits": (8,), "act_bits": (2, 5), "filters": (0.25, 0.5, 1.0)},
    "shared": {"weight_bits": (2, 8), "act_bits": (4, 8), "filters": (0.5, 1.0)},
}
"""Options that leave few enough architectures to enumerate."""


def space_of(name: str, **named: Any) -> Space:
    model = NETWORKS[name]()
    return build_space(model, example(model), **named)


def random_probabilities(space: Space, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        choice.name: torch.softmax(torch.randn(len(choice.options), generator=generator, dtype=torch.float64), 0)
        for choice in space.choices
    }


def slow_layer_cost(name: str, space: Space, layer: Layer, architecture: Architecture) -> float:
    """The conventions written out anew, for one layer of one architecture."""
    c_in = sum(architecture[space.groups[g].choice] * n // space.groups[g].size for g, n in count(layer.inputs.group))
    c_out = sum(architecture[space.groups[g].choice] * n // space.groups[g].size for g, n in count(layer.outputs.group))
    w, a = architecture[layer.weight_choice], architecture[layer.act_choice]
    fan_in = layer.kernel * (1 if layer.depthwise else c_in / layer.groups)
    outputs = layer.positions * c_out
    if name == "macs":
        return outputs * fan_in
    if name == "bops":
        return outputs * fan_in * w * a
    if name == "weight_bits":
        return c_out * fan_in * w
    if name == "bops_uniq":
        return outputs * fan_in * (w * a + a + w + math.log2(fan_in))
    width = math.ceil(math.log2(fan_in * (2**a - 1) * (2 ** (w - 1) - 1)))
    return outputs * fan_in * (w - 1) * a + outputs * (fan_in - 1) * width


def count(groups: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(g, groups.count(g)) for g in sorted(set(groups))]


def architectures(space: Space) -> list[dict[str, int]]:
    names = [choice.name for choice in space.choices]
    every = product(*(choice.options for choice in space.choices))
    return [dict(zip(names, options, strict=True)) for options in every]


def padded(cost: Cost, chances: dict[str, Tensor]) -> Tensor:
    """One row per choice that enters a cost, filled up with zeros."""
    return pad_sequence([chances[name] for name in cost.choices], batch_first=True)


@pytest.mark.parametrize("network", sorted(SMALL))
def test_expectation_is_the_average_over_all_architectures(network: str, generator: torch.Generator) -> None:
    space = space_of(network, **SMALL[network])
    chances = random_probabilities(space, generator)
    every = architectures(space)
    assert 1 < len(every) < 20_000
    costs = {name: build_cost(space, name) for name in COSTS}
    sums: dict[str, Any] = dict.fromkeys(COSTS, 0.0)
    rows = np.zeros(len(costs["peak_activation_bits"].rows))
    for options in every:
        weight = math.prod(float(chances[c.name][c.index(options[c.name])]) for c in space.choices)
        positions = {c.name: c.index(options[c.name]) for c in space.choices}
        for name in COSTS:
            sums[name] += weight * costs[name].at(positions)
        peak = costs["peak_activation_bits"]
        rows += weight * np.array([sum(f.at(positions) for f in row) for row in peak.rows])
    for name in COSTS:
        got = costs[name].expectation(padded(costs[name], chances))
        if name != "peak_activation_bits":
            assert float(got) == pytest.approx(sums[name], rel=1e-10), name
            continue
        found = costs[name].expected_rows(padded(costs[name], chances)).tolist()
        assert found == pytest.approx(rows.tolist(), rel=1e-10)
        assert max(found) <= float(got) <= max(found) * (1 + math.log(len(found)) / 50)


@pytest.mark.parametrize("network", ["residual", "separable", "concat", "shared", "grouped", "transposed", "attention"])
def test_integer_costs_equal_the_conventions_written_out(network: str, generator: torch.Generator) -> None:
    space = space_of(network, weight_bits=(2, 5, 8), act_bits=(2, 5, 8), filters=(0.25, 0.5, 1.0))
    unlisted = sum(fixed.macs for fixed in space.fixed)
    for _ in range(5):
        options = {
            c.name: c.options[int(torch.randint(len(c.options), (1,), generator=generator))] for c in space.choices
        }
        architecture = Architecture(space, options)
        for name in LAYER_COSTS:
            want = sum(slow_layer_cost(name, space, layer, architecture) for layer in space.layers)
            want += {"macs": unlisted, "weight_bits": 0}.get(name, unlisted * 1024)
            got = architecture.cost(name)
            assert got == pytest.approx(want, rel=1e-12), name
            assert isinstance(got, int) or name == "bops_uniq"


@pytest.mark.parametrize("network", ["residual", "separable", "concat"])
def test_gradients(network: str, generator: torch.Generator) -> None:
    space = space_of(network, **SMALL[network])
    searched = [choice.name for choice in space.searched()]
    chances = random_probabilities(space, generator)
    logits = tuple(chances[name].log().requires_grad_() for name in searched)
    for name in COSTS:
        if name == "peak_activation_bits":
            continue  # its smooth maximum is scaled by the maximum, held constant in backward: see below
        cost, scale = build_cost(space, name), reference_cost(space, name)

        def value(*logits: Tensor, cost: Cost = cost, scale: float = scale) -> Tensor:
            given = {name: torch.softmax(x, 0) for name, x in zip(searched, logits, strict=True)}
            return cost.expectation(padded(cost, {**chances, **given})) / scale

        assert torch.autograd.gradcheck(value, logits, eps=1e-6, atol=1e-7)


def test_smooth_maximum() -> None:
    values = torch.tensor([3.0, 2.9, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    found = smooth_maximum(values)
    assert 3.0 <= float(found.detach()) <= 3.0 * (1 + math.log(4) / 50)
    found.backward()
    torch.testing.assert_close(values.grad, torch.softmax(values.detach() * 50 / 3.0, 0))
    assert float(smooth_maximum(torch.zeros(3))) == pytest.approx(0.0, abs=1e-25)


def one_layer(module: nn.Module, shape: tuple[int, ...]) -> Space:
    return build_space(nn.Sequential(module), torch.randn(2, *shape), (3,), (5,), (1.0,), exclude=())


@pytest.mark.parametrize(
    ("module", "shape", "macs", "fan_in", "outputs", "weights"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 5), 27 * 8 * 30, 27, 8 * 30, 216),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 6, 6), 18 * 8 * 9, 18, 8 * 9, 144),
        (nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=6), (6, 4, 7), 15 * 6 * 28, 15, 6 * 28, 90),
        (nn.Conv1d(3, 4, 5), (3, 9), 15 * 4 * 5, 15, 4 * 5, 60),
        (nn.Conv3d(2, 3, 2), (2, 3, 3, 3), 16 * 3 * 8, 16, 3 * 8, 48),
        (nn.Linear(7, 5), (7,), 35, 7, 5, 35),
        (nn.Linear(7, 5), (3, 7), 105, 7, 15, 35),
        (nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), (3, 4, 4), 27 * 8 * 16, 27, 8 * 16, 216),
    ],
)  # fmt: skip
def test_closed_forms_of_one_layer(
    module: nn.Module, shape: tuple[int, ...], macs: int, fan_in: int, outputs: int, weights: int
) -> None:
    space = one_layer(module, shape)
    found = Architecture(space, {c.name: c.options[-1] for c in space.choices})
    w, a = 3, 8  # the network's input has 8 bits
    assert found.cost("macs") == macs
    assert found.cost("bops") == macs * w * a
    assert found.cost("weight_bits") == weights * w
    assert found.cost("bops_uniq") == pytest.approx(macs * (w * a + w + a + math.log2(fan_in)))
    width = math.ceil(math.log2(fan_in * 255 * 3))
    assert found.cost("bops_accumulator") == macs * (w - 1) * a + outputs * (fan_in - 1) * width
    assert found.cost("activation_traffic_bits") == 8 * math.prod(shape)
    assert found.cost("peak_activation_bits") == 8 * math.prod(shape)


@pytest.mark.parametrize(
    "network", ["chain", "residual", "separable", "concat", "twice", "flat", "transposed", "shared"]
)
def test_macs_equal_counted_operations_of_the_smaller_network(network: str, generator: torch.Generator) -> None:
    model = NETWORKS[network]().eval()
    inputs = example(model)
    space = build_space(model, inputs)
    for _ in range(4):
        options = {
            c.name: c.options[int(torch.randint(len(c.options), (1,), generator=generator))] for c in space.choices
        }
        smaller = NETWORKS[network]().eval()
        kept = {i: set(range(options[group.choice])) for i, group in enumerate(space.groups)}
        for layer in space.layers:
            ins, outs = kept_channels(layer.inputs, kept), kept_channels(layer.outputs, kept)
            slice_layer(smaller.get_submodule(layer.name), ins, outs, layer.depthwise)
        for item in space.through:
            slice_channels(smaller.get_submodule(item.name), kept_channels(item.channels, kept))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            smaller(*inputs)
        batch = inputs[0].shape[0]
        assert Architecture(space, options).cost("macs") * 2 * batch == counter.get_total_flops()


@pytest.mark.parametrize("model", [Functional(), Attention(), Grouped(), Transposed()], ids=lambda m: type(m).__name__)
def test_operations_outside_of_layers_count_too(model: nn.Module) -> None:
    inputs = example(model)
    space = build_space(model, inputs)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(*inputs)
    torch.backends.mha.set_fastpath_enabled(fused)
    full = Architecture(space, {c.name: c.options[-1] for c in space.choices})
    assert full.cost("macs") * 2 * inputs[0].shape[0] == counter.get_total_flops()


def test_resnet18_has_the_published_number_of_operations() -> None:
    model = resnet18()
    space = build_space(model, torch.randn(1, 3, 224, 224), (8,), (8,), (1.0,))
    assert round(reference_cost(space, "bops", 32) / 1e9) == 1858
    assert round(reference_cost(space, "bops", 8) / 1e9) == 116
    assert reference_cost(space, "weight_bits", 32) / 32 == sum(p.numel() for p in model.parameters() if p.dim() > 1)


def test_reference_is_the_dearest_architecture() -> None:
    space = space_of("residual")
    full = Architecture(space, {c.name: c.options[-1] for c in space.choices})
    for name in COSTS:
        assert full.cost(name) == pytest.approx(reference_cost(space, name)), name
        assert full.cost(name, relative=True) == pytest.approx(1.0), name


@pytest.mark.parametrize(
    ("network", "branches"),
    [(lambda: resnet20(3, 10), ()), (lambda: elastic_mobilenet(3, 10, stem_stride=1, last=(64, 64)), ("*.se",))],
    ids=["resnet20", "elastic_mobilenet"],
)
def test_relative_costs_are_of_the_full_network_where_blocks_may_be_left_out(
    network: Any, branches: tuple[str, ...]
) -> None:
    """What is held only while a block is left out does not count."""
    model = network().eval()
    space = build_space(model, torch.randn(2, 3, 32, 32), (2, 8), (2, 8), (0.5, 1.0), min_depth=1, branches=branches)
    whole = build_space(model, torch.randn(2, 3, 32, 32), (2, 8), (2, 8), (0.5, 1.0))
    full = Architecture(space, {c.name: c.options[-1] for c in space.choices})
    assert any(choice.kind == "depth" for choice in space.searched())
    for name in COSTS:
        assert reference_cost(space, name) == pytest.approx(reference_cost(whole, name)), name
        assert full.cost(name) == pytest.approx(reference_cost(space, name)), name


def test_a_users_own_cost() -> None:
    def latency(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
        return 100 + c_in * c_out * math.ceil(weight_bits / 4)

    space = space_of("chain", weight_bits=(4, 8), act_bits=(8,), filters=(0.5, 1.0))
    options = {c.name: c.options[0] for c in space.choices}
    architecture = Architecture(space, options, functions={"latency": latency})
    assert architecture.cost("latency") == 300 + 3 * 4 + 4 * 6 + 6 * 5
    assert reference_cost(space, "latency", functions={"latency": latency}) == 300 + 2 * (24 + 96 + 60)
    with pytest.raises(ValueError, match="finite and not negative"):
        build_cost(space, "bad", {"bad": lambda layer, c_in, c_out, w, a: -1.0})
    with pytest.raises(ValueError, match="unknown cost 'wrong'"):
        build_cost(space, "wrong")


def test_the_peak_by_hand() -> None:
    """Every tensor that a layer reads, and every output that waits for an add, is held from making to last reading."""
    model = Residual()
    space = build_space(model, example(model), act_bits=(8,), weight_bits=(8,), filters=(1.0,))
    assert [layer.name for layer in space.layers] == ["stem", "a", "b", "short", "c", "d", "head.fc"]
    cost = build_cost(space, "peak_activation_bits")
    rows = [sum(factor.at({c.name: 0 for c in space.choices}) for factor in row) / 8 for row in cost.rows]
    x, s, y, z = 3 * 64, 8 * 64, 8 * 64, 8 * 64  # the input; stem's output, kept for the skip; a's output; the sum
    q, p, pooled = 12 * 16, 12 * 16, 12  # short's output, waiting for the second sum; c's output; the pooled vector
    assert rows == [x + s, s + y, s + y + z, z + q, z + q + p, q + p + pooled, pooled]
    full = Architecture(space, {c.name: 8 for c in space.choices if c.kind != "filters"} | {
        c.name: c.options[-1] for c in space.choices if c.kind == "filters"})  # fmt: skip
    assert full.cost("peak_activation_bits") == 8 * max(rows)
    assert full.cost("activation_traffic_bits") == 8 * (x + s + y + z + p + pooled)


def test_a_layer_that_runs_twice_counts_twice() -> None:
    model = Shared()
    space = build_space(model, example(model))
    assert space.layer("twice").positions == 64 + 16
    assert space.layer("one").positions == 16 * 2
    cost = build_cost(space, "peak_activation_bits")
    assert len(cost.rows) > len(space.layers)  # one row per execution


def test_chain_traffic_by_hand() -> None:
    model = Chain()
    space = build_space(model, example(model), act_bits=(4,), weight_bits=(4,), filters=(0.5, 1.0))
    options = {c.name: c.options[0] for c in space.choices}
    assert Architecture(space, options).cost("activation_traffic_bits") == 8 * 3 * 64 + 4 * (4 * 64 + 6)


def test_depthwise_layers_are_linear_in_their_filters() -> None:
    model = Separable()
    space = build_space(model, example(model))
    cost = build_cost(space, "macs")
    for i, kept in enumerate(space.choice("expand.filters").options):
        positions = {c.name: len(c.options) - 1 for c in space.choices} | {"expand.filters": i}
        want = 64 * (3 * 8 * 9 + 8 * kept + 9 * kept + kept * 8) + 8 * 5
        assert cost.at(positions) == want


def test_tables_that_differ_in_shape_are_not_padded_to_one_another() -> None:
    """Five choices, each table long along another: padded together they would not fit into memory."""
    factors = []
    for wide in range(5):
        shape = tuple(60 if axis == wide else 2 for axis in range(5))
        factors.append(Factor(tuple("abcde"), np.arange(np.prod(shape), dtype=np.float64).reshape(shape)))
    cost = Cost("odd", (tuple(factors),), (0.0,))
    assert sum(batch.tables.numel() for batch in cost._batches) == sum(factor.table.size for factor in factors)
