"""What runs between layers: whose it is, what it takes, and that a branch changes how the layer before it runs."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dnas
from dnas.models import elastic_mobilenet
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from dnas.space.latency import LatencyTable, MeasureConfig, microseconds, runner
from dnas.space.profile import layer_times, owners, refined, table_entries
from dnas.stages.measure import measure_network
from quant.float_file import without_quantisers

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def node(name: str, inputs: str, outputs: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, input=inputs.split(), output=outputs.split())


def test_nodes_go_by_name_else_with_what_they_follow() -> None:
    nodes = [
        node("Transpose_7", "x", "t"),
        node("a.input_quant.codes", "t", "q"),
        node("a_token_12", "q", "y"),
        node("HardSigmoid_3", "y", "s"),
        node("fused a.b", "s", "z"),
        node("Mul_4", "y z", "m"),
        node("c.input_quant/duplicated", "m", "d"),
        node("Add", "d w", "last"),
    ]
    assert owners(nodes, ["a", "a.b", "c", "other"]) == {
        "q": "a", "y": "a", "s": "a", "z": "a.b", "m": "a.b", "d": "c", "last": "c",
    }  # fmt: skip


def test_blocked_convolutions_go_by_the_tensor_that_they_give() -> None:
    nodes = [
        node("Reorder", "x", "r"),
        node("relu_0_nchwc", "r", "relu_0_nchwc"),
        node("bn2_0_nchwc", "relu_0_nchwc", "bn2_0_nchwc"),
        node("Reorder_1", "bn2_0_nchwc", "bn2_0"),
    ]
    known = {"relu_0": "a", "bn2_0": "b"}
    assert owners(nodes, ["a", "b"], known) == {"relu_0_nchwc": "a", "bn2_0_nchwc": "b", "bn2_0": "b"}
    assert owners(nodes, ["a", "b"]) == {}


def small_elastic() -> tuple[torch.nn.Module, Space]:
    torch.manual_seed(0)
    model = elastic_mobilenet(
        3,
        5,
        stem=(8, 8),
        stem_stride=1,
        stages=(8,),
        strides=(2,),
        depth=2,
        last=(16, 16),
        hard_swish_from=1,
        dropout=0.0,
    ).eval()
    space = dnas.build_space(
        model, X, (8,), (8,), {"*.expand.0": (0.5, 1.0)}, kernels=(3, 5), min_depth=1, branches=("*.se",)
    )
    return model, space


@pytest.mark.parametrize("precision", ["int8", "float"])
def test_a_networks_time_is_shared_out_among_its_layers(precision: str, tmp_path: Path) -> None:
    """All of it, of as many images as there are; in floats onnxruntime renames convolutions of 16 channels."""
    model, space = small_elastic()
    supernet = dnas.Supernet(model, space).eval()
    supernet.calibrate(X)
    full = Architecture(space, {choice.name: choice.options[-1] for choice in space.choices})
    file = tmp_path / "m.onnx"
    dnas.export(dnas.realise(supernet, full).eval(), X[:1], file, format="qcdq", fold_batch_norm=True)
    content = without_quantisers(file.read_bytes()) if precision == "float" else file.read_bytes()
    one, whole = microseconds([runner(content, 1, 1), runner(content, 1, 8)], 3, 0.01)
    assert whole > 2 * one
    layers = [layer.name for layer in space.layers]
    found = layer_times(content, layers, 1, whole, 8)
    assert set(found) == set(layers)
    assert 0.5 * whole < sum(found.values()) < 1.5 * whole
    if precision == "int8":
        assert max(found, key=lambda name: found[name]).endswith(
            "depthwise.0"
        )  # two thirds of the pixels' work in floats


def test_what_layers_take_on_top_is_recovered() -> None:
    """Profiles of 1.5 times the layer's own time, 4 microseconds and 0.2 per output channel."""
    generator = np.random.default_rng(0)
    keys = [("a", i, o, 9, 1) for i, o in product((4, 8, 16), (8, 16, 32))]
    table = LatencyTable({key: float(5 + key[1] * key[2] * generator.uniform(0.05, 0.1)) for key in keys}, {})
    wanted = {key: 1.5 * table.times[key] + 4.0 + 0.2 * key[2] for key in keys}
    seen = keys[::2] * 20
    found = refined(table, [{"a": key} for key in seen], [{"a": wanted[key]} for key in seen])
    assert found.times == pytest.approx(wanted, rel=0.02)
    untouched = refined(table, [{}], [{}])
    assert untouched.times == table.times


def test_a_layer_runs_otherwise_without_the_branch_behind_it() -> None:
    """ReLU, then a quantiser: in integers. With squeeze-and-excitation between them the depthwise layer gives floats."""
    model, space = small_elastic()
    table = measure_network(model, X, space, MeasureConfig(rounds=1, seconds=1e-4, networks=0))
    assert table.beside == {f"stages.0.{i}.depthwise.0": f"stages.0.{i}.se.branch" for i in (0, 1)}
    assert LatencyTable.from_json(table.to_json()).beside == table.beside
    times = {key: 100.0 * i for i, key in enumerate(table.times, 1)}
    table = LatencyTable(times, {}, beside=table.beside)
    cost = build_cost(space, "latency_us", {"latency_us": table.cost()})
    names = [choice.name for choice in space.searched()]
    for positions in list(product(*(range(len(space.choice(name).options)) for name in names))):
        chosen = {**{c.name: 0 for c in space.choices}, **dict(zip(names, positions, strict=True))}
        entries = table_entries(table, Architecture.at(space, chosen))
        assert cost.at(chosen) == sum(times[key] for key in entries.values())
