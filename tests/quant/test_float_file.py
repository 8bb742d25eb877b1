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

from quant.brevitas import quantised_layers
from quant.export import export
from quant.float_file import without_quantisers
from tests.quant.quantised_networks import act, fix


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


def test_an_exported_network_computes_with_its_quantised_weights_alone(tmp_path: Path) -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 5)
    )
    fixed = [fix(plain[0], 8, act(8, signed=True)), fix(plain[2], 3, act(4)), fix(plain[4], 2, act(2, signed=True))]
    model = nn.Sequential(fixed[0], nn.ReLU(), fixed[1], nn.Flatten(), fixed[2]).eval()
    x = torch.randn(2, 3, 6, 6)
    export(model, x, tmp_path / "m.onnx", "qcdq")
    found = without_quantisers((tmp_path / "m.onnx").read_bytes())
    assert [node.op_type for node in onnx.load_from_string(found).graph.node] == [
        "Conv",
        "Relu",
        "Conv",
        "Flatten",
        "Gemm",
    ]
    with torch.no_grad():
        for layer, quantised in zip((plain[0], plain[2], plain[4]), quantised_layers(model), strict=True):
            steps = quantised.weight_step.view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.copy_(quantised.codes * steps)
        assert torch.allclose(run(found, x), plain(x), atol=1e-5)


def test_codes_that_are_computed_are_refused() -> None:
    content = by_hand(np.ones((3, 3, 2, 2), np.int8), 0, np.ones(3, np.float32), np.zeros(3, np.int8), "Conv")
    model = onnx.load_from_string(content)
    model.graph.node[3].CopyFrom(helper.make_node("Identity", ["codes"], ["clipped"], name="made"))
    with pytest.raises(ValueError, match="export as qcdq"):
        without_quantisers(model.SerializeToString())
