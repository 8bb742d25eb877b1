"""The search as one call: train a supernet under a budget, then score its options."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dnas.board import Board
from dnas.engine import Engine, EngineConfig, derived_seed
from dnas.loaders import EpochBatches, as_batches, first_batches, regrouped
from dnas.search.budget import Budget, BudgetError
from dnas.search.effects import fit_effects
from dnas.search.filter_scores import COUNTS
from dnas.search.measure import measure_scores
from dnas.search.neighbourhood import NeighbourhoodTraining, first_images
from dnas.search.one_shot import OneShotTraining
from dnas.search.pool import Pool, average, collect
from dnas.search.sampling import Neighbours, Sampler
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, SearchTraining, check_relaxation
from dnas.select.reference import bits_suffice, dearest_architecture, loosened, widest_uniform
from dnas.select.select import any_architecture, select
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import build_cost, reference_cost

POOL_FILE, JUDGED_FILE = "pool.json", "judged.json"
"""Kept beside the checkpoint."""
POOL_BATCHES, MIDDLES, MIDDLE_SECONDS = 8, 12, 5.0
"""Batches of held-back images that the records of a pool take in turn; costs of a band at which architectures are selected that
a pool is recentred around, and the time limit of each selection: these need no proof."""


def search(
    supernet: Supernet,
    budget: Budget,
    weights: Any,
    choices: Any,
    validation: Any,
    teacher: nn.Module | None = None,
    config: SearchConfig | None = None,
    engine: Engine | None = None,
    checkpoint: Path | None = None,
    board: Board | None = None,
    seed: int = 0,
) -> tuple[Scores, list[dict[str, float]]]:
    """Trains a supernet's weights and choices under a budget and scores every option, by `config.searcher`.

    Args:
        supernet: trained in place.
        budget: upper bounds; the search concentrates around them.
        weights: batches of (images, labels) that train weights: `dnas.data.Batches`, or any loader with a length.
        choices: batches that train choices, or that options are measured on; held back from the weights. The training of
            `level="one"` does not read them.
        validation: for the accuracy that is shown.
        teacher: the float network to distil from; None trains on labels alone.
        config: the schedule.
        engine: device and precision.
        checkpoint: where to keep the state after every epoch, and to resume from.
        board: TensorBoard.
        seed: of the run.

    Returns:
        (scores, numbers of every epoch).

    Raises:
        BudgetError: no architecture of the space meets the budget; before anything is trained.
        NumericsError: a loss or gradient that is not finite.
        ValueError: a searcher and a relaxation that do not go together.
    """
    config, engine, board = config or SearchConfig(), engine or Engine(EngineConfig()), board or Board(None)
    budget.check(supernet.space)
    if len(budget.caps) > 1 or supernet.space.pairs is not None:  # together, and by legal pairs of widths
        any_architecture(supernet.space, budget)
    check_relaxation(config, supernet.relaxation)
    supernet.to(engine.device)
    if teacher is not None:
        teacher.to(engine.device).eval()
    read = (as_needed(config, supernet.space, budget).epochs > 0, True, False)
    sets = [
        as_batches(loader, engine.device, seed, needed)
        for loader, needed in zip((weights, choices, validation), read, strict=True)
    ]
    if config.searcher == "neighbourhood":
        space = supernet.space
        if spared(config, space, budget) and engine.rank == 0:
            engine.console.print(
                "bits alone meet the budget with all filters: options are switched in the network as it is, from its dearest "
                f"ones, on {config.rounds * config.score_images} images at most, in place of search.rounds={config.rounds} and "
                f"search.epochs={config.epochs:g} (search.train=always trains the supernet, search.epochs=0 keeps the rounds)",
                highlight=False,
            )
        config = as_needed(config, space, budget)
        looser = loosened(space, budget, config.loosen) if config.rounds else budget
        for name in [name for name, cap in looser.caps.items() if cap > budget.caps[name] and engine.rank == 0]:
            engine.console.print(
                f"the search goes around networks of {name} {looser.caps[name]:.4g}, of which uniform ones keep more filters; "
                f"what it selects meets budget.{name}={budget.caps[name]:g} (search.loosen=1 searches within it, too)",
                highlight=False,
            )
        near = NeighbourhoodTraining(
            supernet, first_architecture(space, looser, config.start), lambda scores: select(scores, space, looser),
            lambda scores: select(scores, space, budget), budget, sets[0], sets[1], sets[2], teacher, config, engine, board,
        )  # fmt: skip
        history = engine.fit(near, checkpoint, board, seed)
        assert near.scores is not None
        return near.scores, history
    if config.searcher == "binas":
        return _binas(supernet, budget, sets, teacher, config, engine, checkpoint, board, seed)
    second = sets[1] if config.level == "two" else None
    training = SearchTraining(supernet, budget, sets[0], second, sets[2], teacher, config, engine, board)
    history = engine.fit(training, checkpoint, board, seed)
    torch.manual_seed(derived_seed(seed, "scores"))  # a resumed run draws the same batches
    return engine.same(score(supernet, budget, sets[1], teacher, config)), history


def _binas(
    supernet: Supernet,
    budget: Budget,
    sets: list[EpochBatches],
    teacher: nn.Module | None,
    config: SearchConfig,
    engine: Engine,
    checkpoint: Path | None,
    board: Board,
    seed: int,
) -> tuple[Scores, list[dict[str, float]]]:
    """One-shot training, the pool (kept beside the checkpoint) and the estimator's scores."""
    space = supernet.space
    sampler, pooled, judged = (
        path_sampler(space, budget, config, derived_seed(seed, name)) for name in ("paths", "pool", "judged")
    )
    kept = checkpoint if engine.rank == 0 else None  # what the first process measures counts
    files = [None if kept is None else kept.with_name(name) for name in (POOL_FILE, JUDGED_FILE)]
    origin = json.dumps({"seed": seed, "checkpoint": checkpoint and checkpoint.name})  # which says the rest
    for file in files:
        check_origin(file, origin, checkpoint, space)
    training = OneShotTraining(supernet, sampler, sets[0], sets[2], teacher, config, engine, board)
    history = engine.fit(training, checkpoint, board, seed)
    supernet.eval()
    torch.manual_seed(derived_seed(seed, "pool"))
    held_back = regrouped(first_batches(sets[1], POOL_BATCHES * config.pool_images), config.pool_images)
    average(supernet, judged, held_back, config.judged, files[1], origin)
    everywhere = round(config.pool * (1 - config.recentred))
    pool = collect(supernet, pooled, held_back, everywhere, files[0], None, origin)
    for number in range(config.rounds if config.recentred else 0):
        middles = promising(fit_effects(space, pool).scores(space), space, budget, config.band)
        around = Neighbours(space, middles, config.mutation, derived_seed(seed, "recentred", str(number)))
        count = everywhere + round((config.pool - everywhere) * (number + 1) / config.rounds)
        pool = collect(supernet, around, held_back, count, files[0], pool, origin)
    return fit_effects(space, engine.same(pool), config.neighbours).scores(space), history


