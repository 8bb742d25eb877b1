"""Measured latency: what is timed, how, how it becomes a cost, and that tables are tied to their machine."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import dnas
from dnas.search.scores import Scores
from dnas.select.program import enumerate_positions
from dnas.select.select import select
from dnas.space import latency
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from dnas.space.latency import LatencyError, LatencyTable, MeasureConfig, machine, measure_latency, microseconds
from dnas.stages.context import open_folder
from dnas.stages.measure import measure_network, warn_if_busy
from quant.brevitas import padding_of
from tests.networks import Residual, example
from tests.small import SMALL
from tests.small import dnas as dnas_command

CONFIG = MeasureConfig(rounds=1, seconds=1e-4, networks=0)


def built(**options: object) -> tuple[nn.Module, Space]:
    torch.manual_seed(0)
    model = Residual().eval()
    return model, dnas.build_space(model, example(Residual()), (4, 8), (8,), (0.5, 1.0), **options)  # type: ignore[arg-type]


def test_every_reachable_configuration_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, space = built()
    timed: list[int] = []

    def fake(runs: list[object], rounds: int, seconds: float) -> list[float]:
        timed.append(len(runs))
        return [5.0, *(10.0 + i for i in range(len(runs) - 1))]

    monkeypatch.setattr(latency, "microseconds", fake)
    table = measure_latency(model, example(Residual())[0], space, CONFIG)
    seen = set()
    cost = table.cost()

    def watched(layer: object, c_in: int, c_out: int, w: int, a: int) -> float:
        seen.add((layer.name, c_in, c_out, layer.kernel, 1))  # type: ignore[attr-defined]
        return cost(layer, c_in, c_out, w, a)  # type: ignore[arg-type]

    tabulated = build_cost(space, "latency_us", {"latency_us": watched})
    assert seen <= set(table.times)
    assert timed[0] <= len(table.times) + 1  # equal configurations share a run; one is the empty call
    assert min(table.times.values()) == 5.0  # less the empty call
    for positions in list(enumerate_positions(space))[::37]:
        expected = 0.0
        for layer in space.layers:
            kept = [
                sum(n * space.choice(space.groups[g].choice).options[positions[space.groups[g].choice]] // space.groups[g].size
                    for g, n in side.counts.items())
                for side in (layer.inputs, layer.outputs)
            ]  # fmt: skip
            expected += max(1, round(table.times[layer.name, kept[0], kept[1], layer.kernel, 1]))
        assert tabulated.at(positions) == expected


def test_budgets_on_latency_hold_in_integers() -> None:
    _, space = built()
    times = {
        (layer.name, a, b, layer.kernel, 1): 10.0 + 0.37 * a * b
        for layer in space.layers
        for a in range(1, len(layer.inputs) + 1)
        for b in range(1, len(layer.outputs) + 1)
    }
    functions = {"latency_us": LatencyTable(times, {}).cost()}
    scores = Scores({c.name: tuple(float(i) for i in range(len(c.options))) for c in space.choices}, "x")
    budget = dnas.Budget(bops=0.6, latency_us=0.7, functions=functions)
    found = select(scores, space, budget)
    cost = build_cost(space, "latency_us", functions)
    limit = budget.limits(space)["latency_us"]
    feasible = [p for p in enumerate_positions(space) if cost.at(p) <= limit]
    assert cost.at(found.positions()) <= limit
    assert 0 < len(feasible) < len(list(enumerate_positions(space)))


def test_medians_of_interleaved_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that take 1 and 3 ticks, and a round in which everything takes ten times as long."""
    clock, order = [0.0], []

    def run(name: str, ticks: float) -> object:
        calls = count()

        def go() -> None:
            order.append(name)
            clock[0] += ticks * (
                10 if next(calls) < 6 else 1
            )  # one call to warm up and five timed ones in the first round

        return go

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    found = microseconds([run("a", 1.0), run("b", 3.0)], 3, 0.0)  # type: ignore[list-item]
    assert found == [1e6, 3e6]
    assert order == (["a"] * 6 + ["b"] * 6) * 3


