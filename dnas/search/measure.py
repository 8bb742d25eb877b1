"""Scores by measurement: switch one option at a time and see what it does to the loss on held-back images."""

from collections.abc import Sequence

import torch
from torch import nn

from dnas.engine import Batch
from dnas.recipe import batch_statistics, task_loss
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture


@torch.no_grad()
def _loss(
    supernet: Supernet, architecture: Architecture, batches: Sequence[Batch], teacher: nn.Module | None, share: float
) -> float:
    total, count = 0.0, 0
    with supernet.evaluate_as(architecture), batch_statistics(supernet):
        for x, y in batches:
            total += float(task_loss(supernet(x), y, teacher, x, share)) * len(y)
            count += len(y)
    return total / max(count, 1)


def measure_scores(
    supernet: Supernet,
    base: Architecture,
    batches: Sequence[Batch],
    teacher: nn.Module | None = None,
    share: float = 0.0,
) -> Scores:
    """Score of an option: how much lower the loss gets when it alone replaces the option that `base` has.

    All options see the same images, and batch norms use the statistics of the batch: one forward pass of the batches
    per option, no training, no price.

    Args:
        supernet: trained; left as it was.
        base: where options are switched; best the architecture that the budget selects.
        batches: held-back images, in batches large enough for their own statistics.
        teacher: the float network, for the distillation part of the loss.
        share: of distillation in the loss.

    Returns:
        scores in units of the loss, made monotone.
    """
    reference = _loss(supernet, base, batches, teacher, share)
    values = {}
    for choice in supernet.space.choices:
        found = []
        for option in choice.options:
            if option == base[choice.name]:
                found.append(0.0)
                continue
            switched = Architecture(supernet.space, {**base.options, choice.name: option})
            found.append(reference - _loss(supernet, switched, batches, teacher, share))
        values[choice.name] = tuple(found)
    return Scores(values, "measured").monotone()
