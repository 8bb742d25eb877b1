"""Verification passes on faithful files, counts float ties, and raises on every kind of corruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from quantised_networks import Mixed, MixedSequence, Network, Residual, Sequence, act, fix, images, network
from torch import Tensor, nn

from quant.export import FORMATS, Format, export
from quant.verify import VerificationError, verify

KINDS = [Residual, Sequence, Mixed, MixedSequence]


def files(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Path]:
    """Both formats of a model."""
    for format in FORMATS:
        export(model, x[:2], folder / f"{format}.onnx", format)
    return {format: folder / f"{format}.onnx" for format in FORMATS}


@pytest.mark.parametrize("kind", KINDS)
def test_faithful_files_pass(kind: Network, tmp_path: Path) -> None:
    model, x = network(kind), images(kind, 1030)
    result = verify(model, x[:2], x, files(model, x, tmp_path), batch=100)
    assert json.loads(json.dumps(result)) == result
    runtimes = result["runtimes"]
    assert {name: run["images"] for name, run in runtimes.items()} == {"integer": 1030, "qcdq": 1030, "qonnx": 100}
    for run in runtimes.values():
        assert run["largest_followed_logit_difference"] < 1e-6
        assert run["differing_predictions"] <= run["tied_images"] <= 5
        assert run["largest_tie_distance"] <= 1e-4
    assert result["layers"]["qcdq"] == result["layers"]["qonnx"]
    assert result["file_bytes"]["qcdq"] == (tmp_path / "qcdq.onnx").stat().st_size
    assert result["packed"]["weights"] == sum(result["packed"]["layers"].values())


def corrupt(path: Path, name: str, change: Callable[[NDArray[Any]], None]) -> None:
    """Changes one stored tensor of a file."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            change(values)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
            onnx.save(model, path)
            return
    raise KeyError(name)


def bump(amount: float) -> Callable[[NDArray[Any]], None]:
    """Adds an amount to the first element."""

    def change(values: NDArray[Any]) -> None:
        values.reshape(-1)[0] += np.array(amount).astype(values.dtype)

    return change


def next_float(values: NDArray[Any]) -> None:
    """The smallest change there is."""
    values.reshape(-1)[0] = np.nextafter(values.reshape(-1)[0], np.float32(1))


CORRUPTIONS: list[tuple[Format, str, Callable[[NDArray[Any]], None], str]] = [
    ("qcdq", "block.conv1.weight.codes", bump(1), r"qcdq: layer block.conv1: 1 integer weight\(s\) differ"),
    ("qcdq", "block.conv1.weight.scale", next_float, r"layer block.conv1: 1 weight step\(s\) differ"),
    ("qcdq", "head.input.scale", next_float, r"layer head: 1 activation step\(s\) differ"),
    ("qcdq", "block.depth.weight.upper", bump(-16), "grid of whole bits"),
    ("qcdq", "block.depth.input.upper", bump(-4), "layer block.depth: activation grid"),
    ("qonnx", "block.down.weight.values", bump(1), r"qonnx: layer block.down: 1 integer weight\(s\) differ"),
    ("qonnx", "block.down.weight.scale", next_float, r"layer block.down: 1 weight step\(s\) differ"),
    ("qonnx", "stem.weight.bits", bump(-1), "layer stem: weight grid"),
    ("qonnx", "stem.weight.zero_point", bump(1), "zero point"),
    ("qcdq", "bn1.bias", bump(0.3), r"qcdq: layer block\.depth, image \d+, element \[0, \d, \d\]: code"),
    ("qonnx", "bn0.weight", bump(0.3), r"qonnx: layer block\.conv1, image \d+, element"),
    ("qcdq", "head.bias", bump(0.01), r"image 0, logit 0: .* though all integer codes agree"),
]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: f"{c[0]}-{c[1]}")
def test_every_corruption_is_found(
    corruption: tuple[Format, str, Callable[[NDArray[Any]], None], str], tmp_path: Path
) -> None:
    format, name, change, text = corruption
    model, x = network(Residual), images(Residual, 12)
    path = tmp_path / "net.onnx"
    export(model, x[:2], path, format)
    verify(model, x[:2], x, {format: path})
    corrupt(path, name, change)
    with pytest.raises((VerificationError, ValueError), match=text):
        verify(model, x[:2], x, {format: path})


def test_other_layers_are_found(tmp_path: Path) -> None:
    model, x = network(Residual), images(Residual, 2)
    export(model, x, tmp_path / "net.onnx", "qcdq", names={"stem": "root"})
    with pytest.raises(VerificationError, match=r"only in the file: \['root'\], only in the network: \['stem'\]"):
        verify(model, x, x, {"qcdq": tmp_path / "net.onnx"})


