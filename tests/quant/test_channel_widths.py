"""Input channels with widths and steps of their own: codes in torch, in onnxruntime and in qonnx are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from quantised_networks import Mixed, act, act_each, fix, images, network, stock
from test_filter_widths import put, stored, swap, tampered
from torch import Tensor, nn

from quant.brevitas import act_quantizer, fixed_layer
from quant.export import FORMATS, Format, export
from quant.graph import read_layers
from quant.integer import integer_reference
from quant.runtimes import TorchRunner, onnxruntime_runner, qonnx_runner
from quant.spec import QuantSpec
from quant.verify import VerificationError, verify

BITS = [2, 3, 4, 5, 6, 7, 8, 8]
LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
GRIDS = [(False, False), (True, False), (True, True)]
KINDS: list[Any] = [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear]


def model_of(kind: Any, signed: bool, narrow: bool, bits: list[int] = BITS) -> Any:
    """One layer that passes its input on: the output is the dequantised input, sums of one product each."""
    channels = len(bits)
    layer: Any = nn.Linear(channels, channels) if kind is nn.Linear else kind(channels, channels, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels).reshape(layer.weight.shape))
        layer.bias.zero_()
    generator = torch.Generator().manual_seed(len(bits))
    steps = torch.rand(channels, generator=generator) * 0.3 + 0.01
    specs = [QuantSpec(b, signed, narrow) for b in bits]
    activation = act_quantizer(specs, steps, -1 if kind is nn.Linear else 1)
    return nn.Sequential(fixed_layer(layer, QuantSpec(8, True), torch.ones(channels), activation)).eval()


def awkward(model: Any, kind: Any) -> Tensor:
    """Ties, values near them, the ends of every grid, and values far outside; channels where the layer has them."""
    steps = model[0].input_quant.quantiser.step.detach()
    halves = torch.arange(-300, 301).float() / 2
    base = steps[:, None] * halves
    up, down = (torch.nextafter(base, torch.tensor(end)) for end in (torch.inf, -torch.inf))
    far = torch.tensor([1e30, -1e30, 1e9, -1e9, 0.0, -0.0, 1e-30, torch.inf, -torch.inf]).expand(len(steps), -1)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(len(steps), 500, generator=generator) * steps[:, None] * 300
    rows = torch.cat([base, up, down, far, noise], 1)  # (channels, values)
    if kind is nn.Linear:
        return rows.T.reshape(1, -1, len(steps))
    return rows[None] if kind is nn.Conv1d else rows[None, :, None]


def alone(model: Any, kind: Any, x: Tensor) -> Tensor:
    """Every channel by stock Brevitas at its own width."""
    quantiser = model[0].input_quant.quantiser
    dim = -1 if kind is nn.Linear else 1
    parts = [stock(x.select(dim, i), quantiser.step[i], spec) for i, spec in enumerate(quantiser.each())]
    return torch.stack(parts, dim).detach()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("bits", [BITS, [3] * 8, [8] * 8], ids=["each", "3 bits", "8 bits"])
def test_codes_are_the_same_everywhere(kind: Any, grid: tuple[bool, bool], bits: list[int], tmp_path: Path) -> None:
    model = model_of(kind, *grid, bits)
    x = awkward(model, kind)
    expected = alone(model, kind, x)
    assert torch.equal(model[0].input_quant(x), expected)
    steps = model[0].input_quant.quantiser.step.detach()
    ours = TorchRunner(model)(x).codes["0"]
    along = steps if kind is nn.Linear else steps.reshape(-1, *[1] * (x.dim() - 2))
    assert np.array_equal(ours, torch.round(expected / along).numpy())
    for format in FORMATS:
        export(model, x.clamp(-1, 1), tmp_path / f"{format}.onnx", format)
        (layer,) = read_layers(tmp_path / f"{format}.onnx")
        assert layer.act_bits == (bits[0] if bits == bits[:1] * 8 else tuple(bits))
        assert np.array_equal(layer.act_step, steps.numpy())
        assert [spec.bits for spec in layer.activations] == bits
    assert np.array_equal(onnxruntime_runner(tmp_path / "qcdq.onnx")(x).codes["0"], ours)
    finite = torch.where(x.abs() > 1e20, x.sign() * 1e20, x)  # qonnx computes 0 * inf on the way
    assert np.array_equal(qonnx_runner(tmp_path / "qonnx.onnx", 1)(finite).codes["0"], ours)
    integer = integer_reference(model).layers["0"].input_codes(x.double()).numpy()
    exact = (x.double() / along.double()).clamp(-1e6, 1e6).numpy()
    tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-5  # a quotient of floats can fall on one
    assert np.array_equal(integer[~tie], ours[~tie])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_onnxruntime_computes_it_whatever_it_optimises(kind: Any, tmp_path: Path) -> None:
    model = model_of(kind, True, False)
    x = awkward(model, kind).clamp(-1e4, 1e4)
    export(model, x, tmp_path / "net.onnx", "qcdq")
    expected = model(x).detach().numpy()
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), options)
        for count in (1, 3):
            (found,) = session.run(None, {"input": x.expand(count, *x.shape[1:]).numpy()})
            assert np.abs(found - expected).max() < 1e-5


def test_qcdq_has_standard_operators_alone(tmp_path: Path) -> None:
    export(network(Mixed), images(Mixed, 1), tmp_path / "net.onnx", "qcdq")
    file = onnx.load(tmp_path / "net.onnx")
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 17)]
    quantise = [node for node in file.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantise) == 7  # two layers share one quantiser
    assert not any(node.attribute for node in quantise)


def gradient(x: Tensor, step: Tensor, specs: list[QuantSpec], elements: int, upstream: Tensor) -> list[Tensor]:
    """LSQ in operations that autograd knows (Esser et al. 2019, appendix B); channels along dimension 1."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    lower, upper = torch.tensor([float(s.lower) for s in specs]), torch.tensor([float(s.upper) for s in specs])
    scale = (elements * upper) ** -0.5
    s = ((step - step * scale).detach() + step * scale).reshape(shape)
    v = torch.maximum(torch.minimum(x / s, upper.reshape(shape)), lower.reshape(shape))
    return list(torch.autograd.grad((((v.round() - v).detach() + v) * s * upstream).sum(), (x, step)))


