"""A depthwise-separable network in the manner of MLPerf Tiny's keyword spotting."""

import torch
from torch import Tensor, nn


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


class DSCNN(nn.Module):
    """A convolution, separable blocks, average pooling and a linear layer.

    Args:
        in_channels: channels of the input.
        classes: the number of outputs.
        width: channels of every layer.
        blocks: the number of separable blocks (3x3 depthwise, then 1x1).
        stem_kernel: height and width of the first kernel.
        stem_stride: its strides.
        stem_padding: its padding.

    The defaults make 49x10 inputs 25x5, as in the reference (which pads one row more below than above; here it is one
    more above).
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 12,
        width: int = 64,
        blocks: int = 4,
        stem_kernel: tuple[int, int] = (10, 4),
        stem_stride: tuple[int, int] = (2, 2),
        stem_padding: tuple[int, int] = (5, 1),
    ) -> None:
        super().__init__()
        kernel, stride, padding = (
            (int(pair[0]), int(pair[1])) for pair in (stem_kernel, stem_stride, stem_padding)
        )  # lists, as configurations have them, become tuples
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False), *_norm_relu(width)
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
                    *_norm_relu(width),
                    nn.Conv2d(width, width, 1, bias=False),
                    *_norm_relu(width),
                )
                for _ in range(blocks)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, in_channels, h, w] to logits [b, classes]."""
        x = self.pool(self.blocks(self.stem(x)))
        out: Tensor = self.classifier(torch.flatten(x, 1))
        return out


def dscnn(
    in_channels: int = 1,
    classes: int = 12,
    width: int = 64,
    blocks: int = 4,
    stem_kernel: tuple[int, int] = (10, 4),
    stem_stride: tuple[int, int] = (2, 2),
    stem_padding: tuple[int, int] = (5, 1),
) -> DSCNN:
    """The network of MLPerf Tiny's keyword spotting by default; see `DSCNN`."""
    return DSCNN(in_channels, classes, width, blocks, stem_kernel, stem_stride, stem_padding)
