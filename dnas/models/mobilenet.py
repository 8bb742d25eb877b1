"""MobileNetV2, with the parameter names of torchvision, so that its checkpoints fit."""

import torch
from torch import Tensor, nn

# expansion, channels, blocks, stride of the first block
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEMS = ("imagenet", "cifar")


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than a tenth below `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def initialise(model: nn.Module) -> None:
    """He initialisation of convolutions by their outputs, small weights of linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 convolution and a linear 1x1 projection, beside a shortcut if shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv(inputs, hidden, 1)]
        layers.append(_conv(hidden, hidden, 3, stride, groups=hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, inputs, h, w] to [b, outputs, h / stride, w / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Args:
        in_channels: channels of the images.
        classes: the number of outputs.
        width: multiplies the channels of all layers; the last convolution never has fewer than 1,280.
        stem: "imagenet" (five halvings of the resolution) or "cifar" (three: stem and 24-channel stage keep it).
        dropout: before the linear layer.

    Raises:
        ValueError: an unknown stem or a width which is not positive.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1000,
        width: float = 1.0,
        stem: str = "imagenet",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem is {stem!r}; allowed: {', '.join(STEMS)}")
        if width <= 0.0:
            raise ValueError(f"width is {width}; allowed: a positive number, such as 0.35 or 1.0")
        small = stem == "cifar"
        channels = _rounded(32 * width)
        layers: list[nn.Module] = [_conv(in_channels, channels, 3, 1 if small else 2)]
        for number, (expansion, base, blocks, first) in enumerate(_STAGES):
            outputs = _rounded(base * width)
            for block in range(blocks):
                stride = 1 if block or (small and number == 1) else first
                layers.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = _rounded(1280 * max(1.0, width))
        layers.append(_conv(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b, in_channels, h, w] to logits [b, classes]."""
        out: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return out


def mobilenetv2(
    in_channels: int = 3, classes: int = 1000, width: float = 1.0, stem: str = "imagenet", dropout: float = 0.2
) -> MobileNetV2:
    """MobileNetV2; see the class."""
    return MobileNetV2(in_channels, classes, width, stem, dropout)
