"""A class token that is split off, passed by a convolution and joined again (CvT); a bias that no image enters (Swin v2)."""

from pathlib import Path

import torch
from equivalence import check
from torch import Tensor, nn

import dnas
from dnas.search.supernet import Supernet


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.depth = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(3)])
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.mix, self.bias, self.head = nn.Linear(6, 6), nn.Linear(2, 6), nn.Linear(6, 5)
        self.register_buffer("places", torch.randn(1, 3, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = torch.cat([self.token.expand(n, -1, -1), self.embed(x.flatten(2).transpose(1, 2))], 1)
        token, rest = torch.split(x, [1, h * w], 1)
        rest = rest.transpose(1, 2).reshape(n, -1, h, w)
        a, b, c = (torch.cat([token, layer(rest).flatten(2).transpose(1, 2)], 1) for layer in self.depth)
        x = self.mix(a + b * c).relu() + self.bias(self.places).mean((1, 2))
        return self.head(x[:, 0] + x.mean(1))


class Folded(nn.Module):
    """Patches unfolded and folded again, for which ONNX has an operator since version 18 only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        patches = nn.functional.unfold(x, 2, stride=2)
        return self.head(nn.functional.fold(patches, (x.shape[2], x.shape[3]), 2, stride=2).relu().mean((2, 3)))


def _verified(model: nn.Module, images: Tensor, folder: Path) -> None:
    supernet = Supernet(model, dnas.build_space(model, images[:2], weight_bits=(4,), act_bits=(6,)))
    small = dnas.realise(supernet, supernet.most_probable()).eval()
    files = {format: folder / f"{format}.onnx" for format in ("qcdq", "qonnx")}
    for format, path in files.items():
        dnas.export(small, images[:2], path, format)  # type: ignore[arg-type]
    found = dnas.verify(small, images[:2], images, files, batch=2, qonnx_images=3)
    assert {result["differing_predictions"] for result in found["runtimes"].values()} == {0}


def test_class_token(tmp_path: Path, generator: torch.Generator) -> None:
    images = torch.randn(4, 3, 4, 4, generator=generator)
    supernet = Supernet(ClassToken(), dnas.build_space(ClassToken(), images))
    assert {"depth.0", "mix", "bias"} <= {layer.name for layer in supernet.space.layers}
    _verified(ClassToken().eval(), images, tmp_path)


def test_folded(tmp_path: Path, generator: torch.Generator) -> None:
    images = torch.randn(4, 3, 4, 4, generator=generator)
    check(Folded, (images,), filters=(1.0,))
    _verified(Folded().eval(), images, tmp_path)
