"""From a configuration to divided data."""

import torch
from omegaconf import DictConfig
from torch import Tensor

from dnas.data.config import DataConfig, data_config
from dnas.data.folder import load_folder
from dnas.data.sources import TEST_SEED, load_dataset, load_digits
from dnas.data.splits import mixed, share_of, stratified
from dnas.data.types import Data, DataError, Pool, Split


def load_data(config: DataConfig | DictConfig, seed: int) -> Data:
    """Loads and divides a data set; repeatable, and stratified by class.

    The test split depends on the images alone. The others depend on `split_seed`.

    Args:
        config: the dataclass, or the `data` node of a Hydra configuration.
        seed: the run's seed; used only if `split_seed` is null.

    Raises:
        DataError: wrong configuration or data, found before any training.
    """
    config = data_config(config)
    pool = _pool(config)
    train, test = pool.train, pool.test
    if test is None:
        fixed = torch.Generator().manual_seed(TEST_SEED)
        chosen, rest = share_of(train.labels, config.test_share, fixed, "data.test_share", pool.classes)
        train, test = train.take(rest), train.take(chosen)
    generator = torch.Generator().manual_seed(seed if config.split_seed is None else config.split_seed)
    used = torch.arange(len(train))
    if config.limit_train is not None and config.limit_train < len(train):
        used, _ = stratified(train.labels, config.limit_train, generator, "data.limit_train", pool.classes)
    validation, rest = share_of(
        train.labels[used], config.validation_share, generator, "data.validation_share", pool.classes
    )
    validation, used = used[validation], used[rest]
    choices, weights = share_of(train.labels[used], config.choices_share, generator, "data.choices_share", pool.classes)
    parts = {
        "weights": train.take(used[weights]),
        "choices": train.take(used[choices]),
        "validation": train.take(validation),
        "test": test,
    }
    splits = {name: mixed(part, TEST_SEED) for name, part in parts.items()}
    if config.augment != "none" and test.images.ndim != 4:
        raise DataError(
            f"data.augment is {config.augment}, which needs images [c, h, w], but these are "
            f"{list(test.images.shape[1:])}; set data.augment=none"
        )
    mean, std = _statistics([splits[name] for name in ("weights", "choices", "validation")], config)
    return Data(config.name, pool.classes, mean, std, config.augment, splits)


def _pool(config: DataConfig) -> Pool:
    if config.source == "digits":
        return load_digits()
    if config.source == "folder":
        return load_folder(config)
    return load_dataset(config)


def _statistics(parts: list[Split], config: DataConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [c] of the training images, as configured or computed."""
    channels = int(parts[0].images.shape[1])
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) != channels:
            raise DataError(
                f"data.{key} has {len(values)} number(s), but the images have {channels} channel(s); "
                f"give one for each, or data.{key}=null to compute them"
            )
    mean, std = moments([part.images for part in parts])
    return (
        mean if config.mean is None else torch.tensor(config.mean, dtype=torch.float32),
        std if config.std is None else torch.tensor(config.std, dtype=torch.float32),
    )


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all but the channels; of uint8 images, of the pixels divided by 255.

    Args:
        parts: uint8 or float32 [n, c, ...] each.

    Returns:
        mean, std: float32 [c]. The deviation is 1 for a constant channel, so that dividing by it is harmless.
    """
    channels = parts[0].shape[1]
    mean, variance = torch.zeros(channels).double(), torch.zeros(channels).double()
    exact = parts[0].dtype == torch.uint8
    values = torch.arange(256, dtype=torch.float64) / 255.0
    for channel in range(channels):
        planes = [part[:, channel] for part in parts]
        if exact:
            histogram = torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in planes]).sum(0)
            shares = histogram.double() / histogram.sum()
            mean[channel] = (shares * values).sum()
            variance[channel] = (shares * (values - mean[channel]).square()).sum()
        else:
            plane = torch.cat([plane.flatten() for plane in planes]).double()
            mean[channel], variance[channel] = plane.mean(), plane.var(correction=0)
    std = variance.sqrt()
    return mean.float(), torch.where(std > 1e-12, std, 1.0).float()
