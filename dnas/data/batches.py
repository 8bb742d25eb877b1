"""Reproducible, augmented, normalised batches from images in memory."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from dnas.data.types import AUGMENTS, DataError, Split

PADDING = {"none": 0, "crop_flip": 4, "shift": 1}


class Batches:
    """The batches of one split; every epoch is a pure function of (seed, epoch).

    The order and the augmentation of an image depend on `seed`, the epoch and its place in the order, neither on the
    device, the batch size nor the number of processes: a resumed run sees identical batches.

    Args:
        split: the images.
        batch_size: images in a batch (of this process).
        seed: the run's seed.
        mean: float32 [c], see `Data.mean`.
        std: float32 [c].
        augment: "none", "crop_flip" or "shift".
        device: where the batches are wanted.
        shuffle: a new order in each epoch; otherwise the order of the split.
        drop_last: leave out an incomplete last batch.
        images_limit: use only the first so many images of each epoch's order (all, if there are fewer).
        rank: the number of this process.
        world_size: how many processes share the split; each takes every `world_size`-th image of the order. With
            `shuffle` or `drop_last` all processes get equally many images (a rest below `world_size` is left out, so
            that none waits for another); without both, together they see each image exactly once.
        channels_last: lay out images [n, c, h, w] with channels innermost, which convolutions on CPUs and on tensor
            cores run faster on; the values are the same.

    Raises:
        DataError: an argument outside what is allowed, or not a single batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        mean: Tensor,
        std: Tensor,
        augment: str = "none",
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        drop_last: bool = False,
        images_limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = False,
    ) -> None:
        if augment not in AUGMENTS:
            raise DataError(f"augment is {augment!r}; allowed: {', '.join(AUGMENTS)}")
        if augment != "none" and split.images.ndim != 4:
            raise DataError(
                f"augment={augment} needs images [n, c, h, w], but these are {list(split.images.shape)}; "
                "set data.augment=none"
            )
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; allowed: a positive integer")
        if images_limit is not None and images_limit < 1:
            raise DataError(f"images_limit is {images_limit}; allowed: a positive integer, or None for all images")
        if not 0 <= rank < world_size:
            raise DataError(f"rank is {rank} of world_size {world_size}; allowed: 0 to world_size - 1")
        channels = split.images.shape[1]
        if mean.shape != (channels,) or std.shape != (channels,):
            raise DataError(
                f"mean and std have the shapes {list(mean.shape)} and {list(std.shape)}; needed: [{channels}]"
            )
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.channels_last = channels_last and split.images.ndim == 4
        self.total = len(split) if images_limit is None else min(images_limit, len(split))
        if shuffle or drop_last:
            self.images = self.total // world_size
        else:
            self.images = len(range(rank, self.total, world_size))
        shape = (1, channels) + (1,) * (split.images.ndim - 2)
        unit = 255.0 if split.images.dtype == torch.uint8 else 1.0
        self._scale = (1.0 / (unit * std.double())).float().view(shape).to(self.device)
        self._offset = (-mean.double() / std.double()).float().view(shape).to(self.device)
        if len(self) == 0 and (shuffle or drop_last):
            raise DataError(
                f"{self.images} images (of {len(split)}, for each of {world_size} processes) make no batch of "
                f"{batch_size}; use a smaller batch_size, a larger images_limit, or drop_last=False"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.images // self.batch_size if self.drop_last else -(-self.images // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch.

        Args:
            epoch: the number of the epoch.
            start: the first batch to deliver, for a run resumed inside an epoch.

        Yields:
            x: float32 [b, c, h, w], normalised, on the device.
            y: int64 [b], on the device.
        """
        order, moves, flips = self._plan(epoch)
        for begin in range(start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            here = slice(begin, min(begin + self.batch_size, self.images))
            yield self._batch(order[here], moves[here], flips[here])

    def _plan(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's order int64 [n], offsets int64 [n, 2] and flips bool [n] of an epoch."""
        seed = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
        count = len(self.split)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        moves = torch.randint(0, 2 * PADDING[self.augment] + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        mine = slice(self.rank, self.total, self.world_size)
        return order[mine][: self.images], moves[mine], flips[mine]

    def _batch(self, index: Tensor, moves: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
        index = index.to(self.split.images.device)
        images = self.split.images.index_select(0, index).to(self.device)
        if self.augment != "none":
            mirrored = flips.to(self.device) if self.augment == "crop_flip" else None
            images = shifted(images, moves.to(self.device), PADDING[self.augment], mirrored)
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        x = images.to(torch.float32, copy=True, memory_format=layout).mul_(self._scale).add_(self._offset)
        return x, self.split.labels.index_select(0, index).to(self.device)


def shifted(images: Tensor, moves: Tensor, padding: int, flips: Tensor | None = None) -> Tensor:
    """Mirrors images, pads them with zeros and cuts windows of their own size out of them.

    Args:
        images: [b, c, h, w].
        moves: int64 [b, 2]: the row and column at which the window starts, 0..2*padding; `padding` changes nothing.
        padding: zeros added on each side.
        flips: bool [b], which images to mirror left to right before padding; None mirrors none.

    Returns:
        [b, c, h, w] of the same type.
    """
    b, c, h, w = images.shape
    high, wide = h + 2 * padding, w + 2 * padding
    inside = (slice(None), slice(None), slice(padding, padding + h), slice(padding, padding + w))
    padded = images.new_zeros(b if flips is None else 2 * b, c, high, wide)
    padded[:b][inside] = images
    picture = torch.arange(b, device=images.device)
    if flips is not None:
        padded[b:][inside] = images.flip(-1)
        picture = picture + b * flips
    # Each row of a window is w neighbouring values of the padded memory: seen as overlapping runs of w values, one for
    # each place where a run can start, all rows are fetched by a single selection. (Several times faster than
    # indexing by row and column.)
    runs = padded.as_strided((padded.numel() - w + 1, w), (1, 1))
    planes = picture.view(-1, 1) * c + torch.arange(c, device=images.device)
    rows = moves[:, 0].view(-1, 1) + torch.arange(h, device=images.device)
    starts = (planes.view(b, c, 1) * high + rows.view(b, 1, h)) * wide + moves[:, 1].view(b, 1, 1)
    return runs.index_select(0, starts.flatten()).view(b, c, h, w)


def batches(
    split: Split,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: str,
    mean: Tensor,
    std: Tensor,
    device: torch.device | str = "cpu",
    shuffle: bool = True,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a single epoch; see `Batches`, which this makes and forgets."""
    return Batches(
        split,
        batch_size=batch_size,
        seed=seed,
        mean=mean,
        std=std,
        augment=augment,
        device=device,
        shuffle=shuffle,
        drop_last=drop_last,
    ).epoch(epoch)
