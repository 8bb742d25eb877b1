"""One-shot training (BINAS, Nayman et al. 2022): a supernet any of whose sub-networks can be judged without training it.

Every batch trains random sub-networks; by the sandwich rule (Yu and Huang 2019) the largest and the smallest one as well, and
all but the largest learn from its outputs (in-place distillation).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from dnas.board import Board
from dnas.engine import Batch, Engine
from dnas.loaders import EpochBatches, span
from dnas.recipe import evaluate_by_batch, task_loss, teacher_logits
from dnas.search.sampling import Sampler
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, asked, check_asked, freeze, weight_optimiser
from dnas.space.choice import Position

PARTS = 4
"""One-shot training shows its numbers and saves its state so many times per epoch."""


class OneShotTraining:
    """A `Training` of a supernet's weights and step sizes on sampled architectures; no choice is learned."""

    name = "search"
    model: nn.Module

    def __init__(
        self,
        supernet: Supernet,
        sampler: Sampler,
        weights: EpochBatches,
        validation: EpochBatches,
        teacher: nn.Module | None,
        config: SearchConfig,
        engine: Engine,
        board: Board,
    ) -> None:
        """Sets up the optimiser.

        Args:
            supernet: what is trained.
            sampler: draws the sub-networks.
            weights: batches that train weights and step sizes.
            validation: for the accuracies that are shown: of the largest, the smallest and one random sub-network.
            teacher: the float network, in evaluation mode; None trains without it.
            config: the schedule.
            engine: device and precision.
            board: TensorBoard.
        """
        self.model = self.supernet = supernet
        self.network = supernet.model
        self.sampler, self.weights, self.validation = sampler, weights, validation
        self.teacher, self.config, self.board = teacher, config, board
        self.epochs = max(1, round(PARTS * config.epochs))
        self.forward = engine.fabric.setup_module(supernet)
        self.optimiser = weight_optimiser(supernet, config)
        self.drawn = 0
        freeze(supernet.choice_parameters(), True)

    def steps(self) -> int:
        """Batches in a part of an epoch."""
        return max(1, round(self.config.epochs * len(self.weights) / self.epochs))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The part's share of the images: parts follow each other through the epochs of the data."""
        yield from span(self.weights, epoch * self.steps(), (epoch + 1) * self.steps())

    def step(self, batch: Batch, fraction: float) -> dict[str, Tensor]:
        """One update from the sub-networks of a batch."""
        x, y = batch
        share = self.config.distill
        target = teacher_logits(self.teacher, x, share)
        paths: list[Mapping[str, Position]] = [self.sampler.named(self.drawn + i) for i in range(self.config.paths)]
        self.drawn += self.config.paths
        numbers: dict[str, Tensor] = {}
        self.optimiser.zero()
        if self.config.sandwich:
            space = self.supernet.space
            paths = [space.extreme(dearest=False), *paths]
            with self.supernet.taking(space.extreme(dearest=True)):
                logits = self.forward(x)
            loss = task_loss(logits, y, target, share)
            loss.backward()
            target = logits.detach() if share else None
            numbers["loss_largest"] = loss.detach()
        losses = []
        for positions in paths:
            with self.supernet.taking(positions):
                loss = task_loss(self.forward(x), y, target, share)
            loss.backward()
            losses.append(loss.detach())
        if self.config.sandwich:
            numbers["loss_smallest"] = losses[0]
        numbers["loss"] = losses[-1]
        self.optimiser.update(fraction)
        return numbers

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Validation accuracy of the largest, the smallest and a random sub-network."""
        supernet, space = self.supernet, self.supernet.space
        found: dict[str, Mapping[str, Position]] = {
            "largest": space.extreme(True),
            "smallest": space.extreme(False),
            "random": self.sampler.named(epoch),
        }
        numbers = {}
        for name, positions in found.items():
            with supernet.taking(positions):
                numbers[f"accuracy_{name}"] = evaluate_by_batch(supernet, self.validation.epoch(0))[0]
        return {"accuracy": float(np.mean(list(numbers.values()))), **numbers}

    def state(self) -> dict[str, Any]:
        """Supernet, optimiser, and how many sub-networks were drawn."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimiser": self.optimiser.sgd.state_dict(),
            "drawn": self.drawn,
            "asked": asked(self.config, None),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores all of it.

        Raises:
            ValueError: it is the state of a search by another schedule.
        """
        check_asked(state, self.config, None)
        self.supernet.load_state_dict(state["supernet"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])
        self.drawn = int(state["drawn"])
