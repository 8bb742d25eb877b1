"""Batches by epoch: what every training reads, from the project's own data or from a user's loader."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from dnas.engine import Batch, derived_seed


class EpochBatches(Protocol):
    """Batches that know their epoch: a function of the epoch's number alone, so that a resumed run sees the same."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""


class LoaderBatches:
    """A user's loader (anything that yields (images, labels) and has a length) as `EpochBatches`."""

    def __init__(self, loader: Any, device: torch.device, seed: int = 0) -> None:
        """Wraps a loader.

        Args:
            loader: e.g. a torch DataLoader. One that shuffles by torch's global generator has an order of its own in every
                epoch, always the same; with a generator of its own, whatever that gives.
            device: where batches go.
            seed: of the run.

        Raises:
            TypeError: the loader has no length.
        """
        if not hasattr(loader, "__len__") or not hasattr(loader, "__iter__"):
            raise TypeError(
                f"{type(loader).__name__} is not a loader: needed are __iter__ and __len__, as a DataLoader has"
            )
        self.loader, self.device, self.seed = loader, device, seed

    @property
    def has_fixed_order(self) -> bool:
        """Whether every epoch begins with the same images."""
        return isinstance(self.loader, Sequence) or isinstance(getattr(self.loader, "sampler", None), SequentialSampler)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The loader's batches, on the device."""
        with torch.random.fork_rng(devices=[]):  # the order is drawn with the first batch
            torch.manual_seed(derived_seed(self.seed, "order", epoch))
            batches = iter(self.loader)
            first = list(islice(batches, 1))
        for x, y in chain(first, batches):
            yield x.to(self.device), y.to(self.device)


def as_batches(loader: Any, device: torch.device, seed: int = 0, read: bool = True) -> EpochBatches:
    """The loader itself if it knows epochs, else wrapped.

    Raises:
        TypeError: it has no length.
        ValueError: an epoch of it has no batch, and it is to be read.
    """
    found: EpochBatches = loader if callable(getattr(loader, "epoch", None)) else LoaderBatches(loader, device, seed)
    if read and len(found) == 0:
        raise ValueError(
            f"a {type(loader).__name__} has no batches: no images, or with drop_last=True fewer than one batch takes; give it "
            "images, or a smaller batch_size"
        )
    return found


def first_batches(batches: EpochBatches, images: int, epoch: int = 0) -> list[Batch]:
    """The first batches of an epoch, so many images in all: of the last batch no more than that takes, and two at least.

    Statistics of a batch need two. Where all epochs begin with the same images, every epoch's are the next ones, until
    there are no more.
    """
    found: list[tuple[Tensor, Tensor]] = []
    count = 0
    order: Iterable[Batch] = batches.epoch(epoch)
    if epoch and getattr(batches, "has_fixed_order", False):
        size = max((len(y) for _, y in islice(order, 1)), default=1)
        at = epoch * math.ceil(images / size) % len(batches)
        order = chain(islice(batches.epoch(0), at, None), islice(batches.epoch(0), at))
    for x, y in order:
        if count >= images:
            break
        taken = max(images - count, 2)
        found.append((x[:taken], y[:taken]))
        count += len(y)
    return found


def regrouped(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same images in batches of this size; a rest that is smaller than half of it joins the last one."""
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    count = max(1, round(len(y) / size))
    return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))


def span(batches: EpochBatches, first: int, last: int) -> Iterator[Batch]:
    """The batches from `first` to before `last`, where epochs follow each other."""
    while first < last:
        number, at = divmod(first, len(batches))
        end = min(len(batches), at + last - first)
        yield from islice(batches.epoch(number), at, end)
        first += end - at


def endless(batches: EpochBatches, epoch: int) -> Iterable[Batch]:
    """The epoch's batches again and again, each time in a new order."""
    round_ = 0
    while True:
        yield from batches.epoch(epoch * 1000 + round_)
        round_ += 1
