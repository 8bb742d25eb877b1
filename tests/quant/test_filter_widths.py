"""Filters with widths of their own: each equals the filter quantised alone, in training and in both files."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from quantised_networks import (
    WIDTHS,
    Mixed,
    MixedSequence,
    Network,
    act,
    fix,
    fix_each,
    images,
    kinds,
    network,
    stock,
)
from torch import Tensor, nn
from torch.nn import functional as F

from quant.brevitas import filter_axis, fixed_layer, quantised_layers
from quant.export import FORMATS, LAYERS_KEY, Format, export
from quant.graph import read_layers
from quant.layers import training_twin
from quant.pack import packed_bytes
from quant.quantizer import fit_step
from quant.spec import QuantSpec
from quant.verify import VerificationError, verify


def widths(count: int) -> list[int]:
    return WIDTHS[:count]


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("position", range(len(kinds())), ids=lambda i: f"{type(kinds()[i]).__name__}-{i}")
def test_each_filter_equals_stock_brevitas_alone(position: int, narrow: bool) -> None:
    layer: Any = kinds()[position]
    axis = filter_axis(layer)
    bits = widths(layer.weight.shape[axis])
    fixed = fix_each(layer, bits, act(4), narrow)
    steps = fixed.weight_quant.quantiser.step.detach()
    found = fixed.quant_weight()
    (listed,) = quantised_layers(fixed)
    for i, width in enumerate(bits):
        spec = QuantSpec(width, True, narrow)
        alone = stock(layer.weight.select(axis, i), steps[i], spec)
        assert torch.equal(found.value.select(axis, i), alone)
        codes = listed.codes.select(axis, i)
        assert torch.equal(codes, torch.round(alone / steps[i]).to(torch.int8))
        assert codes.abs().max() >= 2 ** (width - 2)  # a narrower grid would show
        assert listed.weights[i] == spec
    assert torch.equal(found.bit_width.flatten(), torch.tensor(bits).float())
    assert found.bit_width.shape == found.scale.shape
    assert torch.equal(found.value, listed.codes * found.scale)


def test_gradients_are_those_of_filters_alone() -> None:
    layer = nn.Conv2d(3, 7, 3)
    fixed = fix_each(layer, [2, 3, 4, 5, 6, 7, 8], act(4))
    upstream = torch.randn(7, 3, 3, 3)
    (fixed.quant_weight().value * upstream).sum().backward()
    steps = fixed.weight_quant.quantiser.step
    for i, width in enumerate([2, 3, 4, 5, 6, 7, 8]):
        alone = fixed_layer(_only(layer, i), QuantSpec(width, True, True), steps.detach()[i : i + 1], fixed.input_quant)
        (alone.quant_weight().value * upstream[i : i + 1]).sum().backward()  # type: ignore[operator]
        assert torch.equal(fixed.weight.grad[i], alone.weight.grad[0])  # type: ignore[index, union-attr]
        assert torch.equal(steps.grad[i], alone.weight_quant.quantiser.step.grad[0])  # type: ignore[union-attr]


def _only(layer: nn.Conv2d, i: int) -> nn.Conv2d:
    result = nn.Conv2d(3, 1, 3)
    result.weight = nn.Parameter(layer.weight.detach()[i : i + 1].clone())
    return result


def test_alike_filters_are_the_uniform_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 6, 6)
    one, each = (nn.Sequential(made(layer)) for made in (_uniform, _alike))
    assert torch.equal(one(x), each(x))
    assert one[0].weight_quant.bit_width().shape == each[0].weight_quant.bit_width().shape == ()
    assert packed_bytes(one) == packed_bytes(each)
    for format in FORMATS:
        for name, model in (("one", one), ("each", each)):
            export(model, x, tmp_path / name, format)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "each").read_bytes()


def _steps(layer: nn.Conv2d) -> Tensor:
    return fit_step(layer.weight, QuantSpec(4, True, True), True)


def _uniform(layer: nn.Conv2d) -> nn.Module:
    return fixed_layer(layer, QuantSpec(4, True, True), _steps(layer), act(4))


def _alike(layer: nn.Conv2d) -> nn.Module:
    return fixed_layer(layer, [QuantSpec(4, True, True)] * 5, _steps(layer), act(4))


class Single(nn.Module):
    """Layers with one filter, through the sequence form; the first ones at two widths and one filter each."""

    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.one = fix_each(nn.Conv2d(2, 1, 3), [3], act(6, True))
        self.up = fix_each(nn.ConvTranspose2d(1, 2, 2, stride=2), [5, 2], act(4))
        self.depth = fix_each(nn.Conv2d(2, 2, 3, groups=2), [2, 4], act(4, True))
        self.head = fix_each(nn.Linear(2, 2), [8, 2], act(8, True))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.depth(self.up(torch.relu(self.one(x)))).mean((2, 3)))
        return logits


def both(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Path]:
    for format in FORMATS:
        export(model, x[:2], folder / f"{format}.onnx", format)
    return {format: folder / f"{format}.onnx" for format in FORMATS}


def test_layers_with_one_or_two_filters_verify(tmp_path: Path) -> None:
    model = Single().eval()
    x = torch.randn(30, *Single.shape)
    result = verify(model, x[:1], x, both(model, x, tmp_path))
    assert [layer["weight_bits"] for layer in result["layers"]["qcdq"]] == [3, [5, 2], [2, 4], [8, 2]]
    assert result["layers"]["qcdq"] == result["layers"]["qonnx"]
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "qcdq.onnx")).run(None, {"input": x.numpy()})
    assert np.abs(found - model(x).detach().numpy()).max() < 1e-6


def test_qonnx_has_one_quant_node_per_width(tmp_path: Path) -> None:
    model = nn.Sequential(fix_each(nn.Conv2d(3, 6, 3), [4, 2, 4, 8, 2, 2], act(4))).eval()
    export(model, torch.randn(1, 3, 5, 5), tmp_path / "net.onnx", "qonnx")
    file = onnx.load(tmp_path / "net.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
    quants = [n for n in file.graph.node if n.op_type == "Quant" and n.input[0] in stored]
    assert [(float(stored[n.input[3]]), stored[n.input[0]].shape[0]) for n in quants] == [(2, 3), (4, 2), (8, 1)]
    weight = model[0].quant_weight().value.detach().numpy()  # type: ignore[operator]
    joined = np.concatenate([stored[n.input[0]] for n in quants])
    assert np.array_equal(joined[stored["0.weight.order"]], weight)
    assert [n.op_type for n in file.graph.node].count("Conv") == 1


@pytest.mark.parametrize("kind", [Mixed, MixedSequence])
def test_packed_size_is_the_sum_of_the_filters_bits(kind: Network) -> None:
    model = network(kind)
    size = packed_bytes(model)
    for layer in quantised_layers(model):
        per_filter = layer.codes.numel() // len(layer.weights)
        assert size.layers[layer.name] == -(-sum(spec.bits * per_filter for spec in layer.weights) // 8)
    steps = {id(p) for name, p in model.named_parameters() if name.endswith("tensor_quant.step")}
    assert size.steps == 4 * sum(p.numel() for p in model.parameters() if id(p) in steps)


@pytest.mark.parametrize("kind", [Mixed, MixedSequence])
def test_copies_and_state_dicts(kind: Network) -> None:
    model, other, x = network(kind), network(kind, seed=1), images(kind, 3)
    expected = model(x)
    assert not torch.equal(other(x), expected)
    clone = copy.deepcopy(model)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert torch.equal(clone(x), expected)
    assert not torch.equal(model(x), expected)
    assert set(clone.state_dict()) == set(model.state_dict())
    assert not any(key.endswith(("lower", "upper", "bits")) for key in clone.state_dict())


def test_training_below_full_precision_computes_in_full(generator: torch.Generator) -> None:
    model = fix_each(nn.Linear(6, 4), [2, 3, 4, 8], act(4))
    weight = model.weight_quant.quantiser
    assert torch.equal(weight(model.weight.bfloat16())[0], weight(model.weight.bfloat16().float())[0])
    x = torch.randn(5, 6, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.mse_loss(training_twin(model)(x).float(), torch.zeros(5, 4))
        other = F.mse_loss(model(x).float(), torch.zeros(5, 4))
    assert torch.equal(loss, other)


# --- files that were tampered with


def tampered(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def stored(name: str, change: Callable[[Any], None]) -> Callable[[onnx.ModelProto], None]:
    """Changes one stored tensor."""

    def apply(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return apply


def listed(layer: str, change: Callable[[dict[str, Any]], None]) -> Callable[[onnx.ModelProto], None]:
    """Changes the metadata of one layer."""

    def apply(model: onnx.ModelProto) -> None:
        (entry,) = (p for p in model.metadata_props if p.key == LAYERS_KEY)
        layers = json.loads(entry.value)
        change(next(found for found in layers if found["name"] == layer))
        entry.value = json.dumps(layers)

    return apply


def put(index: Any, value: float) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        values[index] = value

    return change


def bits(filter: int, width: int) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        entry["weight_bits"][filter] = width

    return change


def unlisted(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def swap(values: Any) -> None:
    values[[0, 1]] = values[[1, 0]]


TAMPERED: list[tuple[str, Format, Callable[[onnx.ModelProto], None], str]] = [
    ("outside of the grid", "qcdq", stored("stem.weight.codes", put((0, 1, 1, 1), 2)),
     r"layer stem: weight grid: filter 0 holds integers -1\.\.2; its 2 bits allow -1\.\.1"),
    ("outside of a narrow grid", "qcdq", stored("stem.weight.codes", put((2, 1, 1, 1), -8)),
     r"filter 2 holds integers -8\.\.7; its 4 bits allow -7\.\.7"),
    ("outside, transposed", "qcdq", stored("up.weight.codes", put((3, 1, 0, 1), 3)), "up: weight grid: filter 1 holds"),
    ("inside of the grid", "qcdq", stored("stem.weight.codes", put((6, 0, 0), 5)), r"integer weight\(s\) differ"),
    ("a narrower width", "qcdq", listed("stem", bits(6, 5)), "filter 6 holds integers"),
    ("a wider width", "qcdq", listed("stem", bits(0, 3)), "qcdq: layer stem: weight grid is .*bits=3"),
    ("one width too few", "qcdq", listed("stem", lambda e: e["weight_bits"].pop()), "lists 7 widths"),
    ("one width for all", "qcdq", listed("stem", lambda e: e.update(weight_bits=8)), "layer stem: weight grid of"),
    ("widths for a uniform layer", "qcdq", listed("plain", lambda e: e.update(weight_bits=[4, 4, 4, 3])),
     "layer plain: weight grid"),
    ("another uniform width", "qcdq", listed("plain", lambda e: e.update(weight_bits=5)), "layer plain: weight grid"),
    ("a full grid", "qcdq", listed("stem", lambda e: e.update(narrow=False)), "layer stem: weight grid"),
    ("no metadata", "qcdq", unlisted, "layer stem: weight grid is"),
    ("width of a node", "qonnx", stored("stem.weight.4bits.bits", put((), 5)), "layer stem: weight grid"),
    ("metadata of nodes", "qonnx", listed("stem", bits(6, 5)), "layer stem: weight grid of"),
    ("order of filters", "qonnx", stored("stem.weight.order", swap), "layer stem: weight grid"),
    ("a filter twice", "qonnx", stored("stem.weight.order", put(0, 1)), "in a new order"),
    ("a value", "qonnx", stored("stem.weight.8bits.values", put((0, 0, 0), 0.7)), r"integer weight\(s\) differ"),
]  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED, ids=lambda case: f"{case[1]} {case[0]}")
def test_tampered_files_fail(case: tuple[str, Format, Callable[[onnx.ModelProto], None], str], tmp_path: Path) -> None:
    _, format, change, text = case
    model, x = network(Mixed), images(Mixed, 2)
    path = tmp_path / "net.onnx"
    export(model, x, path, format)
    tampered(path, change)
    with pytest.raises((VerificationError, ValueError), match=text):
        verify(model, x, x, {format: path})


def test_widths_are_in_the_file_alone(tmp_path: Path) -> None:
    model, x = network(Mixed), images(Mixed, 1)
    for format in FORMATS:
        export(model, x, tmp_path / "net.onnx", format)
        found = {layer.name: layer for layer in read_layers(tmp_path / "net.onnx")}
        assert found["stem"].weight_bits == (2, 3, 4, 5, 6, 7, 8, 2)
        assert found["up"].weight_bits == (4, 2, 8, 3)
        assert found["plain"].weight_bits == 4
        assert found["stem"].weights[2] == QuantSpec(4, True, True)
        assert len(found["plain"].weights) == 4


def test_wrong_grids_are_refused() -> None:
    spec, layer, steps = QuantSpec(4, True), nn.Linear(3, 4), torch.ones(4)
    with pytest.raises(ValueError, match=r"3 grids and a step of shape \(4,\)"):
        fixed_layer(layer, [spec] * 3, steps, act(4))
    with pytest.raises(ValueError, match="only bits may differ"):
        fixed_layer(layer, [spec, spec, spec, QuantSpec(4, True, True)], steps, act(4))
    with pytest.raises(ValueError, match="9 bits; allowed in a realised layer: 2 to 8"):
        fixed_layer(layer, [spec, spec, spec, QuantSpec(9, True)], steps, act(4))
    with pytest.raises(ValueError, match="signed=True"):
        fixed_layer(layer, [QuantSpec(4, False), *[QuantSpec(3, False)] * 3], steps, act(4))
    with pytest.raises(ValueError, match="an empty sequence"):
        fixed_layer(layer, [], steps, act(4))


def test_eight_bit_input_and_filter_widths_in_default_onnxruntime(tmp_path: Path) -> None:
    """Weights of up to 7 bits: with 8 its fused kernels saturate on processors without VNNI."""
    model = nn.Sequential(
        fix_each(nn.Linear(9, 7, bias=False), [2, 3, 4, 5, 6, 7, 2], act(8, True)),
        nn.ReLU(),
        fix(nn.Linear(7, 3), 7, act(8)),
    ).eval()
    x = torch.randn(40, 9)
    export(model, x[:1], tmp_path / "net.onnx", "qcdq")
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"input": x.numpy()})
    assert np.abs(found - model(x).detach().numpy()).max() < 1e-6
