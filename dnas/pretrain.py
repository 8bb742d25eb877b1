"""Training of the float network: start of the search, and teacher, where the user brings no weights."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dnas.engine import Batch, Engine
from dnas.loaders import EpochBatches
from dnas.recipe import Optimiser, OptimiserConfig, evaluate


@dataclass(frozen=True)
class PretrainConfig:
    """Epochs, batch size and rates of the float network's training."""

    epochs: int = 20
    batch_size: int = 128
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=0.1))

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError("pretrain: epochs >= 0 and batch_size >= 1 are needed")


class FloatTraining:
    """Cross-entropy training of the float network."""

    name = "float"

    def __init__(
        self, model: nn.Module, train: EpochBatches, validation: EpochBatches, config: PretrainConfig, engine: Engine
    ) -> None:
        self.model, self.train, self.validation, self.epochs = model, train, validation, config.epochs
        self.forward = engine.fabric.setup_module(model)
        self.optimiser = Optimiser(model.named_parameters(), [], config.optimiser)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's training batches."""
        return self.train.epoch(epoch)

    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.train)

    def step(self, batch: Batch, fraction: float) -> dict[str, Tensor]:
        """One update."""
        x, y = batch
        loss = F.cross_entropy(self.forward(x), y)
        self.optimiser.step(loss, fraction)
        return {"loss": loss.detach()}

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Validation accuracy in %."""
        return {"accuracy": evaluate(self.model, self.validation.epoch(0))[0]}

    def state(self) -> dict[str, Any]:
        """Model and optimiser."""
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.sgd.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores model and optimiser."""
        self.model.load_state_dict(state["model"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])
