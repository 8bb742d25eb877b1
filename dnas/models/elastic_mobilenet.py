"""The MobileNetV3-like network of BINAS' search space (Nayman et al. 2022), at the largest option of every choice.

Its space: expansion as the filters of the hidden layer, kernel 3 or 5, squeeze-and-excitation on or off, depth of every stage.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from dnas.models.mobilenet import initialise

Activation = type[nn.Module]


def _conv(
    inputs: int, outputs: int, kernel: int, activation: Activation | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in [0, 1] that two linear layers compute from all channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, channels, h, w] to the same shape."""
        found = self.gate(self.expand(self.reduce(x.mean((2, 3))).relu()))
        return x * found[:, :, None, None]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, linear 1x1 projection; a shortcut if shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, activation: Activation
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _conv(inputs, hidden, 1, activation)
        self.depthwise = _conv(hidden, hidden, kernel, activation, stride, hidden)
        self.se = SqueezeExcitation(hidden, max(hidden // 4, 8))
        self.project = _conv(hidden, outputs, 1, None)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, inputs, h, w] to [b, outputs, h / stride, w / stride]."""
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.shortcut else y


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a linear 1x1 projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = _conv(inputs, inputs, 3, nn.ReLU, groups=inputs)
        self.project = _conv(inputs, outputs, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, inputs, h, w] to [b, outputs, h, w]."""
        out: Tensor = self.project(self.depthwise(x))
        return out


class ElasticMobileNet(nn.Module):
    """Stem, a separable stage, stages of inverted residuals, a last 1x1 convolution, two linear layers.

    Args:
        in_channels: channels of the images.
        classes: the number of outputs.
        stem: channels of the stem, and of the separable stage.
        stem_stride: 2 halves the resolution at once.
        stages: channels of every elastic stage.
        strides: of the first block of every stage.
        depth: blocks of a stage.
        expansion: hidden channels of a block per input channel.
        kernel: side of the depthwise kernels.
        last: channels of the last convolution, and of the first linear layer.
        hard_swish_from: number of the first elastic stage that uses hard swish in place of ReLU.
        dropout: before the last layer.

    Raises:
        ValueError: lengths that do not agree.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1000,
        stem: Sequence[int] = (32, 16),
        stem_stride: int = 2,
        stages: Sequence[int] = (24, 40, 80, 112, 192),
        strides: Sequence[int] = (2, 2, 2, 1, 2),
        depth: int = 4,
        expansion: int = 6,
        kernel: int = 5,
        last: Sequence[int] = (960, 1280),
        hard_swish_from: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(stages) != len(strides) or len(stem) != 2 or len(last) != 2:
            raise ValueError(
                f"model.arguments: stages {list(stages)} and strides {list(strides)} need equally many entries, stem "
                f"{list(stem)} and last {list(last)} two each"
            )
        if depth < 1 or expansion < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"model.arguments: depth {depth}, expansion {expansion}, kernel {kernel}; allowed: 1 or more, an odd kernel"
            )
        self.stem = _conv(in_channels, stem[0], 3, nn.Hardswish, stem_stride)
        self.separable = Separable(stem[0], stem[1])
        channels = stem[1]
        self.stages = nn.ModuleList()
        for number, (outputs, stride) in enumerate(zip(stages, strides, strict=True)):
            activation = nn.Hardswish if number >= hard_swish_from else nn.ReLU
            block = partial(InvertedResidual, expansion=expansion, kernel=kernel, activation=activation)
            first = block(channels, outputs, stride=stride)
            self.stages.append(nn.Sequential(first, *(block(outputs, outputs, stride=1) for _ in range(depth - 1))))
            channels = outputs
        self.last = _conv(channels, last[0], 1, nn.Hardswish)
        self.head = nn.Sequential(
            nn.Linear(last[0], last[1]), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(last[1], classes)
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b, in_channels, h, w] to logits [b, classes]."""
        x = self.separable(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.head(self.last(x).mean((2, 3)))
        return out


def elastic_mobilenet(in_channels: int = 3, classes: int = 1000, **arguments: object) -> ElasticMobileNet:
    """The network of BINAS' search space; see the class for the arguments."""
    return ElasticMobileNet(in_channels, classes, **arguments)  # type: ignore[arg-type]
