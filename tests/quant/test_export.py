"""Exported files: standard operators, the model's own integers and steps, traceable names, dynamic batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from quantised_networks import Mixed, MixedSequence, Network, Residual, Sequence, act, fix, images, network
from torch import Tensor, nn

from quant.brevitas import quantised_layers
from quant.export import LAYERS_KEY, Format, export
from quant.graph import read_layers

KINDS = [Residual, Sequence, Mixed, MixedSequence]
FORMATS: list[Format] = ["qcdq", "qonnx"]


def session(path: Path) -> onnxruntime.InferenceSession:
    """A file in onnxruntime with its default optimisations."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def one_or_all(bits: list[int]) -> int | list[int]:
    """As the metadata lists widths."""
    return bits[0] if bits == bits[:1] * len(bits) else bits


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_file_holds_the_models_integers_steps_and_widths(kind: Network, format: Format, tmp_path: Path) -> None:
    model = network(kind)
    export(model, images(kind, 2), tmp_path / "net.onnx", format)
    found = {layer.name: layer for layer in read_layers(tmp_path / "net.onnx")}
    layers = quantised_layers(model)
    assert set(found) == {layer.name for layer in layers}
    for layer in layers:
        other = found[layer.name]
        assert np.array_equal(other.weight_codes, layer.codes.numpy())
        assert np.array_equal(other.weight_steps, layer.weight_step.numpy())
        assert np.array_equal(other.act_step, layer.activation_step.numpy())
        assert (other.weights, other.activations) == (layer.weights, layer.activations)
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(metadata[LAYERS_KEY]) == [
        {
            "name": layer.name,
            "weight_bits": one_or_all([spec.bits for spec in layer.weights]),
            "act_bits": one_or_all([spec.bits for spec in layer.activations]),
            "act_signed": layer.activations[0].signed,
            "narrow": layer.weights[0].narrow,
        }
        for layer in layers
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_shapes_for_the_cost_are_in_the_graph(format: Format, tmp_path: Path) -> None:
    export(network(Residual), images(Residual, 2), tmp_path / "a.onnx", format)
    export(network(Sequence), images(Sequence, 2), tmp_path / "b.onnx", format)
    found = {x.name: x for name in ("a", "b") for x in read_layers(tmp_path / f"{name}.onnx") if x.name != "head"}

    def facts(name: str) -> tuple[object, ...]:
        x = found[name]
        return x.op, x.weight_shape, x.groups, x.in_channels, x.out_channels, x.input_positions, x.output_positions

    assert facts("block.conv1") == ("Conv", (12, 8, 3, 3), 1, 8, 12, 144, 36)
    assert facts("block.depth") == ("Conv", (12, 1, 3, 3), 12, 12, 12, 36, 36)
    assert facts("up") == ("ConvTranspose", (6, 4, 2), 2, 6, 8, 16, 32)
    assert facts("tokens") == ("MatMul", (5, 8), 1, 8, 5, 32, 32)
    assert json.loads(json.dumps(found["up"].described()))["weight_shape"] == [6, 4, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_qcdq_runs_in_onnxruntime_at_any_batch_size(kind: Network, tmp_path: Path) -> None:
    model = network(kind)
    export(model, images(kind, 2), tmp_path / "net.onnx", "qcdq")
    file = onnx.load(tmp_path / "net.onnx")
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 17)]
    assert all(node.domain == "" for node in file.graph.node)
    run = session(tmp_path / "net.onnx")
    for count in (1, 5):
        x = images(kind, count, seed=count)
        with torch.no_grad():
            expected = model(x).numpy()
        (result,) = run.run(None, {"input": x.numpy()})
        assert np.abs(result - expected).max() < 1e-6


def test_qcdq_stores_integers_and_keeps_batch_normalisation(tmp_path: Path) -> None:
    model = network(Residual)
    export(model, images(Residual, 2), tmp_path / "net.onnx", "qcdq")
    graph = onnx.load(tmp_path / "net.onnx").graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    operators = [node.op_type for node in graph.node]
    assert operators.count("BatchNormalization") == 4
    assert operators.count("DequantizeLinear") == 11  # six weights, five inputs: two layers share a quantiser
    assert operators.count("QuantizeLinear") == 5
    for layer in quantised_layers(model):
        codes = stored[f"{layer.name}.weight.codes"]
        assert codes.dtype == np.int8
        assert np.array_equal(codes, layer.codes.numpy())
        assert f"{layer.name}.weight" not in stored  # no float copy
    assert np.array_equal(stored["bn0.running_var"], model.bn0.running_var.numpy())


