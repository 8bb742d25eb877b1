"""Small networks, one per kind of coupling, and what to do with them. Every one takes the inputs of `example(name)`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(c_in: int, c_out: int, kernel: int = 3, **named: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **named)


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = conv(3, 8, bias=False), nn.BatchNorm2d(8)
        self.b, self.nb = conv(8, 12, stride=2), nn.BatchNorm2d(12)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.na(self.a(x)).relu()
        return self.head(self.nb(self.b(x)).relu())


class Residual(nn.Module):
    """The shape of ResNet-8, one identity and one convolutional shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = conv(3, 8), nn.BatchNorm2d(8)
        self.a, self.na = conv(8, 8), nn.BatchNorm2d(8)
        self.b, self.nb = conv(8, 8), nn.BatchNorm2d(8)
        self.c, self.nc = conv(8, 12, stride=2), nn.BatchNorm2d(12)
        self.d, self.nd = conv(12, 12), nn.BatchNorm2d(12)
        self.short, self.ns = conv(8, 12, 1, stride=2), nn.BatchNorm2d(12)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n0(self.stem(x)).relu()
        x = (x + self.nb(self.b(self.na(self.a(x)).relu()))).relu()
        x = (self.ns(self.short(x)) + self.nd(self.d(self.nc(self.c(x)).relu()))).relu()
        return self.head(x)


class Separable(nn.Module):
    """An inverted bottleneck: pointwise, depthwise, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.expand, self.n1 = conv(8, 16, 1), nn.BatchNorm2d(16)
        self.depth, self.n2 = conv(16, 16, groups=16, bias=False), nn.BatchNorm2d(16)
        self.project, self.n3 = conv(16, 8, 1), nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.n2(self.depth(F.relu6(self.n1(self.expand(x))))))
        return self.head(x + self.n3(self.project(y)))


class Concat(nn.Module):
    """Two branches of different width, joined, normalised and read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.left, self.right = conv(4, 4, 1), conv(4, 8)
        self.norm = nn.BatchNorm2d(12)
        self.join = conv(12, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.left(x).relu(), F.max_pool2d(self.right(x).relu(), 3, 1, 1)], 1)
        return self.head(self.join(self.norm(x)).relu())


class Twice(nn.Module):
    """The same tensor concatenated with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(16, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head(self.b(torch.cat([x, x], 1)).relu())


class Flat(nn.Module):
    """A linear layer after a flatten that leaves space: 3 x 3 inputs per filter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(72, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.norm(self.a(x)).relu(), 3)
        return self.fc2(self.fc1(torch.flatten(x, 1)).relu())


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8, groups=2), conv(8, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu())


class Transposed(nn.Module):
    """Down, up by transposed convolutions (a plain and a depthwise one), and down to the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(3, 8, stride=2)
        self.up, self.norm = nn.ConvTranspose2d(8, 12, 3, 2, 1, 1), nn.BatchNorm2d(12)
        self.smooth = nn.ConvTranspose2d(12, 12, 3, 1, 1, groups=12)
        self.last = conv(12, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.down(x).relu())).relu()
        return self.head(self.last(self.smooth(x).relu()).relu())


class Shared(nn.Module):
    """One convolution used twice, and another that stands under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.twice = conv(8, 8)
        self.one = conv(8, 8)
        self.two = self.one
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.twice(F.max_pool2d(self.twice(x).relu(), 2)).relu()
        return self.head(self.two(self.one(x).relu()).relu())


class TwoInputs(nn.Module):
    """A picture and a vector; both inputs of the network stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), nn.Linear(6, 8)
        self.c = conv(8, 8)
        self.head = Head(8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = (self.a(x) + self.b(y)[:, :, None, None]).relu()
        return self.head(self.c(x).relu())


class Functional(nn.Module):
    """A convolution that is no module: its weight is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1) / 3)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.a(x).relu(), self.weight)
        return self.head(self.b(x).relu())


class Attention(nn.Module):
    """A transformer block: layer norms, `nn.MultiheadAttention`, and a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.n1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.n2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.n1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.fc(x.mean(1))


class Narrow(nn.Module):
    """Filters that cannot be halved: width 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(3, 1), nn.BatchNorm2d(1), conv(1, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "separable": Separable,
    "concat": Concat,
    "twice": Twice,
    "flat": Flat,
    "grouped": Grouped,
    "transposed": Transposed,
    "shared": Shared,
    "two_inputs": TwoInputs,
    "functional": Functional,
    "attention": Attention,
    "narrow": Narrow,
}


def example(model: nn.Module, batch: int = 4, seed: int = 3) -> tuple[Tensor, ...]:
    """Inputs that the model takes, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Attention):
        return (torch.randn(batch, 7, 6, generator=generator),)
    image = torch.randn(batch, 3, 8, 8, generator=generator)
    if isinstance(model, TwoInputs):
        return (image, torch.randn(batch, 6, generator=generator))
    return (image,)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 5) -> nn.Module:
    """Gives every normalisation statistics and factors of its own, so that nothing cancels; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm | nn.PReLU):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 2)
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 2)
    return model