def check_origin(file: Path | None, origin: str, checkpoint: Path | None, space: Space) -> None:
    """Raises ValueError where records are kept of another search than this one, or of one whose checkpoint is gone."""
    if file is None or checkpoint is None or not file.exists():
        return
    if not checkpoint.exists():
        raise ValueError(f"{file} is of a search whose checkpoint {checkpoint.name} is gone; remove it to search again")
    before = Pool.from_json(file.read_text(encoding="utf-8"), space).origin
    if before and before != origin:  # earlier versions did not say it
        raise ValueError(f"{file} is of another search than {checkpoint.name}; remove both to search again")


def path_sampler(space: Space, budget: Budget, config: SearchConfig, seed: int) -> Sampler:
    """Draws the sub-networks of `search=binas`, within `config.band` of the first budget's cost.

    Raises:
        ValueError: a band out of reach, or a space in which single filters decide.
    """
    if any(choice.by_filter for choice in space.searched()):
        raise ValueError(
            "search.searcher=binas draws one option per layer, but single filters decide in this space; leave "
            "space.granularity and space.act_granularity at layer, or use search=neighbourhood"
        )
    if config.band is None:
        return Sampler(space, seed)
    name = next(iter(budget.caps))
    full = reference_cost(space, name, functions=budget.functions)
    low, high = config.band
    return Sampler(space, seed, build_cost(space, name, budget.functions), (low * full, high * full))


