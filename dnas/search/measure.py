"""Scores by measurement: switch one option at a time and see what it does to the loss on held-back images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dnas.engine import Batch
from dnas.recipe import image_losses
from dnas.search.filter_scores import FilterScores
from dnas.search.scores import Scores, no_scores
from dnas.search.shrinkage import shrunk
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.batch_norm import batch_statistics

BATCH = 512
"""Held-back images per forward pass: batch norms use the statistics of the batch."""


@dataclass(frozen=True)
class _Probe:
    """Held-back images in one batch: x (n, ...), labels y (n,), and the teacher's logits, computed once."""

    x: Tensor
    y: Tensor
    target: Tensor | None


@torch.no_grad()
def _probes(batches: Sequence[Batch], teacher: nn.Module | None) -> list[_Probe]:
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    count = max(len(y) // BATCH, 1)
    return [
        _Probe(xs, ys, teacher(xs) if teacher is not None else None)
        for xs, ys in zip(x.tensor_split(count), y.tensor_split(count), strict=True)
    ]


@torch.no_grad()
def _losses(supernet: Supernet, architecture: Architecture, probes: Sequence[_Probe], share: float) -> Tensor:
    """Of every image, in double precision."""
    with supernet.evaluate_as(architecture), batch_statistics(supernet):
        found = [image_losses(supernet(probe.x), probe.y, probe.target, share) for probe in probes]
    return torch.cat(found).double()


def _kept(base: Architecture, changed: str) -> dict[str, tuple[int, ...]]:
    """The filters that stay in groups which are not changed."""
    return {name: kept for name, kept in (base.kept or {}).items() if name != changed}


def _opened(base: Architecture) -> Architecture:
    """The architecture with every block and branch in it."""
    gates = {choice.name: choice.options[-1] for choice in base.space.choices if choice.kind in ("depth", "branch")}
    return replace(base, options={**base.options, **gates})


def _silent(base: Architecture) -> set[str]:
    """Choices in blocks or branches that the architecture leaves out: switching them does nothing."""
    positions = base.positions()
    gates = base.space.gates_by_choice()
    return {name for name, own in gates.items() if any(positions[gate] < least for gate, least in own)}  # type: ignore[operator]


def measure_scores(
    supernet: Supernet,
    base: Architecture,
    batches: Sequence[Batch],
    teacher: nn.Module | None = None,
    share: float = 0.0,
) -> Scores:
    """Score of an option: how much lower the loss gets when it alone replaces the option that `base` has.

    Args:
        supernet: trained; left as it was.
        base: where options are switched; best the architecture that the budget selects.
        batches: held-back images; they are regrouped into large batches.
        teacher: the float network, for the distillation part of the loss.
        share: of distillation in the loss.

    Returns:
        scores in units of the loss, shrunk by their errors (`dnas.search.shrinkage`) and made monotone.
    """
    scores, errors = switch_options(supernet, base, batches, teacher, share)
    return shrunk(scores, errors, supernet.space).monotone(supernet.space)


def switch_options(
    supernet: Supernet,
    base: Architecture,
    batches: Sequence[Batch],
    teacher: nn.Module | None = None,
    share: float = 0.0,
) -> tuple[Scores, dict[str, tuple[float, ...]]]:
    """What `measure_scores` starts from: scores as measured, and their standard errors.

    All options see the same images, and batch norms use the statistics of the batch: one forward pass of the batches
    per option, no training, no price. Where filters decide, see `dnas.search.filter_scores`. Options of layers that `base`
    leaves out are switched in the network that leaves nothing out.

    Returns:
        (scores, for every choice of whole layers the standard error of each option's score). Of the variance of a
        difference half is counted with either side, so that the option of `base`, whose score is 0, has an error, too.
    """
    probes = _probes(batches, teacher)
    reference, silent = _losses(supernet, base, probes, share), _silent(base)
    opened = _opened(base)
    whole = _losses(supernet, opened, probes, share) if silent else reference
    values: dict[str, tuple[Any, ...]] = {}
    errors: dict[str, tuple[float, ...]] = {}
    x, y = probes[0].x, probes[0].y
    fine = FilterScores(
        supernet, base, lambda architecture: float(_losses(supernet, architecture, probes, share).mean()), x, y
    )
    for choice in supernet.space.choices:
        if choice.by_filter:
            values[choice.name] = fine.scores(choice) if choice.searched else no_scores(choice)
            continue
        around, before = (opened, whole) if choice.name in silent else (base, reference)
        gains: dict[int, Tensor] = {}
        for option in choice.options:
            if option != around[choice.name]:
                options = {**around.options, choice.name: option}
                switched = replace(around, options=options, kept=_kept(around, choice.name))
                gains[option] = before - _losses(supernet, switched, probes, share)
        values[choice.name] = tuple(float(gains[o].mean()) if o in gains else 0.0 for o in choice.options)
        if gains and len(reference) > 1:
            halves = {option: float(gain.var() / len(gain) / 2) for option, gain in gains.items()}
            own = sum(halves.values()) / len(halves)
            errors[choice.name] = tuple(math.sqrt(halves.get(option, own)) for option in choice.options)
    return Scores(values, "measured"), errors