def test_qonnx_has_one_quant_node_per_tensor(tmp_path: Path) -> None:
    export(network(Residual), images(Residual, 2), tmp_path / "net.onnx", "qonnx")
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    quants = [node for node in nodes if node.op_type == "Quant"]
    assert len(quants) == 11
    assert {node.domain for node in quants} == {"qonnx.custom_op.general"}
    assert not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_every_width_narrow_and_full_comes_back(bits: int, format: Format, tmp_path: Path) -> None:
    torch.manual_seed(bits)
    model = nn.Sequential(
        fix(nn.Conv2d(2, 3, 3), bits, act(bits, True), narrow=True),
        fix(nn.Conv2d(3, 4, 1), bits, act(bits), narrow=False),
        fix(nn.Conv2d(4, 1, 1), bits, act(bits, True, narrow=True)),
    ).eval()
    export(model, torch.randn(1, 2, 5, 5), tmp_path / "net.onnx", format)
    found = read_layers(tmp_path / "net.onnx")
    assert [(x.weights, x.activations) for x in found] == [
        (layer.weights, layer.activations) for layer in quantised_layers(model)
    ]


class Reused(nn.Module):
    """One layer run twice, after a circular padding; a dictionary of names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = fix(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), 4, act(4, True))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.tanh(self.conv(x)))
        return result


def test_uses_of_one_layer_are_numbered_and_names_can_be_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reused().eval()
    x = torch.randn(2, 3, 6, 6)
    export(model, x, tmp_path / "net.onnx", "qcdq", names={"conv": "body/conv"})
    assert [layer.name for layer in read_layers(tmp_path / "net.onnx")] == ["body/conv", "body/conv#1"]
    (result,) = session(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    assert np.abs(result - model(x).detach().numpy()).max() < 1e-6


def test_model_is_left_alone_and_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(Residual)
    model.bn1.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            export(model, images(Residual, 2), path, "qcdq")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    export(model, images(Residual, 2), path, "qcdq")
    assert list(tmp_path.iterdir()) == [path]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(getattr(m, "export_mode", False) for m in model.modules())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed: qcdq, qonnx"):
        export(network(Sequence), images(Sequence, 1), tmp_path / "x", "onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no quantised layers"):
        export(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "x", "qcdq")


class LastDimension(nn.Module):
    """A layer on images in channels-last, as `movedim` makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = fix(nn.Linear(3, 4), 4, act(8, signed=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.movedim(1, -1)).movedim(-1, 1)


def test_movedim_from_the_last_dimension(tmp_path: Path) -> None:
    model, x = LastDimension().eval(), torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    export(model, x, tmp_path / "net.onnx", "qcdq")
    (found,) = session(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda model, x: (model.double(), x), r"layer stem: weight is torch\.float64; allowed: torch\.float32"),
        (lambda model, x: (model, x.half()), r"input 0 is torch\.float16; allowed: torch\.float32"),
    ],
)
def test_other_types_than_float32_are_refused(change: Any, text: str, tmp_path: Path) -> None:
    model, x = change(network(Residual), images(Residual, 2))
    with pytest.raises(ValueError, match=text):
        export(model, x, tmp_path / "net.onnx", "qcdq")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("parameter", ["head.weight", "head.bias"])
def test_values_that_are_not_finite_are_refused(parameter: str, format: Format, tmp_path: Path) -> None:
    model = network(Residual)
    with torch.no_grad():
        model.get_parameter(parameter).reshape(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=r"layer head: (weight|bias) holds values that are not finite"):
        export(model, images(Residual, 2), tmp_path / "net.onnx", format)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"stem": "a", "head": "a"}, r"several layers would be named \['a'\]"),
        ({"stem": "head"}, r"several layers would be named \['head'\]"),
        ({"tail": "a"}, r"names has \['tail'\]; quantised layers are"),
    ],
)
def test_names_belong_to_one_layer_each(names: dict[str, str], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        export(network(Residual), images(Residual, 2), tmp_path / "net.onnx", "qcdq", names)
