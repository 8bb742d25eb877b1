"""A model whose code asks its layers for their attributes: stride for padding, the weight's type for a cast."""

from pathlib import Path

import torch
import torch.nn.functional as F
from equivalence import check
from networks import Head
from torch import Tensor, nn

import dnas
from dnas.search.supernet import Supernet
from quant.layers import training_twin


class Strided(nn.Conv2d):
    """A subclass with torch's forward, as EfficientNet's depthwise convolution is."""


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Strided(3, 8, 3, 2), nn.Conv2d(8, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (max(self.a.kernel_size[0] - self.a.stride[0], 0),) * 2
        x = F.pad(x.to(self.a.weight.dtype), (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.head(self.b(self.a(x).relu()).relu())


class Windows(nn.Module):
    """Windows of an image as a batch of their own, merged again; the padding is computed from the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix = nn.Conv2d(3, 6, 1), nn.Linear(6, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
        rows, columns = x.shape[2] // 4, x.shape[3] // 4
        x = x.reshape(n, c, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = self.mix(x).relu().reshape(n, rows, columns, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
        return self.head(x.reshape(n, c, rows * 4, columns * 4)[:, :, :h, :w])


def _verified(model: nn.Module, images: Tensor, folder: Path) -> None:
    supernet = Supernet(model, dnas.build_space(model, images[:2], weight_bits=(4,), act_bits=(6,)))
    small = dnas.realise(supernet, supernet.most_probable()).eval()
    with torch.no_grad():
        torch.testing.assert_close(training_twin(small)(images), small(images))
    files = {format: folder / f"{format}.onnx" for format in ("qcdq", "qonnx")}
    for format, path in files.items():
        dnas.export(small, images[:2], path, format)  # type: ignore[arg-type]
    found = dnas.verify(small, images[:2], images, files, batch=2, qonnx_images=3)
    assert {name: result["images"] for name, result in found["runtimes"].items()} == {
        "integer": 4, "qcdq": 4, "qonnx": 3,
    }  # fmt: skip


def test_asked(tmp_path: Path, generator: torch.Generator) -> None:
    check(Asked)
    _verified(Asked().eval(), torch.randn(4, 3, 7, 7, generator=generator), tmp_path)


def test_windows(tmp_path: Path, generator: torch.Generator) -> None:
    images = torch.randn(4, 3, 6, 6, generator=generator)
    _verified(Windows().eval(), images, tmp_path)
