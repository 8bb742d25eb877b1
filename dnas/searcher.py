"""The search as one call: train a supernet under a budget, then score its options."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.board import Board
from dnas.engine import Engine, EngineConfig, derived_seed
from dnas.loaders import as_batches, first_batches
from dnas.search.budget import Budget
from dnas.search.measure import measure_scores
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, SearchTraining
from dnas.select.select import select


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
    """Trains a supernet's weights and choices under a budget and scores every option.

    Args:
        supernet: trained in place.
        budget: upper bounds; the search concentrates around them.
        weights: batches of (images, labels) that train weights: `dnas.data.Batches`, or any loader with a length.
        choices: batches that train choices; held back from the weights. Not read with `level="one"`.
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
    """
    config, engine, board = config or SearchConfig(), engine or Engine(EngineConfig()), board or Board(None)
    budget.check(supernet.space)
    supernet.to(engine.device)
    if teacher is not None:
        teacher.to(engine.device).eval()
    sets = [as_batches(loader, engine.device) for loader in (weights, choices, validation)]
    second = sets[1] if config.level == "two" else None
    training = SearchTraining(supernet, budget, sets[0], second, sets[2], teacher, config, engine, board)
    history = engine.fit(training, checkpoint, board, seed)
    torch.manual_seed(derived_seed(seed, "scores"))  # a resumed run draws the same batches
    return score(supernet, budget, sets[1], teacher, config), history


def score(supernet: Supernet, budget: Budget, choices: Any, teacher: nn.Module | None, config: SearchConfig) -> Scores:
    """Scores of a trained supernet by the method of `config.scores`.

    Args:
        supernet: trained.
        budget: `measured` switches options around the architecture that it selects.
        choices: batches of held-back images.
        teacher: for the distillation part of the measured loss.
        config: method, images and rounds.
    """
    if config.scores != "measured":
        return supernet.scores(config.scores)
    found = first_batches(choices, config.score_images)
    scores = supernet.scores("gradient")
    for _ in range(config.score_rounds):
        base = select(scores, supernet.space, budget)
        scores = measure_scores(supernet, base, found, teacher, config.distill)
    return scores
