"""Batch normalisation folded into steps, signs and biases: the same network, the same integers up to their sign."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from quantised_networks import (
    Mixed,
    MixedSequence,
    Network,
    Residual,
    act,
    act_each,
    fix,
    fix_each,
    images,
    network,
    warm,
)
from torch import Tensor, nn

from quant.brevitas import quantised_layers
from quant.export import FORMATS, LAYERS_KEY, Format, export
from quant.graph import read_layers
from quant.runtimes import Run, onnxruntime_runner, qonnx_runner
from quant.verify import VerificationError, verify


def folded_names(path: Path) -> dict[str, str]:
    """Folded batch normalisation by layer, as the metadata list it."""
    (text,) = (p.value for p in onnx.load(path).metadata_props if p.key == LAYERS_KEY)
    return {entry["name"]: entry["batch_norm"] for entry in json.loads(text) if "batch_norm" in entry}


def run(path: Path, format: Format, x: Tensor) -> Run:
    return onnxruntime_runner(path)(x) if format == "qcdq" else qonnx_runner(path, len(x))(x)


def operators(path: Path, kind: str) -> int:
    return sum(node.op_type == kind for node in onnx.load(path).graph.node)


def signed(model: Any) -> None:
    """Negative, and very unequal, factors in every batch normalisation."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            with torch.no_grad():
                sizes = torch.rand(len(module.weight), generator=generator) + 0.3
                module.weight.copy_(sizes * torch.randn(len(sizes), generator=generator).sign())


EXPECTED = {
    Residual: {"stem": "bn0", "block.conv1": "bn1", "block.depth": "bn2", "block.point": "bn3"},
    Mixed: {"stem": "bn0", "depth": "bn1", "grouped": "bn2"},  # a transposed layer with groups shares steps
    MixedSequence: {"conv": "bn"},  # full grids: `hidden` holds a lowest code under a negative factor
}


def file(model: nn.Module, x: Tensor, folder: Path, format: Format, fold: bool) -> Path:
    path = folder / f"{fold}.{format}.onnx"
    export(model, x[:2], path, format, fold_batch_norm=fold)
    return path


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", list(EXPECTED))
def test_folded_files_compute_what_unfolded_ones_do(kind: Any, format: Format, tmp_path: Path) -> None:
    model, x = network(kind), images(kind, 60)
    signed(model)
    plain, folded = (file(model, x, tmp_path, format, fold) for fold in (False, True))
    assert folded_names(plain) == {}
    found = folded_names(folded)
    assert found == EXPECTED[kind]
    assert operators(plain, "BatchNormalization") - operators(folded, "BatchNormalization") == len(folded_names(folded))
    ours, theirs = (run(path, format, x) for path in (plain, folded))
    differ = np.zeros(len(x), bool)
    for name, codes in ours.codes.items():
        differ |= (codes != theirs.codes[name]).reshape(len(x), -1).any(1)
    assert differ.sum() <= 3  # ties
    largest = np.abs(ours.logits).max()
    assert np.abs(ours.logits - theirs.logits)[~differ].max() < 1e-5 * largest
    before, after = ({u.name: u for u in read_layers(path)} for path in (plain, folded))
    for name, use in after.items():
        assert np.array_equal(np.abs(use.weight_codes), np.abs(before[name].weight_codes))
        assert (use.weights, use.activations) == (before[name].weights, before[name].activations)
        if name not in folded_names(folded):
            assert np.array_equal(use.weight_codes, before[name].weight_codes)
            assert np.array_equal(use.weight_steps, before[name].weight_steps)


@pytest.mark.parametrize("kind", [Residual, Mixed, MixedSequence])
def test_folded_files_verify(kind: Network, tmp_path: Path) -> None:
    model, x = network(kind), images(kind, 120)
    signed(model)
    result = verify(model, x[:2], x, {f: file(model, x, tmp_path, f, True) for f in FORMATS}, qonnx_images=40)
    assert result["layers"]["qcdq"] == result["layers"]["qonnx"]
    folded = {layer["name"]: layer["batch_norm"] for layer in result["layers"]["qcdq"] if "batch_norm" in layer}
    assert folded == folded_names(tmp_path / "True.qcdq.onnx") != {}
    for found in result["runtimes"].values():
        assert found["largest_followed_logit_difference"] < 1e-5
        assert found["tied_images"] <= 3


