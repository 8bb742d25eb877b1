"""Brevitas layers with learned steps: the numbers of stock Brevitas, sharing, copying, gradients."""

import copy
from typing import Any

import pytest
import torch
from brevitas.quant_tensor import IntQuantTensor
from quantised_networks import (
    Mixed,
    MixedSequence,
    Network,
    Residual,
    Sequence,
    act,
    fix,
    images,
    kinds,
    network,
    stock,
)
from torch import Tensor, nn
from torch.nn import functional as F

from quant.brevitas import act_quantizer, filter_axis, fixed_layer, quantised_layers
from quant.quantizer import quantize
from quant.spec import MIN_STEP, QuantSpec

SPECS = [
    QuantSpec(bits, signed, narrow)
    for bits in (2, 3, 4, 6, 8)
    for signed, narrow in ((False, False), (True, False), (True, True))
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_quantize_equals_stock_brevitas_bit_for_bit(spec: QuantSpec) -> None:
    generator = torch.Generator().manual_seed(spec.bits)
    for _ in range(40):
        scale = torch.rand((), generator=generator) * 10 ** float(torch.randint(-6, 3, (), generator=generator))
        scale = scale.clamp_min(MIN_STEP)
        halves = torch.arange(2 * spec.lower - 5, 2 * spec.upper + 6) / 2 * scale  # on ties and beyond the grid
        x = torch.cat([halves, torch.randn(500, generator=generator) * scale * 2**spec.bits, torch.zeros(1)])
        assert torch.equal(quantize(x, scale, spec), stock(x, scale, spec))


@pytest.mark.parametrize("spec", [s for s in SPECS if s.signed], ids=str)
def test_weights_equal_stock_brevitas_per_filter(spec: QuantSpec) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3)
    steps = torch.rand(7) * 0.2 + 0.001
    fixed: Any = fixed_layer(layer, spec, steps, act(4))
    result = fixed.quant_weight()
    assert isinstance(result, IntQuantTensor)
    assert torch.equal(result.value, stock(layer.weight, steps.reshape(-1, 1, 1, 1), spec))
    (listed,) = quantised_layers(fixed)
    assert torch.equal(listed.codes, result.int())
    assert torch.equal(fixed.weight_quant.scale().flatten(), steps)
    assert int(fixed.weight_quant.bit_width()) == spec.bits
    assert fixed.weight_quant.is_signed is True
    assert fixed.weight_quant.is_narrow_range is spec.narrow
    assert fixed.weight_quant.rounding_mode == "ROUND"
    assert int(fixed.weight_quant.zero_point()) == 0


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_activation_quantiser_equals_stock_brevitas(spec: QuantSpec) -> None:
    step = torch.tensor(0.037)
    proxy = act_quantizer(spec, step)
    x = torch.cat([torch.arange(-600, 601) * 0.0185, torch.randn(200)]).reshape(1, -1)
    assert torch.equal(proxy(x), stock(x, step, spec))
    assert torch.equal(proxy.scale(), step)
    assert (int(proxy.bit_width()), int(proxy.zero_point())) == (spec.bits, 0)
    assert (proxy.is_signed, proxy.is_narrow_range) == (spec.signed, spec.narrow)


@pytest.mark.parametrize("position", range(len(kinds())), ids=lambda i: f"{type(kinds()[i]).__name__}-{i}")
def test_layer_computes_the_plain_operator_on_quantised_tensors(position: int) -> None:
    torch.manual_seed(position)
    layer: Any = kinds()[position].eval()
    activation = act(4)
    fixed = fix(layer, 3, activation)
    assert not fixed.training
    assert sorted(n for n, _ in layer.named_parameters()) == [
        n for n in sorted(n for n, _ in fixed.named_parameters()) if "quant" not in n
    ]
    spatial = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
    x = torch.randn(3, 4, *[6] * spatial)
    axis = filter_axis(layer)
    steps = fixed.weight_quant.quantiser.step.detach()
    plain = copy.deepcopy(layer)
    weights = quantize(layer.weight.transpose(0, axis), steps, QuantSpec(3, True, True)).transpose(0, axis)
    plain.weight = nn.Parameter(weights.detach().contiguous())
    with torch.no_grad():
        expected = plain(stock(x, activation.scale(), QuantSpec(4, False)))
        result = fixed(x)
    assert type(result) is Tensor
    assert torch.equal(result, expected)


