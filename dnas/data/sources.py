"""Sources which hold their images in memory: scikit-learn's digits, and any data set by import path."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits
from torch import Tensor

from dnas.data.config import DataConfig, size_of
from dnas.data.pictures import check_same, convert
from dnas.data.splits import stratified
from dnas.data.types import DataError, Pool, Split
from dnas.models.imports import make_working_directory_importable

DIGITS_TEST = 450
TEST_SEED = 0


def load_digits() -> Pool:
    """1,797 handwritten digits of 8x8 pixels (scikit-learn), with a fixed, stratified test part of 450.

    The values 0..16 become 0..255: `value * 255 / 16`, rounded with halves upwards.
    """
    bunch = sklearn_digits()
    values = torch.from_numpy(bunch.images).to(torch.int64)
    images = ((values * 255 + 8) // 16).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    generator = torch.Generator().manual_seed(TEST_SEED)
    classes = tuple(str(digit) for digit in range(10))
    test, train = stratified(labels, DIGITS_TEST, generator, "the fixed test part", classes)
    whole = Split(images, labels)
    return Pool(classes, whole.take(train), whole.take(test))


def load_dataset(config: DataConfig) -> Pool:
    """The images of `data.train` and `data.test`, each read once into memory.

    An item is `(image, label)` with an image of PIL, a numpy array uint8 [h, w, c] or [h, w], or a tensor uint8
    [c, h, w] or floating-point [c, ...]; random transforms would be frozen by reading once, so leave them out. The
    names of the classes come from the attribute `classes` of the training data set, else they are the labels.

    Raises:
        DataError: a node which cannot be made, or items of another form, see the texts.
    """
    if config.train is None:
        raise DataError("data.train has no value; give the training images by data.train._target_=package.module.Name")
    train_set = _make(config.train, "data.train")
    images, labels = _read(train_set, "data.train", config)
    names = getattr(train_set, "classes", None)
    if names is None:
        classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    elif isinstance(names, Iterable) and not isinstance(names, str):
        classes = tuple(str(name) for name in names)
    else:
        raise DataError(
            f"data.train has the attribute classes={names!r}; needed: the names of all classes, or no attribute"
        )
    _check_labels(labels, "data.train", classes)
    test = None
    if config.test is not None:
        test_images, test_labels = _read(_make(config.test, "data.test"), "data.test", config)
        if test_images.dtype != images.dtype:
            raise DataError(f"data.test delivers {test_images.dtype}, but data.train {images.dtype}; make them alike")
        check_same(tuple(test_images.shape[1:]), "data.test[0]", tuple(images.shape[1:]), "data.train[0]")
        _check_labels(test_labels, "data.test", classes)
        test = Split(test_images, test_labels)
    missing = torch.nonzero(torch.bincount(labels, minlength=len(classes)) == 0).flatten().tolist()
    if missing:
        raise DataError(
            f"data.train has no image of class {missing[0]} ({classes[missing[0]]}); each of {len(classes)} classes "
            "needs some: number the labels from 0 without gaps, or add images"
        )
    if len(classes) < 2:
        raise DataError("data.train has a single class; at least two are needed")
    return Pool(classes, Split(images, labels), test)


def _make(node: dict[str, Any], key: str) -> Any:
    if node.get("_target_") in (None, "???"):
        raise DataError(f"{key}._target_ has no value; give an import path: {key}._target_=package.module.Name")
    make_working_directory_importable()
    try:
        return instantiate(node)
    except Exception as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{key}: {node['_target_']} cannot be made ({type(cause).__name__}: {cause}); check the import path (also "
            "from the working directory) and the arguments beside _target_"
        ) from error


def _items(dataset: Any, key: str) -> Iterator[Any]:
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[number] for number in range(len(dataset)))
    if isinstance(dataset, Iterable):
        return iter(dataset)
    raise DataError(
        f"{key} made a {type(dataset).__name__}; needed: a data set with __len__ and __getitem__, or an iterable"
    )


def _read(dataset: Any, key: str, config: DataConfig) -> tuple[Tensor, Tensor]:
    """All images, uint8 or float32 [n, c, ...], and labels, int64 [n]."""
    images: list[Tensor] = []
    labels: list[int] = []
    for number, item in enumerate(_items(dataset, key)):
        where = f"{key}[{number}]"
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where} is a {type(item).__name__}; needed: a pair (image, label)")
        image = _image(item[0], where, config)
        if images and image.dtype != images[0].dtype:
            raise DataError(f"{where} is {image.dtype}, but {key}[0] is {images[0].dtype}; make all images alike")
        if images:
            check_same(tuple(image.shape), where, tuple(images[0].shape), f"{key}[0]")
        images.append(image)
        labels.append(_label(item[1], where))
    if not images:
        raise DataError(f"{key} is empty; needed: at least two classes with several images each")
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def _image(image: Any, where: str, config: DataConfig) -> Tensor:
    size = size_of(config)
    if isinstance(image, Tensor) and image.is_floating_point():
        return _float_image(image, where, config)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        if image.shape[-1] in (1, 3) and image.shape[0] not in (1, 3):
            raise DataError(
                f"{where} is a tensor {list(image.shape)}; tensors are [channels, height, width]: "
                "permute it, or deliver a numpy array [height, width, channels]"
            )
        image = image.cpu().permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
            raise DataError(
                f"{where} is a numpy array {list(image.shape)}; arrays are [height, width, channels]: transpose it, or deliver "
                "a tensor [channels, height, width]"
            )
        pixels = image.reshape(*image.shape[:2], -1)
        if pixels.shape[2] in (1, 3):
            image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
        elif size is None and config.channels is None:
            return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        else:
            raise DataError(
                f"{where} has {pixels.shape[2]} channels; data.image_size and data.channels work for 1 or 3 only: "
                "set both to null and convert in the data set"
            )
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(convert(image, where, config.channels, size)))
    shape = f" {getattr(image, 'dtype', '')} {list(image.shape)}" if hasattr(image, "shape") else ""
    raise DataError(
        f"{where} has as image a {type(image).__name__}{shape}; allowed: a PIL image, a numpy array uint8 "
        "[h, w] or [h, w, c], or a tensor uint8 [c, h, w] or floating-point [c, ...]"
    )


def _float_image(image: Tensor, where: str, config: DataConfig) -> Tensor:
    if image.ndim < 1:
        raise DataError(f"{where} is a tensor without dimensions; needed: floating-point [c, ...]")
    if config.image_size is not None or config.channels is not None:
        raise DataError(
            f"{where} is a floating-point tensor; data.image_size and data.channels work for 8-bit images only: "
            "set both to null and convert in the data set"
        )
    if not bool(torch.isfinite(image).all()):
        raise DataError(f"{where} contains NaN or infinity; allowed: finite numbers: repair or leave out this item")
    return image.detach().to("cpu", torch.float32)


def _label(label: Any, where: str) -> int:
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return int(label)
    raise DataError(f"{where} has the label {label!r} ({type(label).__name__}); allowed: an integer from 0 on")


def _check_labels(labels: Tensor, key: str, classes: tuple[str, ...]) -> None:
    wrong = torch.nonzero((labels < 0) | (labels >= len(classes))).flatten()
    if len(wrong):
        number = int(wrong[0])
        raise DataError(
            f"{key}[{number}] has the label {int(labels[number])}; allowed: 0 to {len(classes) - 1}, "
            "the classes of the training images: correct the label"
        )
