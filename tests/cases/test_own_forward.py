"""Convolution subclasses with a forward of their own, and layers whose weight is computed from parameters."""

import torch
import torch.nn.functional as F
from equivalence import check
from networks import Head
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import dnas


class Standardised(nn.Conv2d):
    """Weight standardisation and padding as TensorFlow has it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, stride=self.stride)


class Normalised(nn.Conv2d):
    """A convolution that normalises and activates what it returns."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x)).relu()


class OwnForwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Standardised(3, 8, 2), Normalised(8, 12)
        self.c = weight_norm(nn.Conv2d(12, 8, 3, padding=1, padding_mode="circular"))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        assert self.a.stride == (1, 1)
        assert self.a.weight.dtype == x.dtype
        return self.head(self.c(self.b(self.a(x))).relu())


class Centred(nn.Conv2d):
    """Torch's forward, which asks the layer itself for the convolution."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Hooked(nn.Module):
    """A layer that computes through `_conv_forward`, two with hooks, one with a forward put on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = Centred(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 1)
        self.b.register_forward_hook(lambda module, args, output: 3 * output)
        self.c.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
        plain = self.d.forward
        self.d.forward = lambda x: plain(x).tanh()
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.d(self.c(self.b(self.a(x)).relu()).relu()))


class Conditional(nn.Conv2d):
    """The weight follows the input: there is none to quantise."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * (1 + x.mean()))


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Conditional(3, 8, 1), nn.Conv2d(8, 8, 3)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).relu())


def test_masked_equals_realised() -> None:
    supernet = check(OwnForwards)
    space = supernet.space
    assert {layer.name for layer in space.layers} == {"a.layer", "b.layer", "c.layer", "head.fc"}
    searched = {group.members for group in space.groups if space.choice(group.choice).searched}
    assert searched == {("a.layer",), ("b.layer",), ("c.layer",)}
    assert not [fixed for fixed in space.fixed if fixed.macs]
    names = {name for name, _ in supernet.model.named_parameters()}
    assert not {name for name in names if name.startswith(("a.module", "c.module"))}  # one weight is trained, not two
    assert {"b.module.norm.weight", "b.module.norm.bias"} <= names


def test_hooks_and_what_a_layer_overrides_are_kept() -> None:
    supernet = check(Hooked)
    assert {layer.name for layer in supernet.space.layers} == {"a.layer", "b.layer", "c.layer", "d.layer", "head.fc"}


def test_eight_bits_come_near_the_model() -> None:
    torch.manual_seed(0)
    model, x = Hooked().eval(), torch.randn(64, 3, 12, 12)
    space = dnas.build_space(model, x, weight_bits=(8,), act_bits=(8,), filters=(1.0,))
    supernet = dnas.Supernet(model, space).eval()
    wanted = model(x)
    for network in (supernet, dnas.realise(supernet, supernet.most_probable()).eval()):
        assert float((network(x) - wanted).detach().abs().max()) < 0.05 * float(wanted.detach().std())


def test_the_model_is_left_as_it_was() -> None:
    model = OwnForwards()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dnas.build_space(model, torch.randn(2, 3, 8, 8))
    assert type(model.a) is Standardised
    assert {name for name, _ in model.named_parameters()} <= set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_follows_the_input_stays_float() -> None:
    supernet = check(Conditioned)
    assert [fixed.name for fixed in supernet.space.fixed if fixed.macs] == ["a:convolution"]
    assert {layer.name for layer in supernet.space.layers} == {"b", "head.fc"}
