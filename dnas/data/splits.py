"""Stratified, reproducible division of labelled images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dnas.data.types import DataError, Split


def stratified(
    labels: Tensor, count: int, generator: torch.Generator, key: str, classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Draws `count` images so that each class keeps its share (largest remainders; ties go to the lower label).

    Args:
        labels: int64 [n].
        count: how many to draw.
        generator: the source of randomness, on the CPU.
        key: the configuration key which asked for it, for the error text.
        classes: the names of the labels, for the error text.

    Returns:
        The drawn and the remaining positions, int64 [count] and [n - count], both ascending.

    Raises:
        DataError: a class would have no image in one of the two parts.
    """
    sizes = torch.bincount(labels).tolist()
    total = int(labels.shape[0])
    quotas = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda label: (-(count * sizes[label] % total), label))
    for label in by_remainder[: count - sum(quotas)]:
        quotas[label] += 1
    drawn = []
    for label, (size, quota) in enumerate(zip(sizes, quotas, strict=True)):
        if size and not 0 < quota < size:
            raise DataError(
                f"class {classes[label]} has {size} of {total} images, of which {key} would take {quota}; "
                "each part needs at least one image of each class: "
                f"add images to this class, or change {key} or data.limit_train"
            )
        of_class = torch.nonzero(labels == label).flatten()
        drawn.append(of_class[torch.randperm(size, generator=generator)[:quota]])
    chosen = torch.cat(drawn).sort().values
    rest = torch.ones(total, dtype=torch.bool)
    rest[chosen] = False
    return chosen, torch.nonzero(rest).flatten()


def mixed(split: Split, seed: int) -> Split:
    """The same images in a fixed random order.

    Sources deliver images class by class; batches taken in that order would have the statistics of single classes.
    """
    return split.take(torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)))


def share_of(
    labels: Tensor, share: float, generator: torch.Generator, key: str, classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """As `stratified`, with the count given as a share of all images, rounded."""
    return stratified(labels, round(share * int(labels.shape[0])), generator, key, classes)
