"""Architectures from post-training sensitivities, as toolkits without a search choose them: exactly, or greedily.

Every option is switched alone in the untrained float network at its dearest options (8 bits, full width); no supernet.
"""

from dataclasses import replace

import torch

from dnas.data import Split
from dnas.engine import derived_seed
from dnas.search.budget import Budget
from dnas.search.measure import switch_options
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.select.reference import dearest_architecture
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.stages.context import Run

IMAGES = 512
"""Held-back images that an option is judged on; others for every seed."""


def judges(held_back: Split, seed: int) -> Split:
    """A seed's own images of those that are held back, as they are."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "sensitivities"))
    return held_back.take(torch.randperm(len(held_back), generator=generator)[:IMAGES])


def images_judged(space: Space) -> int:
    """What the sensitivities of a space cost: images that pass forwards, counted as those of a search are."""
    return IMAGES * (1 + sum(choice.width - 1 for choice in space.searched()))


def sensitivities(run: Run, supernet: Supernet, seed: int) -> Scores:
    """What the loss rises by when one option takes the place of the dearest, as negative scores, never falling."""
    full = dearest_architecture(run.space)
    images = list(run.batches(judges(run.data.splits["choices"], seed), IMAGES, False).epoch(0))
    supernet.eval()
    base = supernet.with_filters(full)
    scores, _ = switch_options(supernet, base, images, run.float_model(), run.config.search.distill)
    return scores.monotone(run.space)


def greedy(scores: Scores, run: Run, budget: Budget) -> Architecture:
    """From the dearest options down: always the step that loses least per saved cost, until the budget holds."""
    name = next(iter(budget.caps))
    found = replace(dearest_architecture(run.space), functions=run.functions)
    while not budget.holds(found):
        steps = []
        for choice in run.space.searched():
            place = choice.options.index(found[choice.name])
            for lower in range(place):
                changed = replace(found, options={**found.options, choice.name: choice.options[lower]})
                saved = float(found.cost(name)) - float(changed.cost(name))
                lost = scores.values[choice.name][place] - scores.values[choice.name][lower]
                steps.append((lost / saved, -saved, changed))
        found = min(steps, key=lambda step: step[:2])[2]
    return found
