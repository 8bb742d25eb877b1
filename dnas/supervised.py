"""Training of one fixed network on labels, and on a teacher where there is one: the float and the realised network alike."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from dnas.engine import Batch, Engine
from dnas.loaders import EpochBatches
from dnas.recipe import Optimiser, OptimiserConfig, evaluate, task_loss, teacher_logits
from dnas.run import differences
from dnas.space.architecture import Architecture
from quant.layers import training_twin

MOST_SHOWN = 5
"""Differences that an error names."""


class SupervisedTraining:
    """A `Training` of all parameters of a model together, through its training twin: see `quant.layers`."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        train: EpochBatches,
        validation: EpochBatches,
        epochs: int,
        optimiser: OptimiserConfig,
        engine: Engine,
        steps: Iterable[nn.Parameter] = (),
        teacher: nn.Module | None = None,
        distill: float = 0.0,
    ) -> None:
        """Sets up the optimiser.

        Args:
            name: in logs and in the derived seeds.
            model: trained in place.
            train: training batches.
            validation: for the accuracy that is shown.
            epochs: how many.
            optimiser: rates.
            engine: device and precision.
            steps: which parameters are step sizes.
            teacher: the network to distil from, in evaluation mode.
            distill: share of the loss that is distillation.
        """
        self.name, self.trained, self.epochs = name, model, epochs
        self.train, self.validation, self.teacher, self.distill = train, validation, teacher, distill
        self.model = self.network = training_twin(model)  # evaluation uses the network itself, which is never compiled
        self.forward = engine.fabric.setup_module(self.model)
        self.optimiser = Optimiser(model.named_parameters(), steps, optimiser)
        self.asked: dict[str, Any] = {"epochs": epochs, "distill": distill if teacher is not None else None}
        self.asked |= {f"optimiser.{name}": value for name, value in asdict(optimiser).items()}
        if isinstance(architecture := getattr(model, "architecture", None), Architecture):
            self.asked |= architecture.identity()  # weights do not show all of it: widths

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's training batches."""
        return self.train.epoch(epoch)

    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.train)

    def step(self, batch: Batch, fraction: float) -> dict[str, Tensor]:
        """One update."""
        x, y = batch
        loss = task_loss(self.forward(x), y, teacher_logits(self.teacher, x, self.distill), self.distill)
        self.optimiser.step(loss, fraction)
        return {"loss": loss.detach()}

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Validation accuracy in %."""
        return {"accuracy": evaluate(self.trained, self.validation.epoch(0))[0]}

    def state(self) -> dict[str, Any]:
        """Model, optimiser, and what was asked for."""
        return {
            "model": self.trained.state_dict(),
            "optimiser": self.optimiser.sgd.state_dict(),
            "asked": json.dumps(self.asked),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores model and optimiser.

        Raises:
            ValueError: it is the state of another training: of another architecture, or by another recipe.
        """
        before = json.loads(state.get("asked", "{}"))  # earlier versions did not say it
        others = differences({**self.asked, **before}, self.asked)
        if others:
            more = f" and {len(others) - MOST_SHOWN} more" if len(others) > MOST_SHOWN else ""
            raise ValueError(
                f"the checkpoint is of another training: {'; '.join(others[:MOST_SHOWN])}{more}; remove it to train again, or "
                "give another file"
            )
        self.trained.load_state_dict(state["model"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])