def test_conv2d_is_functional_conv2d_bit_for_bit() -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    fixed = fix(layer, 4, act(8, True, 0.02))
    x = torch.randn(4, 3, 9, 9)
    quantised = stock(x, torch.tensor(0.02), QuantSpec(8, True))
    weight = stock(layer.weight, fixed.weight_quant.scale(), QuantSpec(4, True, True))
    assert torch.equal(fixed(x), F.conv2d(quantised, weight, layer.bias, 2, 1))


def test_shared_quantiser_is_one_parameter_through_copies_and_state_dicts() -> None:
    model = network(Residual)
    x = images(Residual, 2)
    name = "input_quant.fused_activation_quant_proxy.tensor_quant.step"
    assert [n for n, _ in model.named_parameters() if "block" in n and n.endswith(name)] == [
        f"block.{layer}.{name}" for layer in ("conv1", "depth", "point")
    ]
    clone = copy.deepcopy(model)
    shared = clone.block["conv1"].input_quant
    assert shared is clone.block["down"].input_quant
    assert shared is not model.block["conv1"].input_quant
    step = shared.quantiser.step
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(0.01)
    assert not torch.equal(clone(x), model(x))
    clone.load_state_dict(model.state_dict())
    assert shared.quantiser.step is step
    assert torch.equal(clone.train().eval()(x), model(x))
    assert float(model.block["conv1"].input_quant.quantiser.step.detach()) == pytest.approx(2 / 15)


@pytest.mark.parametrize("kind", [Sequence, Mixed, MixedSequence])
def test_retraining_reaches_weights_biases_and_every_step(kind: Network) -> None:
    model = network(kind)
    model(images(kind, 4)).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients.values())
    assert all(float(g.abs().sum()) > 0 for g in gradients.values() if g is not None)


def test_layers_are_listed_in_module_order() -> None:
    listed = quantised_layers(network(Residual))
    assert [layer.name for layer in listed] == [
        "stem", "block.conv1", "block.down", "block.depth", "block.point", "head",
    ]  # fmt: skip
    assert [layer.weights[0].bits for layer in listed] == [8, 4, 3, 6, 2, 8]
    assert [layer.activations[0].bits for layer in listed] == [8, 4, 4, 3, 6, 8]
    assert set(listed[4].codes.unique().tolist()) == {-1, 0, 1}


def test_making_a_layer_leaves_the_random_generator_alone() -> None:
    layer, activation = nn.Conv2d(3, 4, 3), act(4)
    before = torch.get_rng_state()
    fix(layer, 4, activation)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_arguments_are_refused() -> None:
    spec, activation = QuantSpec(4, True), act(4)
    with pytest.raises(TypeError, match="cannot quantise Embedding"):
        fixed_layer(nn.Embedding(3, 4), spec, torch.ones(3), activation)
    with pytest.raises(TypeError, match="act_quantizer"):
        fixed_layer(nn.Linear(3, 4), spec, torch.ones(4), nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3,\); needed: \(4,\)"):
        fixed_layer(nn.Linear(3, 4), spec, torch.ones(3), activation)
    with pytest.raises(ValueError, match="positive"):
        fixed_layer(nn.Linear(3, 4), spec, torch.tensor([1.0, 0.0, 1.0, 1.0]), activation)
    with pytest.raises(ValueError, match="signed=True"):
        fixed_layer(nn.Linear(3, 4), QuantSpec(4, False), torch.ones(4), activation)
    with pytest.raises(ValueError, match="2 to 8"):
        act_quantizer(QuantSpec(9, True), torch.tensor(1.0))
