"""The configuration of a data set, and its checks."""

import os
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dnas.data.types import AUGMENTS, DataError

SOURCES = ("digits", "folder", "dataset")

# Keys which mean something for some sources only: set for another source, they are an error rather than ignored.
_ONLY_FOR = {
    "path": ("folder",),
    "train": ("dataset",),
    "test": ("dataset",),
    "image_size": ("folder", "dataset"),
    "channels": ("folder", "dataset"),
}


def default_cache() -> str:
    """The user's cache directory, by the XDG convention; `~` is expanded where it is used."""
    return f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/dnas"


@dataclass
class DataConfig:
    """The keys of `data.*`; usable as an OmegaConf structured config.

    Not frozen: OmegaConf would make the node read-only, and Hydra could then override none of its keys.

    Attributes:
        name: shown wherever a result is printed.
        source: "digits" (scikit-learn's 8x8 digits), "folder" (an image folder or a zip of one) or "dataset" (any
            map-style or iterable dataset, made by a Hydra node).
        path: folder: the directory or zip holding `train/<class>/<image>` and, optionally, `test/<class>/<image>`.
        train: dataset: the `_target_` node of the training images.
        test: dataset: the `_target_` node of the test images, if the data set has them.
        channels: 1 or 3 converts every image to grey or RGB; null keeps what the images have, which must be the same
            for all (grey and colour files mixed are an error).
        image_size: n or [height, width]: images are scaled, keeping their proportions, until they cover this size,
            and cut at the centre; null demands that all have one size.
        cache: folder: the directory for decoded images; "default" is that of `default_cache`; null decodes at each start.
        test_share: the share of the training images which becomes the test split, if the source has no test images.
        validation_share: the share of the training images (without the test split) which serves decisions.
        choices_share: the share of the remaining training images which trains the choices; the others train weights.
        split_seed: draws the splits, so that runs with different seeds share their validation images; null takes the
            run's seed. The test split never depends on it.
        limit_train: use only so many training images (stratified, drawn by `split_seed`) before dividing them.
        mean: one number for each channel, of pixels in 0..1; null computes it from the training images.
        std: as `mean`; a constant channel counts as 1 when computed.
        augment: for training batches: "none", "crop_flip" (4 pixels of zero padding, random crop and horizontal flip)
            or "shift" (up to 1 pixel in each direction, filled with zeros).
    """

    name: str = "data"
    source: str = "folder"
    path: str | None = None
    train: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    channels: int | None = None
    image_size: Any = None
    cache: str | None = "default"
    test_share: float = 0.2
    validation_share: float = 0.1
    choices_share: float = 0.5
    split_seed: int | None = 0
    limit_train: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: str = "none"


def data_config(config: DataConfig | DictConfig) -> DataConfig:
    """The checked configuration as a plain dataclass.

    Args:
        config: the dataclass, or the `data` node of a Hydra configuration.

    Raises:
        DataError: an unknown key, or a value which is not allowed.
    """
    if isinstance(config, DictConfig):
        keys = [item.name for item in fields(DataConfig)]
        try:
            plain = OmegaConf.to_container(config, resolve=True)
            merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(DataConfig), plain))
        except OmegaConfBaseException as error:
            raise DataError(
                f"the configuration `data` does not fit: {str(error).splitlines()[0]}; allowed keys: {', '.join(keys)}"
            ) from error
        config = DataConfig(**merged)
    _check(config)
    return config


def size_of(config: DataConfig) -> tuple[int, int] | None:
    """`image_size` as (height, width), or None.

    Raises:
        DataError: neither a positive integer nor two of them.
    """
    value = config.image_size
    if value is None:
        return None
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(item) is int and item > 0 for item in pair):
        raise DataError(f"data.image_size is {value!r}; allowed: a positive integer, [height, width], or null")
    return int(pair[0]), int(pair[1])


def _check(config: DataConfig) -> None:
    if config.source not in SOURCES:
        raise DataError(f"data.source is {config.source!r}; allowed: {', '.join(SOURCES)}")
    if config.augment not in AUGMENTS:
        raise DataError(f"data.augment is {config.augment!r}; allowed: {', '.join(AUGMENTS)}")
    for item in fields(config):
        sources = _ONLY_FOR.get(item.name)
        if sources and config.source not in sources and getattr(config, item.name) is not None:
            raise DataError(
                f"data.{item.name} is set, but data.source={config.source} does not use it; "
                f"set data.{item.name}=null or choose data.source={' or '.join(sources)}"
            )
    for key in ("test_share", "validation_share", "choices_share"):
        share = getattr(config, key)
        if not 0.0 < share < 1.0:
            raise DataError(f"data.{key} is {share}; allowed: above 0 and below 1")
    if config.channels not in (None, 1, 3):
        raise DataError(f"data.channels is {config.channels}; allowed: 1 (grey), 3 (RGB) or null (as the images are)")
    if config.limit_train is not None and config.limit_train < 1:
        raise DataError(f"data.limit_train is {config.limit_train}; allowed: a positive integer, or null for all")
    if config.std is not None and not all(value > 0.0 for value in config.std):
        raise DataError(f"data.std is {list(config.std)}; allowed: positive numbers, or null to compute them")
    size_of(config)
