"""Training of the float network: start of the search, and teacher, where the user brings no weights."""

from dataclasses import dataclass, field

from torch import nn

from dnas.engine import Engine
from dnas.loaders import EpochBatches
from dnas.recipe import OptimiserConfig
from dnas.supervised import SupervisedTraining


@dataclass(frozen=True)
class PretrainConfig:
    """Epochs, batch size and rates of the float network's training."""

    epochs: int = 20
    batch_size: int = 128
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=0.1))

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError("pretrain: epochs >= 0 and batch_size >= 1 are needed")


def float_training(
    model: nn.Module, train: EpochBatches, validation: EpochBatches, config: PretrainConfig, engine: Engine
) -> SupervisedTraining:
    """Cross-entropy training of the float network."""
    return SupervisedTraining("float", model, train, validation, config.epochs, config.optimiser, engine)
