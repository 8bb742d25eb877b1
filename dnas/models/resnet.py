"""Residual networks: the CIFAR family (depth 6n + 2) and ResNet-18.

The names of the parameters are those of torchvision, so that its ResNet-18 checkpoints fit.
"""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution and the shortcut.
        shortcut_norm: whether a convolutional shortcut has batch normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1, stride, bias=False)]
            if shortcut_norm:
                shortcut.append(nn.BatchNorm2d(outputs))
            self.downsample = nn.Sequential(*shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, inputs, h, w] to [b, outputs, h / stride, w / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.downsample(x))
        return out


class ResNet(nn.Module):
    """A stem, stages of basic blocks, average pooling and a linear layer.

    Args:
        blocks: the number of blocks in each stage; every stage but the first halves the resolution.
        widths: the channels of each stage; the stem has those of the first.
        in_channels: channels of the images.
        classes: the number of outputs.
        imagenet_stem: a 7x7 convolution of stride 2 and a pooling, instead of a 3x3 convolution.
        shortcut_norm: whether the convolutional shortcuts have batch normalisation.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        in_channels: int,
        classes: int,
        imagenet_stem: bool = False,
        shortcut_norm: bool = True,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) or not blocks or min(blocks) < 1:
            raise ValueError(f"blocks is {blocks} and widths {widths}; needed: a positive number each for every stage")
        kernel, stride = (7, 2) if imagenet_stem else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        self.stages = len(blocks)
        inputs = widths[0]
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = []
            for block in range(count):
                layers.append(BasicBlock(inputs, width, 2 if number and not block else 1, shortcut_norm))
                inputs = width
            self.add_module(f"layer{number + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b, in_channels, h, w] to logits [b, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(self.stages):
            x = self.get_submodule(f"layer{number + 1}")(x)
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


def cifar_resnet(
    depth: int, in_channels: int = 3, classes: int = 10, width: int = 16, shortcut_norm: bool = True
) -> ResNet:
    """The CIFAR family: three stages of (depth - 2) / 6 blocks with width, 2 width and 4 width channels.

    Raises:
        ValueError: a depth which is not 6n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is {depth}; allowed: 6n + 2, such as 8, 20, 32, 44, 56 or 110")
    count = (depth - 2) // 6
    return ResNet((count,) * 3, (width, 2 * width, 4 * width), in_channels, classes, shortcut_norm=shortcut_norm)


def resnet8(in_channels: int = 3, classes: int = 10) -> ResNet:
    """ResNet-8 as in MLPerf Tiny: one block in each stage, shortcuts by 1x1 convolutions without normalisation.

    77,850 parameters for three channels and ten classes; unlike the reference, the convolutions have no bias (the
    normalisations make it superfluous).
    """
    return cifar_resnet(8, in_channels, classes, shortcut_norm=False)


def resnet20(in_channels: int = 3, classes: int = 10) -> ResNet:
    """ResNet-20, with shortcuts by 1x1 convolutions and normalisation where the resolution changes."""
    return cifar_resnet(20, in_channels, classes)


def resnet56(in_channels: int = 3, classes: int = 10) -> ResNet:
    """ResNet-56, otherwise as ResNet-20."""
    return cifar_resnet(56, in_channels, classes)


def resnet110(in_channels: int = 3, classes: int = 10) -> ResNet:
    """ResNet-110, otherwise as ResNet-20."""
    return cifar_resnet(110, in_channels, classes)


def resnet18(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-18 in its ImageNet layout: 1.814 billion multiply-accumulates for an image of 224x224."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), in_channels, classes, imagenet_stem=True)
