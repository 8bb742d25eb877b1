"""Small quantised networks for the tests of realisation, export and verification."""

from typing import Any

import torch
from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
from brevitas.core.quant import IntQuant
from torch import Tensor, nn

from quant.brevitas import LearnedStepActivation, act_quantizer, filter_axis, fixed_layer
from quant.quantizer import fit_step
from quant.spec import QuantSpec


def stock(x: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Brevitas' own quantiser at this scale."""
    kernel = IntQuant(
        narrow_range=spec.narrow, signed=spec.signed, input_view_impl=Identity(), float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
    )  # fmt: skip
    result: Tensor = kernel(scale, torch.zeros(()), torch.tensor(float(spec.bits)), x)
    return result


def kinds() -> list[Any]:
    """One plain layer of every kind."""
    return [
        nn.Conv1d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, (2, 3), padding="valid"),
        nn.Conv2d(4, 6, (3, 1), stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.Conv3d(4, 6, 2),
        nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
        nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, padding=1),
        nn.ConvTranspose3d(4, 6, 2, bias=False),
        nn.Linear(4, 6),
    ]


def act(bits: int, signed: bool = False, step: float | None = None, narrow: bool = False) -> LearnedStepActivation:
    """An activation quantiser that covers about +-2."""
    spec = QuantSpec(bits, signed, narrow)
    return act_quantizer(spec, torch.tensor(2.0 / spec.upper if step is None else step))


def fix(layer: nn.Module, bits: int, activation: LearnedStepActivation, narrow: bool = True) -> Any:
    """The layer at one width, with steps of least squared error."""
    spec = QuantSpec(bits, True, narrow)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return fixed_layer(layer, spec, fit_step(weight.transpose(0, filter_axis(layer)), spec, True), activation)


def act_each(
    bits: list[int], signed: bool = False, channel_dim: int = 1, narrow: bool = False
) -> LearnedStepActivation:
    """An activation quantiser with a width and a step for every channel, which cover about +-1 to +-3."""
    specs = [QuantSpec(b, signed, narrow) for b in bits]
    reach = torch.linspace(1.0, 3.0, len(bits))
    return act_quantizer(specs, reach / torch.tensor([float(s.upper) for s in specs]), channel_dim)


def fix_each(layer: nn.Module, bits: list[int], activation: LearnedStepActivation, narrow: bool = True) -> Any:
    """The layer with a width for every filter, with steps of least squared error."""
    specs = [QuantSpec(b, True, narrow) for b in bits]
    weight: Tensor = layer.weight.transpose(0, filter_axis(layer))  # type: ignore[assignment, operator]
    steps = torch.stack([fit_step(w, s, False) for w, s in zip(weight, specs, strict=True)])
    return fixed_layer(layer, specs, steps, activation)