def test_a_table_belongs_to_its_machine_and_its_space() -> None:
    _, space = built()
    here = machine(CONFIG)
    table = LatencyTable({("a", 1, 2, 9, 0): 3.25}, here, 1.1, 4.0, {"a": "b"}, {"tau": 0.9})
    assert LatencyTable.from_json(table.to_json(), here) == table
    assert LatencyTable.from_json(table.to_json()) == table
    with pytest.raises(LatencyError, match=r"threads.*cost\.any_machine"):
        LatencyTable.from_json(table.to_json(), machine(MeasureConfig(threads=2)))
    with pytest.raises(LatencyError, match="no entry for stem"):
        build_cost(space, "latency_us", {"latency_us": table.cost()})
    assert table.times[("a", 1, 2, 9, 0)] == 3.25


@pytest.mark.parametrize("precision", ["int8", "float"])
@pytest.mark.parametrize("requantised", [True, False])
def test_files_are_those_of_one_layer(precision: str, requantised: bool) -> None:
    model, space = built()
    config = MeasureConfig(precision=precision, rounds=1, seconds=1e-4, networks=0)
    shapes = latency.layer_shapes(model, example(Residual())[0], space, ["a"] if requantised else [])
    file = latency.build_file(latency.configurations(space, shapes, model, {})["a", 8, 8, 9, 1], config)
    onnx.checker.check_model(onnx.load_from_string(file))
    latency.runner(file, 1, 1)()
    operators = [node.op_type for node in onnx.load_from_string(file).graph.node]
    assert operators.count("Conv") == 1
    assert ("DequantizeLinear" in operators) == (precision == "int8")
    assert ("QuantizeLinear" in operators) == (precision == "int8" and requantised)


def test_a_layer_before_an_addition_gives_floats(tmp_path: Path) -> None:
    """conv a is followed by a ReLU and a quantiser, conv b by the addition of the shortcut."""
    model, space = built()
    supernet = dnas.Supernet(model, space).eval()
    full = dnas.Architecture(space, {c.name: c.options[-1] for c in space.choices})
    x = example(Residual())[0]
    dnas.export(dnas.realise(supernet, full).eval(), x[:1], tmp_path / "m.onnx", format="qcdq", fold_batch_norm=True)
    found = latency.requantised_layers((tmp_path / "m.onnx").read_bytes(), [layer.name for layer in space.layers])
    assert {"a", "c"} <= found
    assert not {"b", "d", "short", "head.fc"} & found


def test_eight_times_the_filters_take_longer() -> None:
    """Both interleaved in one call; on 32x32 pixels the ratio is far from 1."""
    shape = latency.Shape("Conv2d", (32, 32), 1, (1, 1), (1, 1), (1, 1))
    few, many = (latency.Configuration(shape, 32, c, 1, (3, 3)) for c in (16, 128))
    runs = [latency.runner(latency.build_file(c, CONFIG), 1, 1) for c in (few, many)]
    times = microseconds(runs, 3, 0.02)
    assert times[1] > 1.5 * times[0]


class Attending(nn.Module):
    """A product of two activations, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        return self.head((x @ x.transpose(1, 2)).mean(2))


def test_what_multiplies_outside_of_layers_is_not_timed() -> None:
    x = torch.randn(2, 3, 8, 8)
    space = dnas.build_space(Attending().eval(), x, (8,), (8,), (1.0,))
    with pytest.raises(LatencyError, match="multiplies 3 times, but has 2 layers"):
        measure_network(Attending().eval(), x, space, CONFIG)


def test_floats_are_judged_by_networks_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files hold no quantiser."""
    timed: list[bytes] = []

    def runner(content: bytes, threads: int, batch: int) -> Callable[[], None]:
        timed.append(content)
        return latency.runner(content, threads, batch)

    monkeypatch.setattr("dnas.stages.measure.runner", runner)
    model = Residual().eval()
    x = example(model)[0]
    space = dnas.build_space(model, x, (8,), (8,), (0.5, 1.0))
    table = measure_network(model, x, space, MeasureConfig(precision="float", rounds=1, seconds=1e-4, networks=9))
    assert table.machine["precision"] == "float"
    assert table.checked is not None
    assert len(timed) == 9
    for content in timed:
        operators = {node.op_type for node in onnx.load_from_string(content).graph.node}
        assert "Conv" in operators
        assert not {"QuantizeLinear", "DequantizeLinear", "Clip"} & operators


