"""The parts that random networks are made of: small modules as torch users write them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, BATCH = 5, 3
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
SIDE = {1: 12, 2: 8, 3: 4}


@dataclass(frozen=True)
class Form:
    """What a part takes or returns: `space` dimensions of length `side` (0: a vector; -1: a sequence), and channels."""

    space: int
    channels: int
    side: int


class Do(nn.Module):
    """A function as a part."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ChannelsLast(nn.Module):
    """A module over the last dimension, applied to dimension 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


class OwnLayerNorm(nn.Module):
    """The layer norm over dimension 1 that many repositories write out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return self.weight.view(shape) * x + self.bias.view(shape)


class Subclassed(nn.LayerNorm):
    """A layer norm over dimension 1 by torch's function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y.add_(x) if self.in_place else x + y


class Branches(nn.Module):
    """Two parts on the same tensor, joined."""

    def __init__(self, left: nn.Module, right: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, form: Form, hidden: int, linear: bool) -> None:
        super().__init__()
        layer: Any = nn.Linear if linear else lambda a, b: CONV[form.space](a, b, 1)
        self.squeeze, self.excite, self.linear = layer(form.channels, hidden), layer(hidden, form.channels), linear

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(2).mean(2)
        mean = mean if self.linear else mean.view(*mean.shape, *[1] * (x.dim() - 2))
        scale = self.excite(F.relu(self.squeeze(mean))).sigmoid()
        return x * scale.view(*scale.shape[:2], *[1] * (x.dim() - 2))


class Scale(nn.Module):
    """A raw parameter per channel: layer scale, or a bias or embedding that is added."""

    def __init__(self, shape: Sequence[int], add: bool) -> None:
        super().__init__()
        self.gamma, self.add = nn.Parameter(torch.rand(shape) + 0.5), add

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma if self.add else x * self.gamma


class ClassToken(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class FunctionalConv(nn.Module):
    def __init__(self, form: Form, out: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(out, form.channels, *[1] * form.space) / form.channels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()](x, self.kernel)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.one, self.two = make(), make()
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.silu(self.one(x)))


class Twice(nn.Module):
    """One module used two times."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.inner(x)))


class Depends(nn.Module):
    """Control flow on values, which no trace can follow."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if float(x.detach().mean()) > 0 else self.two(x)


class TorchAttention(nn.Module):
    def __init__(self, channels: int, heads: int, weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=batch_first)
        self.weights, self.batch_first = weights, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.attention(x, x, x, need_weights=self.weights)[0]
        return x if self.batch_first else x.transpose(0, 1)


class PlainAttention(nn.Module):
    """Attention as users write it, with one layer for queries, keys and values."""

    def __init__(self, channels: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class LastPart(nn.Module):
    """From whatever form to classes; returns what `style` says."""

    def __init__(self, form: Form, style: str) -> None:
        super().__init__()
        self.form, self.style, self.fc = form, style, nn.Linear(form.channels, CLASSES)

    def forward(self, x: Tensor) -> Any:
        mean = x if self.form.space == 0 else x.mean(1) if self.form.space < 0 else x.flatten(2).mean(2)
        logits = self.fc(mean)
        if self.style == "dict":
            return {"logits": logits, "more": (torch.sigmoid(logits), [x])}
        return (logits, x) if self.style == "tuple" else logits


class RandomNetwork(nn.Module):
    """A chain of parts. `used` counts the parts' names; `example(seed)` makes inputs."""

    def __init__(
        self, form: Form, parts: Sequence[nn.Module], used: Sequence[str], inputs: str, last: LastPart
    ) -> None:
        super().__init__()
        self.form, self.used, self.inputs = form, tuple(used), inputs
        self.parts, self.last = nn.ModuleList(parts), last
        self.second = nn.Linear(4, form.channels) if inputs != "one" else None

    def example(self, seed: int = 0) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        space = [self.form.side] * abs(self.form.space)
        shape = (self.form.channels, *space) if self.form.space >= 0 else (*space, self.form.channels)
        x = torch.randn(BATCH, *shape, generator=generator)
        if self.inputs == "one":
            return (x,)
        second = torch.randn(BATCH, 4, generator=generator)
        return (x, second) if self.inputs == "two" else ({"x": x, "more": (second,)},)

    def forward(self, x: Any, second: Tensor | None = None) -> Any:
        if isinstance(x, dict):
            x, (second,) = x["x"], x["more"]
        if self.second is not None and second is not None:
            scale = self.second(second)
            place = scale.unsqueeze(1) if self.form.space < 0 else scale.view(*scale.shape, *[1] * self.form.space)
            x = x + place
        for part in self.parts:
            x = part(x)
        return self.last(x)
