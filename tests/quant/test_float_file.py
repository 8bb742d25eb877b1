"""A file without its quantisers against torch: weights at the values of their codes, activations as they are."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from quant.brevitas import filter_axis, quantised_layers
from quant.export import export
from quant.float_file import without_quantisers
from tests.quant.quantised_networks import act, act_each, fix, fix_each


def run(content: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def by_hand(codes: np.ndarray, axis: int, scale: np.ndarray, zero: np.ndarray, op: str) -> bytes:
    """x, quantised with a step of 1, times codes that are clipped to [-4, 3]."""
    tensors = {
        "step": np.float32(1.0), "zero": np.uint8(0), "top": np.uint8(7), "bottom": np.uint8(0), "codes": codes,
        "low": np.int8(-4), "high": np.int8(3), "steps": scale, "zeros": zero, "unread": np.float32(5),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("Clip", ["q", "bottom", "top"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "step", "zero"], ["xd"]),
        helper.make_node("Clip", ["codes", "low", "high"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["clipped", "steps", "zeros"], ["w"], axis=axis),
        helper.make_node(op, ["xd", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "hand", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * 4)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(("op", "axis"), [("Conv", 0), ("ConvTranspose", 1), ("ConvTranspose", -3)])
def test_codes_become_their_values(op: str, axis: int) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-8, 8, (3, 3, 2, 2)).astype(np.int8)
    scale, zero = np.array([0.5, 0.25, 2.0], np.float32), np.array([0, 1, -2], np.int8)
    found = without_quantisers(by_hand(codes, axis, scale, zero, op))
    assert [node.op_type for node in onnx.load_from_string(found).graph.node] == [op]
    assert {tensor.name for tensor in onnx.load_from_string(found).graph.initializer} == {"w"}
    shape = (3, 1, 1, 1) if op == "Conv" else (1, 3, 1, 1)
    values = torch.from_numpy(codes).float().clamp(-4, 3) - torch.from_numpy(zero).float().view(shape)
    weight = values * torch.from_numpy(scale).view(shape)
    x = torch.rand(2, 3, 5, 5) * 20 - 10  # most of it beyond what the quantiser keeps
    wanted = F.conv2d(x, weight) if op == "Conv" else F.conv_transpose2d(x, weight)
    assert torch.allclose(run(found, x), wanted, atol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
def test_an_exported_network_computes_with_its_quantised_weights_alone(folded: bool, tmp_path: Path) -> None:
    """Against plain layers that hold codes times steps; a layer's widths are its filters' own, another runs twice."""
    first, second, linear = nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, 6, 3, padding=1), nn.Linear(216, 5)
    norm = nn.BatchNorm2d(6).eval()
    norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    fixed = [
        fix(first, 8, act(8, signed=True)), fix(second, 3, act(4)), fix_each(linear, [2, 3, 4, 8, 2], act(2, signed=True)),
    ]  # fmt: skip
    model = nn.Sequential(fixed[0], norm, nn.ReLU(), fixed[1], nn.ReLU(), fixed[1], nn.Flatten(), fixed[2]).eval()
    x = torch.randn(2, 3, 6, 6)
    export(model, x, tmp_path / "m.onnx", "qcdq", fold_batch_norm=folded)
    found = onnx.load_from_string(without_quantisers((tmp_path / "m.onnx").read_bytes()))
    assert not found.metadata_props
    operators = [node.op_type for node in found.graph.node]
    assert [name for name in operators if "Conv" in name] == ["Conv", "ConvTranspose", "ConvTranspose"]
    assert ("BatchNormalization" in operators) == (not folded)
    plain = nn.Sequential(first, norm, nn.ReLU(), second, nn.ReLU(), second, nn.Flatten(), linear)
    with torch.no_grad():
        for layer, quantised in zip((first, second, linear), quantised_layers(model), strict=True):
            shape = [-1 if i == filter_axis(layer) else 1 for i in range(layer.weight.dim())]
            layer.weight.copy_(quantised.codes * quantised.weight_step.view(shape))
        assert torch.allclose(run(found.SerializeToString(), x), plain(x), atol=1e-4)


def test_codes_that_are_computed_are_refused() -> None:
    content = by_hand(np.ones((3, 3, 2, 2), np.int8), 0, np.ones(3, np.float32), np.zeros(3, np.int8), "Conv")
    model = onnx.load_from_string(content)
    model.graph.node[3].CopyFrom(helper.make_node("Identity", ["codes"], ["clipped"], name="made"))
    with pytest.raises(ValueError, match=r"reads 'clipped', which is neither.*format='qcdq'"):
        without_quantisers(model.SerializeToString())


def test_files_that_keep_quantisers_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 6, 6)
    model = nn.Sequential(fix(nn.Conv2d(3, 4, 3), 4, act(4, signed=True))).eval()
    export(model, x, tmp_path / "m.qonnx", "qonnx")
    with pytest.raises(ValueError, match=r"Quant .* is left; .*format='qcdq'"):
        without_quantisers((tmp_path / "m.qonnx").read_bytes())
    each = nn.Sequential(fix(nn.Conv2d(3, 4, 3), 4, act_each([2, 4, 8], signed=True))).eval()
    export(each, x, tmp_path / "each.onnx", "qcdq")
    with pytest.raises(ValueError, match="layer 0: activations with a step for every channel"):
        without_quantisers((tmp_path / "each.onnx").read_bytes())