@pytest.mark.parametrize("linear", [False, True])
def test_gradients_equal_plain_autograd(linear: bool, generator: torch.Generator) -> None:
    specs = [QuantSpec(b, True) for b in (2, 3, 5, 8)]
    step = torch.rand(4, generator=generator) / 4 + 0.05
    x = torch.randn(6, 4, *([] if linear else [5, 3]), generator=generator).requires_grad_()
    upstream = torch.randn(x.shape, generator=generator)
    proxy = act_quantizer(specs, step, -1 if linear else 1)
    (proxy(x) * upstream).sum().backward()
    found, leaf = proxy.quantiser.step.grad, step.clone().requires_grad_()
    wanted = gradient(x.detach().requires_grad_(), leaf, specs, 1 if linear else 15, upstream)
    torch.testing.assert_close(x.grad, wanted[0])
    torch.testing.assert_close(found, wanted[1], rtol=1e-5, atol=1e-6)


def test_integer_reference_sums_scaled_codes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(fix(nn.Linear(6, 4), 5, act_each([2, 3, 4, 5, 6, 8], True, -1))).eval()
    x = torch.randn(9, 6)
    quantiser: Any = model[0].input_quant
    codes = quantiser.quantiser.codes(x).detach().numpy().astype(object)
    steps = quantiser.quantiser.step.tolist()
    weights: NDArray[Any] = model[0].weight_quant.quantiser.codes(model[0].weight).detach().numpy().astype(object)
    scale = model[0].weight_quant.quantiser.step.tolist()  # type: ignore[operator, union-attr]
    reference = integer_reference(model)
    found = reference(x).numpy()
    for row in range(9):
        for out in range(4):
            total = sum(codes[row, i] * steps[i] * weights[out, i] for i in range(6)) * scale[out]
            assert found[row, out] == pytest.approx(total + model[0].bias[out].item(), rel=1e-12)  # type: ignore[index]
    assert reference.accumulators() == {}


def another_step(values: Any) -> None:
    values.reshape(-1)[0] *= 1.5


def fraction(values: Any) -> None:
    values.reshape(-1)[0] += 0.5