class Tied(nn.Module):
    """Its second quantiser sees values half a step up to float rounding, which executors order differently."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.first = fix(nn.Linear(1, 1, bias=False), 8, act(8, True, 1.0), narrow=True)
        with torch.no_grad():
            self.first.weight.fill_(1.0)
            self.first.weight_quant.quantiser.step.fill_(1.0)
        self.second = fix(nn.Linear(1, 2), 4, act(4, False, 1.0))
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x) + self.offset)
        return result


@pytest.mark.parametrize(("shift", "passes"), [(5e-5, True), (5e-3, False)])
def test_ties_are_counted_and_anything_wider_raises(shift: float, passes: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied(0.5 - shift).eval()
    x = torch.arange(8.0).reshape(8, 1)
    path = tmp_path / "net.onnx"
    export(model, x, path, "qcdq")
    corrupt(path, "offset", lambda values: values.fill(np.float32(0.5 + shift)))
    if passes:
        run = verify(model, x, x, {"qcdq": path})["runtimes"]["qcdq"]
        assert (run["images"], run["tied_images"], run["ties"]) == (8, 8, 8)
        assert run["largest_tie_distance"] == pytest.approx(shift, rel=0.02)
        assert run["largest_logit_difference"] > 0.1 > 1e-6 > run["largest_followed_logit_difference"]
    else:
        with pytest.raises(VerificationError, match=r"layer second, image 0, element \[0\]: code 1, torch's is 0"):
            verify(model, x, x, {"qcdq": path})


class Deep(Tied):
    """More layers behind the one whose codes are ties."""

    def __init__(self, offset: float) -> None:
        super().__init__(offset)
        self.third = fix(nn.Linear(2, 3), 8, act(4, True, 0.05))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.third(super().forward(x))
        return result


@pytest.mark.parametrize("place", ["second.bias", "third.bias"])
def test_behind_a_tie_everything_is_compared(place: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Deep(0.5 - 5e-5).eval()
    x = torch.arange(8.0).reshape(8, 1)
    path = tmp_path / "net.onnx"
    export(model, x, path, "qcdq")
    corrupt(path, "offset", lambda values: values.fill(np.float32(0.5 + 5e-5)))
    run = verify(model, x, x, {"qcdq": path})["runtimes"]["qcdq"]
    assert run["tied_images"] == 8
    corrupt(path, place, bump(0.2))
    with pytest.raises(VerificationError, match="layer third, image 0" if place == "second.bias" else "logit 0"):
        verify(model, x, x, {"qcdq": path})


def test_a_network_that_is_not_finite_is_not_verified(tmp_path: Path) -> None:
    model, x = network(Residual), images(Residual, 2)
    export(model, x, tmp_path / "net.onnx", "qcdq")
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(VerificationError, match="torch's logits are not finite"):
        verify(model, x, x, {"qcdq": tmp_path / "net.onnx"})


class Named(Residual):
    """Returns its logits in a dict, inside a tuple."""

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor]]:  # type: ignore[override]
        return ({"logits": super().forward(x)},)


def test_nested_outputs(tmp_path: Path) -> None:
    model, x = network(Named), images(Residual, 4)
    found = verify(model, x, x, files(model, x, tmp_path))
    assert {run["images"] for run in found["runtimes"].values()} == {4}


def test_saturated_values_may_differ(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied(100.2).eval()
    x = torch.arange(8.0).reshape(8, 1)
    export(model, x, tmp_path / "net.onnx", "qcdq")
    corrupt(tmp_path / "net.onnx", "offset", bump(20.0))
    run = verify(model, x, x, {"qcdq": tmp_path / "net.onnx"})["runtimes"]["qcdq"]
    assert run["tied_images"] == run["differing_predictions"] == 0


def test_verification_restores_training_flags_and_refuses_wrong_inputs(tmp_path: Path) -> None:
    model, x = network(Sequence), images(Sequence, 3)
    paths = files(model, x, tmp_path)
    model.train()
    model.conv.eval()
    modes = [module.training for module in model.modules()]
    verify(model, x, x, paths, batch=2)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="images of its shape"):
        verify(model, x, x[:, :2], paths)
    with pytest.raises(ValueError, match="allowed: qcdq, qonnx"):
        verify(model, x, x, {"onnx": tmp_path})


class Scaled(nn.Module):
    """Logits, nothing, and what their batch makes of them, or how they are ordered; all of one size."""

    def __init__(self, size: float, frozen: bool = False) -> None:
        super().__init__()
        self.layer = fix(nn.Linear(6, 4), 8, act(8, True, 0.05))
        self.size, self.frozen = size, frozen

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        y = self.size * self.layer(x)
        return y, None, y / (float(y.abs().max()) if self.frozen else 2.0), y.argmax(1)


def test_every_output_is_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 6)
    model = Scaled(1.0).eval()
    verify(model, x, x, files(model, x, tmp_path), batch=5)
    model.frozen = True  # a number that tracing writes down as it was with these two images
    with pytest.raises(VerificationError, match=r"image 0, output 1, element \d: "):
        verify(model, x, x, {"qcdq": files(model, x, tmp_path)["qcdq"]})


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_outputs_of_any_size_are_compared(size: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Scaled(size).eval(), torch.randn(12, 6)
    path = files(model, x, tmp_path)["qcdq"]
    verify(model, x, x, {"qcdq": path})
    content = onnx.load(path)
    output = content.graph.output[0].name
    for node in content.graph.node:
        for names in (node.input, node.output):
            names[:] = ["turned" if name == output else name for name in names]
    content.graph.node.append(onnx.helper.make_node("Neg", ["turned"], [output]))
    onnx.save(content, path)
    with pytest.raises(VerificationError, match="logit"):
        verify(model, x, x, {"qcdq": path})
