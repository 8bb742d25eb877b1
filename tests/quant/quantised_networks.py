"""Small quantised networks for the tests of realisation, export and verification."""

from typing import Any

import torch
from torch import Tensor, nn

from quant.brevitas import LearnedStepActivation, act_quantizer, filter_axis, fixed_layer
from quant.quantizer import fit_step
from quant.spec import QuantSpec


def act(bits: int, signed: bool = False, step: float | None = None, narrow: bool = False) -> LearnedStepActivation:
    """An activation quantiser that covers about +-2."""
    spec = QuantSpec(bits, signed, narrow)
    return act_quantizer(spec, torch.tensor(2.0 / spec.upper if step is None else step))


def fix(layer: nn.Module, bits: int, activation: LearnedStepActivation, narrow: bool = True) -> Any:
    """The layer at one width, with steps of least squared error."""
    spec = QuantSpec(bits, True, narrow)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return fixed_layer(layer, spec, fit_step(weight.transpose(0, filter_axis(layer)), spec, True), activation)


def warm(model: nn.Module, x: Tensor) -> Any:
    """Gives batch normalisation non-trivial statistics and affine parameters; returns the model in eval mode."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
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


def images(model: type[Residual] | type[Sequence], count: int, seed: int = 0) -> Tensor:
    """Random inputs of a network; shape (count, *model.shape)."""
    return torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))


def network(kind: type[Residual] | type[Sequence], seed: int = 0) -> Any:
    """A network with non-trivial batch normalisation, in eval mode."""
    torch.manual_seed(seed)
    return warm(kind(), images(kind, 32, seed=7))
