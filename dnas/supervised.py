"""Training of one fixed network on labels, and on a teacher where there is one: the float and the realised network alike."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from dnas.engine import Batch, Engine
from dnas.loaders import EpochBatches
from dnas.recipe import Optimiser, OptimiserConfig, evaluate, task_loss, teacher_logits
from quant.layers import training_twin


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
        """Model and optimiser."""
        return {"model": self.trained.state_dict(), "optimiser": self.optimiser.sgd.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores model and optimiser."""
        self.trained.load_state_dict(state["model"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])
