"""The values the data sources hand to the rest of the framework."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

SPLITS = ("weights", "choices", "validation", "test")
AUGMENTS = ("none", "crop_flip", "shift")


class DataError(ValueError):
    """The data cannot be used as configured; the text says what was found, what is allowed and how to fix it."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, in memory.

    Attributes:
        images: uint8 [n, c, h, w], or float32 [n, c, ...] for sources which deliver floats.
        labels: int64 [n], each in 0..classes-1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32) or self.images.ndim < 2:
            raise DataError(
                f"Split.images is {self.images.dtype} {list(self.images.shape)}; "
                "allowed: uint8 [n, c, h, w] or float32 [n, c, ...]"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"Split.labels is {self.labels.dtype} {list(self.labels.shape)}; "
                f"allowed: int64 [{self.images.shape[0]}], one label for each image"
            )

    def __len__(self) -> int:
        """The number of images."""
        return int(self.labels.shape[0])

    def take(self, index: Tensor) -> "Split":
        """The images at `index` (int64 [k]), copied."""
        return Split(self.images[index], self.labels[index])


def digests(data: "Data") -> dict[str, str]:
    """Hash of the images, labels and class names of every split."""
    found = {}
    for name, split in data.splits.items():
        content = hashlib.blake2b(repr((data.classes, tuple(split.images.shape))).encode(), digest_size=16)
        for tensor in (split.images, split.labels):
            content.update(tensor.contiguous().numpy().data)
        found[name] = content.hexdigest()
    return found


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, divided for a search.

    Attributes:
        name: shown wherever a result is printed.
        classes: the name of each label.
        mean: float32 [c]; of the pixels divided by 255 for uint8 images, of the values as they are for float images.
        std: float32 [c], in the same unit.
        augment: what training batches undergo: "none", "crop_flip" or "shift".
        splits: "weights" trains the weights in the search, "choices" trains the choices, "validation" serves every
            decision, "test" is read once, at the end.
    """

    name: str
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    augment: str
    splits: Mapping[str, Split]

    def __post_init__(self) -> None:
        if set(self.splits) != set(SPLITS):
            raise DataError(f"Data.splits has the keys {sorted(self.splits)}; needed: {', '.join(SPLITS)}")
        if self.augment not in AUGMENTS:
            raise DataError(f"Data.augment is {self.augment!r}; allowed: {', '.join(AUGMENTS)}")
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (c, h, w) for pictures."""
        return tuple(self.splits["weights"].images.shape[1:])

    def training(self) -> Split:
        """The images of "weights" and "choices" together, for training a chosen network again (a copy)."""
        parts = (self.splits["weights"], self.splits["choices"])
        return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


@dataclass(frozen=True, eq=False)
class Pool:
    """What a source delivers before the division: training images, and test images if the source has its own.

    Attributes:
        classes: the name of each label.
        train: all training images.
        test: the source's own test images, or None if `data.test_share` shall take them from `train`.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split | None