def warm(model: nn.Module, x: Tensor) -> Any:
    """Gives batch normalisation non-trivial statistics and affine parameters; returns the model in eval mode."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(8):
            model(x)
    return model.eval()


class Residual(nn.Module):
    """Signed 8-bit input, shared quantiser of main branch and downsample, depthwise, concat, linear head."""

    shape = (3, 12, 12)

    def __init__(self, narrow: bool = True) -> None:
        super().__init__()
        shared = act(4)
        self.stem = fix(nn.Conv2d(3, 8, 3, padding=1, bias=False), 8, act(8, True, 3.0 / 127), narrow)
        self.bn0 = nn.BatchNorm2d(8)
        self.block = nn.ModuleDict(
            {
                "conv1": fix(nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), 4, shared, narrow),
                "down": fix(nn.Conv2d(8, 12, 1, stride=2, bias=False), 3, shared, narrow),
                "depth": fix(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), 6, act(3), narrow),
                "point": fix(nn.Conv2d(12, 12, 1), 2, act(6), narrow),
            }
        )
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(12), nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.head = fix(nn.Linear(24, 10), 8, act(8), narrow)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.bn1(self.block["conv1"](x)))
        y = torch.relu(self.bn2(self.block["depth"](y)))
        y = torch.relu(self.bn3(self.block["point"](y)) + self.block["down"](x))
        pooled = torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)
        logits: Tensor = self.head(pooled)
        return logits


class Sequence(nn.Module):
    """Conv1d, ConvTranspose1d, a linear layer on tokens and one on the flattened result; full grids."""

    shape = (4, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv = fix(nn.Conv1d(4, 6, 3, padding=1), 6, act(8, True, 3.0 / 127), narrow=False)
        self.up = fix(nn.ConvTranspose1d(6, 8, 2, stride=2, groups=2), 3, act(4), narrow=False)
        self.tokens = fix(nn.Linear(8, 5), 2, act(2), narrow=False)
        self.head = fix(nn.Linear(5 * 32, 7, bias=False), 4, act(3, True, narrow=True), narrow=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.conv(x))))
        x = torch.tanh(self.tokens(x.transpose(1, 2)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


WIDTHS = [2, 8, 3, 4, 7, 5, 6, 2, 8, 4, 3, 2, 5, 5, 8, 2]


class Mixed(nn.Module):
    """Widths of every filter's and every channel's own: circular, depthwise, grouped, transposed, a shared quantiser."""

    shape = (3, 8, 8)

    def __init__(self, narrow: bool = True) -> None:
        super().__init__()
        shared = act_each(WIDTHS[:8])
        stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular", bias=False)
        self.stem = fix_each(stem, [2, 3, 4, 5, 6, 7, 8, 2], act_each([8, 6, 7], True), narrow)
        self.bn0 = nn.BatchNorm2d(8)
        self.depth = fix_each(nn.Conv2d(8, 8, 3, padding=1, groups=8), WIDTHS[2:10], shared, narrow)
        self.down = fix_each(nn.Conv2d(8, 6, 1, bias=False), WIDTHS[:6], shared, narrow)
        self.grouped = fix_each(nn.Conv2d(8, 6, 3, padding=1, groups=2), WIDTHS[6:12], act(4), narrow)
        self.up = fix_each(nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), [4, 2, 8, 3], act_each(WIDTHS[:6]), narrow)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(6), nn.BatchNorm2d(8)
        self.plain = fix(nn.Conv2d(8, 4, 3), 4, act_each([3] * 8), narrow)
        self.single = fix_each(nn.Conv2d(4, 1, 1), [3], act(5, True), narrow)
        self.head = fix_each(nn.Linear(14 * 14, 7), WIDTHS[:7], act_each([5, 3] * 98, True, -1, narrow=True), narrow)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.bn1(self.depth(x)))
        y = torch.relu(self.bn2(self.grouped(y)) + self.down(x))
        y = torch.relu(self.bn3(self.up(y)))
        logits: Tensor = self.head(self.single(torch.tanh(self.plain(y))).flatten(1))
        return logits


class MixedSequence(nn.Module):
    """Widths of every filter's and every channel's own: Conv1d, ConvTranspose1d, linear layers; full grids."""

    shape = (4, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv = fix_each(nn.Conv1d(4, 6, 3, padding=1), WIDTHS[:6], act_each([8, 4, 6, 3], True), narrow=False)
        self.bn = nn.BatchNorm1d(6)
        self.up = fix_each(nn.ConvTranspose1d(6, 8, 2, stride=2), WIDTHS[1:9], act_each(WIDTHS[:6]), narrow=False)
        self.tokens = fix_each(nn.Linear(8, 5), [3, 2, 4, 8, 2], act_each(WIDTHS[:8], channel_dim=-1), narrow=False)
        self.hidden = fix_each(nn.Linear(5 * 32, 6, bias=False), WIDTHS[4:10], act(4, True), narrow=False)
        self.bn1 = nn.BatchNorm1d(6)
        self.head = fix_each(
            nn.Linear(6, 7, bias=False), WIDTHS[:7], act_each([2, 8, 5, 4, 3, 6], True, -1), narrow=False
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.bn(self.conv(x)))))
        x = torch.tanh(self.tokens(x.transpose(1, 2)))
        logits: Tensor = self.head(self.bn1(self.hidden(x.flatten(1))))
        return logits


Network = type[Residual] | type[Sequence] | type[Mixed] | type[MixedSequence]


def images(model: Network, count: int, seed: int = 0) -> Tensor:
    """Random inputs of a network; shape (count, *model.shape)."""
    return torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))


def network(kind: Network, seed: int = 0) -> Any:
    """A network with non-trivial batch normalisation, in eval mode."""
    torch.manual_seed(seed)
    return warm(kind(), images(kind, 32, seed=7))
