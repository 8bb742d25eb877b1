"""Training of a realised network: distilled, cosine schedule, batch-norm statistics re-estimated at the end."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.board import Board
from dnas.engine import Engine, EngineConfig, derived_seed
from dnas.loaders import as_batches, first_batches
from dnas.recipe import OptimiserConfig, reestimate_batch_norm
from dnas.supervised import SupervisedTraining
from quant.brevitas import LearnedStepQuant

BASELINES = ("uniform", "random")
STARTS = ("supernet", "float")


@dataclass(frozen=True)
class RetrainConfig:
    """The recipe that the searched network and every baseline get alike.

    start: whose weights a network starts from, the trained `supernet`'s or the `float` network's. distill: share of the loss
    that is distillation from the float network. norm_images: for the batch-norm statistics.
    baselines: networks of equal cost to compare with, any of `uniform`, `random`. uniform_candidates: how many uniform
    networks are trained, the most promising in the supernet first; the best on validation is the baseline.
    """

    start: str = "supernet"
    epochs: int = 12
    batch_size: int = 64
    distill: float = 0.5
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=0.02, weight_decay=1e-4))
    norm_images: int = 2048
    baselines: tuple[str, ...] = BASELINES
    uniform_candidates: int = 4

    def __post_init__(self) -> None:
        unknown = set(self.baselines) - set(BASELINES)
        if unknown:
            raise ValueError(f"retrain.baselines has {sorted(unknown)}; allowed: {list(BASELINES)}")
        if self.start not in STARTS:
            raise ValueError(f"retrain.start={self.start} is unknown; allowed: {list(STARTS)}")
        if self.epochs < 0 or self.uniform_candidates < 1 or not 0 <= self.distill <= 1:
            raise ValueError("retrain: epochs >= 0, uniform_candidates >= 1 and 0 <= distill <= 1 are needed")
        if self.batch_size < 1 or self.norm_images < 1:
            raise ValueError("retrain: batch_size >= 1 and norm_images >= 1 are needed")


def retrain(
    model: nn.Module,
    train: Any,
    validation: Any,
    teacher: nn.Module | None = None,
    config: RetrainConfig | None = None,
    engine: Engine | None = None,
    checkpoint: Path | None = None,
    board: Board | None = None,
    seed: int = 0,
    name: str = "retrain",
) -> list[dict[str, float]]:
    """Trains a realised network in place.

    Args:
        model: what `realise` returned.
        train: batches of (images, labels): `dnas.data.Batches`, or any loader with a length.
        validation: the same, for the accuracy that is shown.
        teacher: the float network to distil from; None trains on labels alone.
        config: the recipe.
        engine: device and precision.
        checkpoint: where to keep the state after every epoch, and to resume from.
        board: TensorBoard.
        seed: of the run.
        name: in logs and in the derived seeds.

    Returns:
        numbers of every epoch.

    Raises:
        NumericsError: a loss or gradient that is not finite.
    """
    config, engine = config or RetrainConfig(), engine or Engine(EngineConfig())
    train, validation = (as_batches(loader, engine.device, seed) for loader in (train, validation))
    model.to(engine.device)
    if teacher is not None:
        teacher.to(engine.device).eval()
    steps = [module.step for module in model.modules() if isinstance(module, LearnedStepQuant)]
    training = SupervisedTraining(
        name, model, train, validation, config.epochs, config.optimiser, engine, steps, teacher, config.distill
    )
    history = engine.fit(training, checkpoint, board or Board(None), seed)
    torch.manual_seed(derived_seed(seed, name, "norms"))  # a resumed run draws the same batches
    reestimate_batch_norm(model, first_batches(train, config.norm_images))
    engine.share(model)
    model.eval()
    return history