def without_division(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.name == "stem.input_quant.divided":
            node.op_type = "Sub"


def bare_mul(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "stem.input_quant")
    node.input[1] = "unknown"
    model.graph.node.insert(0, helper.make_node("Abs", ["stem.input.steps"], ["unknown"]))


TAMPERED: list[tuple[Format, Any, str]] = [
    ("qcdq", stored("stem.input.steps", another_step), r"layer stem: 1 activation step\(s\) differ"),
    ("qcdq", stored("stem.input.upper", put((0, 0, 0, 0), 100.0)), r"-128\.\.100 are no signed grid of whole bits"),
    ("qcdq", stored("stem.input.upper", fraction), "pairs of integers"),
    ("qcdq", stored("depth.input.upper", put((0, 0, 0, 0), 7.0)), "layer depth: activation grid of"),
    ("qcdq", stored("stem.input.scale", put((), 2.0)), "need a quantiser of step 1"),
    ("qcdq", stored("head.weight.scale", put((), 0.5)), "head.weight_quant: codes .* need a quantiser of step 1"),
    ("qcdq", stored("head.weight.steps", another_step), r"layer head: 1 weight step\(s\) differ"),
    ("qcdq", without_division, "those that multiply afterwards differ"),
    ("qcdq", bare_mul, "the weights are quantised but the input is not"),
    ("qonnx", stored("stem.input.8bits.scale", another_step), r"layer stem: 1 activation step\(s\) differ"),
    ("qonnx", stored("stem.input.8bits.bits", put((), 4)), "layer stem: activation grid of"),
    ("qonnx", stored("stem.input.order", swap), "not the entries of one tensor in their order"),
    ("qonnx", stored("stem.input.8bits.channels", put(0, 1)), "not the entries of one tensor in their order"),
]


@pytest.mark.parametrize("position", range(len(TAMPERED)))
def test_tampered_files_fail(position: int, tmp_path: Path) -> None:
    format, change, text = TAMPERED[position]
    model, x = network(Mixed), images(Mixed, 2)
    export(model, x, tmp_path / "net.onnx", format)
    tampered(tmp_path / "net.onnx", change)
    with pytest.raises((VerificationError, ValueError), match=text):
        verify(model, x, x, {format: tmp_path / "net.onnx"})


def test_step_of_another_axis_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(fix(nn.Conv1d(3, 4, 1), 4, act_each([2, 4, 3]))).eval()
    export(model, torch.randn(1, 3, 3), tmp_path / "net.onnx", "qcdq")
    file = onnx.load(tmp_path / "net.onnx")
    for tensor in file.graph.initializer:
        if tensor.name in ("0.input.steps", "0.input.lower", "0.input.upper"):
            turned = numpy_helper.to_array(tensor).reshape(1, 1, 3)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), tensor.name))
    onnx.save(file, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"0: scales along 0 \(weights\) and 2 \(input\) of Conv"):
        read_layers(tmp_path / "net.onnx")


def test_one_quantiser_for_two_layers_is_written_once(tmp_path: Path) -> None:
    model: Any = network(Mixed)
    assert model.depth.input_quant is model.down.input_quant
    for format, kind in (("qcdq", "QuantizeLinear"), ("qonnx", "Quant")):
        export(model, images(Mixed, 1), tmp_path / "net.onnx", format)  # type: ignore[arg-type]
        nodes = [n for n in onnx.load(tmp_path / "net.onnx").graph.node if n.op_type == kind]
        names = [n.name for n in nodes if "input_quant" in n.name]
        assert any(name.startswith("depth.input_quant") for name in names)
        assert not any(name.startswith("down.input_quant") for name in names)


def test_wrong_arguments_are_refused() -> None:
    spec = QuantSpec(4, False)
    with pytest.raises(ValueError, match="grids in a sequence need a step each"):
        act_quantizer([spec, QuantSpec(3, False)], torch.tensor(0.1))
    with pytest.raises(ValueError, match=r"needed: \(\) or \(channels,\)"):
        act_quantizer(spec, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"allowed: 1 \(convolutions\), -1"):
        act_quantizer(spec, torch.ones(2), 0)
    with pytest.raises(ValueError, match="only bits may differ"):
        act_quantizer([spec, QuantSpec(4, True)], torch.ones(2))
    with pytest.raises(ValueError, match="1 bits"):
        act_quantizer([spec, QuantSpec(1, False)], torch.ones(2))
    with pytest.raises(ValueError, match="has 2 channels along dimension 1; needed: 3 along 1"):
        fix(nn.Conv2d(3, 4, 1), 4, act_each([2, 3]))
    with pytest.raises(ValueError, match="has 3 channels along dimension 1; needed: 3 along -1"):
        fix(nn.Linear(3, 4), 4, act_each([2, 3, 4]))
    assert act(4).quantiser.axis == 0