def promising(
    scores: Scores, space: Space, budget: Budget, band: tuple[float, float] | None, count: int = MIDDLES
) -> NDArray[np.int64]:
    """What scores select within the budget and over a band of its first cost, there without and with its other caps.

    Returns:
        positions, shape (architectures, choices); where nothing can be reached the dearest architecture's.
    """
    name = next(iter(budget.caps))
    shares = [] if band is None else [min(share, 1.0) for share in np.geomspace(*band, count).tolist()]
    wanted = [dict(budget.caps), *({name: share} for share in shares)]
    wanted += [{**budget.caps, name: share} for share in shares if len(budget.caps) > 1]
    found = []
    for caps in wanted:
        with suppress(BudgetError):  # the band may begin below what the space can reach
            positions = select(scores, space, Budget(functions=budget.functions, **caps), MIDDLE_SECONDS).positions()
            found.append([positions[choice.name] for choice in space.choices])
    return np.asarray(found or [[len(choice.options) - 1 for choice in space.choices]], dtype=np.int64)


def spared(config: SearchConfig, space: Space, budget: Budget) -> bool:
    """Whether `config.train` spares the epochs of a neighbourhood search."""
    trains = config.searcher == "neighbourhood" and config.rounds and config.epochs
    return bool(trains and config.train == "needed" and bits_suffice(space, budget))


def as_needed(config: SearchConfig, space: Space, budget: Budget) -> SearchConfig:
    """The schedule, with no epochs of training where the neighbourhood search has no rounds or `config.train` spares them.

    Spared rounds become one measurement, of sensitivities, on the images of all of them: untrained weights do not adapt to
    where a round is, so that rounds around a network of the budget select no better (README, Results).
    """
    if spared(config, space, budget):
        return replace(
            config, epochs=0, rounds=0, start="sensitivities", score_images=config.rounds * config.score_images
        )
    return replace(config, epochs=0) if config.searcher == "neighbourhood" and config.rounds == 0 else config


def images_seen(config: SearchConfig, space: Space, images: int) -> int:
    """What a search is to cost: images that pass forwards, once or with a gradient, in training and in measuring options.

    Where layers decide and held-back images suffice; a neighbourhood search counts what does pass, as `images` of its history.

    Args:
        config: the schedule, as needed.
        space: its options are measured.
        images: that train weights in one epoch.
    """
    trained = images * config.epochs
    if config.searcher == "binas":
        return round(
            trained * (config.paths + 2 * config.sandwich)
            + (config.pool + config.judged * POOL_BATCHES) * config.pool_images
        )
    if config.searcher == "score_function":
        trained *= 1 + config.samples * (1 - config.warmup)
    elif config.searcher == "gumbel" and config.level == "two":
        trained *= 2 - config.warmup
    rounds = config.rounds if config.searcher == "neighbourhood" else config.score_rounds
    if config.searcher != "neighbourhood" and config.scores != "measured":
        rounds = 0
    others = sum((COUNTS if c.by_filter and c.kind == "filters" else c.width - 1) for c in space.searched())
    measured = rounds * config.score_images
    if config.start == "sensitivities":
        measured += first_images(config)
    return round(trained + measured * (1 + others))


def first_architecture(space: Space, budget: Budget, start: str = "uniform") -> Architecture:
    """Where a neighbourhood search starts: at the dearest network, whatever it costs, to measure sensitivities there.

    Or at the widest uniform one, or, where the budget leaves none, the dearest one that fits.
    """
    if start == "sensitivities":
        return dearest_architecture(space)
    found = widest_uniform(space, budget)
    if found is not None:
        return found
    return any_architecture(space, budget)


def score(supernet: Supernet, budget: Budget, choices: Any, teacher: nn.Module | None, config: SearchConfig) -> Scores:
    """Scores of a trained supernet by the method of `config.scores`.

    Args:
        supernet: trained.
        budget: `measured` switches options around the architecture that it selects, at first by what the search learned.
        choices: batches of held-back images.
        teacher: for the distillation part of the measured loss.
        config: method, images and rounds.
    """
    if config.scores != "measured":
        return supernet.scores(config.scores)
    found = first_batches(choices, config.score_images)
    scores = supernet.scores("logits" if config.searcher == "score_function" else "gradient")
    for _ in range(config.score_rounds):
        base = select(scores, supernet.space, budget)
        scores = measure_scores(supernet, base, found, teacher, config.distill)
    return scores