def test_numbers_are_those_of_the_formula(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(fix_each(nn.Conv2d(3, 4, 3), [2, 3, 4, 8], act(8, True, 0.02)), nn.BatchNorm2d(4))
    warm(model, torch.randn(16, 3, 6, 6))
    signed(model)
    export(model, torch.randn(1, 3, 6, 6), tmp_path / "net.onnx", "qcdq", fold_batch_norm=True)
    (layer,), (use,) = quantised_layers(model), read_layers(tmp_path / "net.onnx")
    norm = model[1]
    factor = norm.weight.detach().double().numpy() / np.sqrt(norm.running_var.double().numpy() + norm.eps)
    assert (factor < 0).any()
    np.testing.assert_allclose(use.weight_steps, layer.weight_step.numpy() * np.abs(factor), rtol=1e-6)
    assert np.array_equal(use.weight_codes, layer.codes.numpy() * np.sign(factor).astype(int).reshape(-1, 1, 1, 1))
    bias = (model[0].bias.detach().double().numpy() - norm.running_mean.double().numpy()) * factor
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    np.testing.assert_allclose(
        stored["0.bias.folded"], bias + norm.bias.detach().double().numpy(), rtol=1e-5, atol=1e-6
    )
    assert not any(name.startswith("1.") for name in stored)  # nothing of the normalisation is left
    assert "0.bias" not in stored


# --- what may be folded


class Net(nn.Module):
    """A layer, a batch normalisation, and how they are joined."""

    def __init__(
        self, layer: nn.Module, norm: nn.Module, forward: Callable[[nn.Module, nn.Module, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.how = layer, norm, forward

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.layer(x)) if self.how is None else self.how(self.layer, self.norm, x)
        return result


def conv(narrow: bool = True) -> Any:
    return fix(nn.Conv2d(3, 3, 3, padding=1, bias=False), 4, act(8, True, 0.03), narrow)


def zero_factor(model: Any) -> None:
    model.norm.weight.data[1] = 0.0


def negative(model: Any) -> None:
    model.norm.weight.data.abs_().neg_()


def lowest_code(model: Any) -> None:
    """A negative factor for a filter that holds the code -8, which has no negative in 4 bits."""
    negative(model)
    with torch.no_grad():
        model.layer.weight[0, 0, 0, 0] = -8 * model.layer.weight_quant.quantiser.step[0]


def highest_code(model: Any) -> None:
    """The same grid without its lowest code: 7 turns to -7."""
    negative(model)
    steps = model.layer.weight_quant.quantiser.step.detach().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        model.layer.weight.copy_(torch.maximum(model.layer.weight, -7 * steps))
        model.layer.weight[0, 0, 0, 0] = 7 * steps[0, 0, 0, 0]


def nothing(model: Any) -> None:
    """Leaves the network as it is."""


def read_twice(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    return norm(y) + y


def used_twice(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return norm(layer(x)) + layer(x * 0.5)


def normalised_twice(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return norm(norm(layer(x)))


def activated(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return norm(torch.relu(layer(x)))


def flat(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return norm(layer(x.flatten(1)))


def linear(inputs: int, outputs: int, bias: bool = False) -> Any:
    return fix(nn.Linear(inputs, outputs, bias=bias), 4, act(8, True, 0.03))


CASES: dict[str, tuple[Callable[[], Net], Callable[[Any], None], int]] = {
    "plain": (lambda: Net(conv(), nn.BatchNorm2d(3)), nothing, 1),
    "without affine parameters": (lambda: Net(conv(), nn.BatchNorm2d(3, affine=False)), nothing, 1),
    "negative factors": (lambda: Net(conv(), nn.BatchNorm2d(3)), negative, 1),
    "factor 0": (lambda: Net(conv(), nn.BatchNorm2d(3)), zero_factor, 0),
    "lowest code, negative factor": (lambda: Net(conv(narrow=False), nn.BatchNorm2d(3)), lowest_code, 0),
    "full grid, negative factor": (lambda: Net(conv(narrow=False), nn.BatchNorm2d(3)), highest_code, 1),
    "output read twice": (lambda: Net(conv(), nn.BatchNorm2d(3), read_twice), nothing, 0),
    "layer used twice": (lambda: Net(conv(), nn.BatchNorm2d(3), used_twice), nothing, 0),
    "normalised twice": (lambda: Net(conv(), nn.BatchNorm2d(3), normalised_twice), nothing, 1),
    "activation between": (lambda: Net(conv(), nn.BatchNorm2d(3), activated), nothing, 0),
    "no quantised layer": (lambda: Net(nn.Sequential(conv(), nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)), nothing, 0),
    "linear": (lambda: Net(linear(75, 6), nn.BatchNorm1d(6), flat), nothing, 1),
    "linear with bias": (lambda: Net(linear(75, 6, True), nn.BatchNorm1d(6), flat), nothing, 1),
    "features that are not the channels": (lambda: Net(linear(5, 3), nn.BatchNorm2d(3)), nothing, 0),
    "transposed": (lambda: Net(fix(nn.ConvTranspose2d(3, 4, 2), 4, act_each([3, 4, 8], True)), nn.BatchNorm2d(4)), negative, 1),
    "transposed with groups": (
        lambda: Net(fix(nn.ConvTranspose2d(3, 6, 2, groups=3), 4, act(4, True)), nn.BatchNorm2d(6)), nothing, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_folded_and_what_stays(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, change, count = CASES[name]
    model, x = build(), torch.randn(12, 3, 5, 5)
    change(warm(model, x))
    expected = model(x).detach().numpy()
    for format in FORMATS:
        export(model, x, tmp_path / f"{format}.onnx", format, fold_batch_norm=True)
        assert folded_names(tmp_path / f"{format}.onnx") == ({"layer": "norm"} if count else {})
        found = run(tmp_path / f"{format}.onnx", format, x).logits
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    verify(model, x, x, {format: tmp_path / f"{format}.onnx" for format in FORMATS})
    assert [o.name for o in onnx.load(tmp_path / "qcdq.onnx").graph.output] == ["output"]
    session = onnxruntime.InferenceSession(str(tmp_path / "qcdq.onnx"))
    (one,) = session.run(None, {"input": x[:1].numpy()})
    assert np.abs(one - expected[:1]).max() < 1e-5


def test_what_is_folded_by_default(tmp_path: Path) -> None:
    export(network(Residual), images(Residual, 1), tmp_path / "net.onnx", "qcdq")
    assert operators(tmp_path / "net.onnx", "BatchNormalization") == 4


def test_model_is_left_alone(tmp_path: Path) -> None:
    model = network(Residual)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, images(Residual, 1), tmp_path / "net.onnx", "qcdq", fold_batch_norm=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def change_stored(model: onnx.ModelProto, name: str, change: Callable[[NDArray[Any]], None]) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def add(amount: float) -> Callable[[NDArray[Any]], None]:
    def change(values: NDArray[Any]) -> None:
        values += np.asarray(amount, values.dtype)

    return change


def rewrite(model: onnx.ModelProto, old: str, new: str) -> None:
    (entry,) = (p for p in model.metadata_props if p.key == LAYERS_KEY)
    assert old in entry.value
    entry.value = entry.value.replace(old, new)


TAMPERED: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (lambda m: change_stored(m, "stem.weight.scale", add(1e-4)), r"layer stem: 8 weight step\(s\) differ"),
    (lambda m: change_stored(m, "stem.bias.folded", add(0.3)), r"image \d+, element"),
    (lambda m: rewrite(m, '"batch_norm": "bn0"', '"batch_norm": "bn1"'), "no batch normalisation 'bn1' to fold"),
    (lambda m: rewrite(m, '"batch_norm": "bn1"', '"batch_norm": "bn2"'), r"layer block.conv1: \d+ weight step"),
    (lambda m: rewrite(m, '"batch_norm": "bn0"', '"batch_norm": "stem"'), "no batch normalisation 'stem' to fold"),
    (lambda m: rewrite(m, ', "batch_norm": "bn0"', ""), r"layer stem: \d+ (integer weight|weight step)\(s\) differ"),
]


@pytest.mark.parametrize("position", range(len(TAMPERED)))
def test_tampered_files_fail(position: int, tmp_path: Path) -> None:
    change, text = TAMPERED[position]
    model, x = network(Residual), images(Residual, 12)
    path = file(model, x, tmp_path, "qcdq", True)
    content = onnx.load(path)
    change(content)
    onnx.save(content, path)
    with pytest.raises(VerificationError, match=text):
        verify(model, x, x, {"qcdq": path})