def test_layers_that_the_profile_does_not_have_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def profile(content: bytes, layers: list[str], *others: object) -> dict[str, float]:
        return {layer: 1.0 for layer in layers if layer != "b"}

    monkeypatch.setattr("dnas.stages.measure.layer_times", profile)
    model, space = built()
    with pytest.warns(RuntimeWarning, match="has no time for b, which"):
        measure_network(model, example(Residual())[0], space, replace(CONFIG, networks=9))


LATENCY = ("budget.latency_us=1.0", "measure.networks=0", "measure.rounds=1", "measure.seconds=0.0001")


def test_preflight_measures_and_the_folder_is_read_on_any_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("stage=preflight", *SMALL, *LATENCY)
    assert dnas_command(monkeypatch, *given, "folder=unfolded") == 1
    assert "export.fold_batch_norm=true" in capsys.readouterr().err
    assert not (tmp_path / "unfolded").exists()
    assert dnas_command(monkeypatch, *given, "folder=run", "export.fold_batch_norm=true") == 0
    table = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert open_folder(tmp_path / "run").budget.caps["latency_us"] == 1.0
    table["machine"]["processor"] = "another"
    (tmp_path / "run" / "latency.json").write_text(json.dumps(table))
    run = open_folder(tmp_path / "run")
    assert set(run.functions) == {"latency_us"}
    (tmp_path / "table.json").write_text(json.dumps(table))
    other = (*given, "folder=other", "cost.latency=table.json")
    assert dnas_command(monkeypatch, *other) == 1
    assert "cost.any_machine=true" in capsys.readouterr().err
    assert dnas_command(monkeypatch, *other, "cost.any_machine=true") == 0
    assert (tmp_path / "other" / "latency.json").exists()
    strided = (*other, "folder=strided", "cost.any_machine=true", "model.arguments.stem_stride=[1,1]")
    assert dnas_command(monkeypatch, *strided) == 1
    assert "is of another network or other images: " in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "strided").exists()


def test_single_filters_are_not_timed() -> None:
    model, space = built(granularity="filter")
    with pytest.raises(LatencyError, match=r"space\.granularity"):
        measure_latency(model, example(Residual())[0], space, CONFIG)


def test_a_table_of_a_busy_machine_says_so() -> None:
    quiet = LatencyTable({}, machine(CONFIG), checked={"noise": 0.04})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_busy(quiet)
        warn_if_busy(replace(quiet, checked=None))
    with pytest.warns(RuntimeWarning, match=r"differ by 69% .*measure again when it is quiet"):
        warn_if_busy(replace(quiet, checked={"noise": 0.69}))


@pytest.mark.parametrize(
    ("padding", "kernel", "pads"), [("same", 3, [2, 2, 2, 2]), ("same", 4, [3, 3, 3, 3]), ("valid", 3, [0] * 4)]
)
def test_padding_by_name_is_timed_as_a_convolution(padding: str, kernel: int, pads: list[int]) -> None:
    layer = nn.Conv2d(3, 8, kernel, padding=padding, dilation=2)
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 10, 10)
    space = dnas.build_space(model, x, (8,), (8,), (1.0,))
    shapes = latency.layer_shapes(model, x, space, ["0"])
    found = latency.configurations(space, shapes, model, {})["0", 3, 8, kernel**2, 1]
    content = onnx.load_from_string(latency.build_file(found, CONFIG))
    (node,) = [node for node in content.graph.node if node.op_type == "Conv"]
    assert {a.name: list(a.ints) for a in node.attribute}["pads"] == pads
    session = onnxruntime.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {i.name: np.zeros(i.shape, np.uint8) for i in session.get_inputs()})
    assert output.shape[2:] == model[0](x).shape[2:]


def test_uneven_padding_by_name() -> None:
    assert padding_of(nn.Conv1d(1, 1, 4, padding="same")) == (1, 2)
    assert padding_of(nn.Conv2d(1, 1, (4, 3), padding="same")) == (1, 1, 2, 1)
