"""The neighbourhood search: train around an architecture, measure every option there, select exactly, go there, again.

Every forward pass draws one architecture from the neighbourhood of the current one: each choice keeps its option or, with a
small probability, takes another, nearer ones more often. So the weights adapt to what is being compared, and a comparison by
switching one option (`measure_scores`) asks of the supernet only what it was trained for. The current architecture meets one
budget at all times: the user's, or, where that leaves no uniform network of full width, a looser one
(`dnas.select.reference.loosened`); what the last round goes to meets the user's.

With `start=sensitivities` a measurement comes before the first round, the one that toolkits without a supernet take: in the
untrained network at its dearest options. The first round goes to what it selects; with no rounds, or where `train=needed`
spares them (`dnas.searcher.as_needed`), that is all. With `epochs=0` rounds measure and select without training:
sensitivities around what meets the budget.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dnas.board import Board
from dnas.engine import Batch, Engine
from dnas.loaders import EpochBatches, first_batches, span
from dnas.recipe import evaluate_by_batch, task_loss, teacher_logits
from dnas.search.budget import Budget
from dnas.search.measure import measure_scores
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, asked, check_asked, freeze, weight_optimiser
from dnas.space.architecture import Architecture

Select = Callable[[Scores], Architecture]
"""The best-scored architecture that meets the budget."""


def first_images(config: SearchConfig) -> int:
    """Held-back images that the measurement before the first round takes: as many as all rounds together."""
    return config.score_images * max(config.rounds, 1)


@contextmanager
def images_passed(model: nn.Module) -> Iterator[list[int]]:
    """How many images each forward pass of a module takes."""
    found: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    try:
        yield found
    finally:
        handle.remove()


class NeighbourhoodTraining:
    """A `Training` whose epochs are rounds; each ends with a measurement and a selection.

    scores: the mean of what the rounds measured, later ones weighing more: the last one half, the one before a quarter.
    A measurement before the first round is an epoch of its own, without a step.
    """

    name = "search"
    model: nn.Module

    def __init__(
        self,
        supernet: Supernet,
        start: Architecture,
        around: Select,
        select: Select,
        budget: Budget,
        weights: EpochBatches,
        held_back: EpochBatches,
        validation: EpochBatches,
        teacher: nn.Module | None,
        config: SearchConfig,
        engine: Engine,
        board: Board,
    ) -> None:
        """Sets up the optimiser and goes to the neighbourhood of `start`.

        Args:
            supernet: what is trained; its relaxation draws single options.
            start: where the first round is; with `config.start=sensitivities` where these are measured.
            around: from scores to what the next round is around.
            select: from scores to what is found in the end.
            budget: for the numbers that are shown.
            weights: batches that train weights and step sizes.
            held_back: batches that options are measured on, other images in every round; of an epoch's at most.
            validation: for the accuracy that is shown.
            teacher: the float network, in evaluation mode; None trains without distillation.
            config: the schedule.
            engine: device and precision.
            board: TensorBoard.
        """
        self.model = self.supernet = supernet
        self.network = supernet.model
        self.around, self.select, self.budget = around, select, budget
        self.teacher, self.config, self.board = teacher, config, board
        self.weights, self.held_back, self.validation = weights, held_back, validation
        self.untrained = int(config.start == "sensitivities")
        self.epochs = config.rounds + self.untrained
        self.scores: Scores | None = None
        self.engine, self.seen = engine, 0
        self.forward = engine.fabric.setup_module(supernet)
        self.optimiser = weight_optimiser(supernet, config)
        freeze(supernet.choice_parameters(), True)
        self._go(start)

    def _go(self, architecture: Architecture) -> None:
        self.current = self.supernet.with_filters(replace(architecture, certificate=None))
        self.supernet.choices.concentrate(self.current.positions(), self.config.mutation)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The round's share of the images: rounds follow each other through the epochs of the data."""
        number = epoch - self.untrained
        if number >= 0:
            yield from span(self.weights, number * self.steps(), (number + 1) * self.steps())

    def steps(self) -> int:
        """Batches in a round; none where nothing is trained."""
        if self.config.epochs == 0 or self.config.rounds == 0:
            return 0
        return max(1, round(self.config.epochs * len(self.weights) / self.config.rounds))

    def step(self, batch: Batch, fraction: float) -> dict[str, Tensor]:
        """One update of the weights at a random neighbour."""
        x, y = batch
        self.seen += len(y)
        target = teacher_logits(self.teacher, x, self.config.distill)
        loss = task_loss(self.forward(x), y, target, self.config.distill)
        self.optimiser.step(loss, (fraction * self.epochs - self.untrained) / self.config.rounds)
        return {"loss": loss.detach()}

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Measures all options around the current architecture, selects, and goes to what was selected.

        Which is what the next round is around, after the last one what the budget itself selects.
        """
        count = first_images(self.config) if epoch < self.untrained else self.config.score_images
        images = first_batches(self.held_back, count, epoch)
        self.supernet.eval()
        with images_passed(self.supernet) as passed:
            found = measure_scores(self.supernet, self.current, images, self.teacher, self.config.distill)
        found = self.engine.same(found)
        self.scores = found if self.scores is None else self.scores.mean(found)
        self._go((self.select if epoch + 1 == self.epochs else self.around)(self.scores))
        accuracy, _ = evaluate_by_batch(self.supernet, self.validation.epoch(0))
        numbers = {"accuracy": accuracy, "images": float(self.seen + sum(passed))}
        self.seen = 0
        for name, limit in self.budget.limits(self.supernet.space).items():
            numbers[f"{name}_argmax_over_budget"] = float(self.current.cost(name)) / limit
        chances = {name: p.tolist() for name, p in self.supernet.probabilities().items()}
        self.board.choices(self.supernet.space, chances, epoch + 1)
        return numbers

    def state(self) -> dict[str, Any]:
        """Supernet (its generator included), optimiser, and where the search stands."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimiser": self.optimiser.sgd.state_dict(),
            "current": self.current.to_json(),
            "scores": None if self.scores is None else self.scores.to_json(),
            "asked": asked(self.config, self.budget),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores all of it.

        Raises:
            ValueError: it is the state of a search by another schedule or budget.
        """
        check_asked(state, self.config, self.budget)
        self._go(Architecture.from_json(state["current"], self.supernet.space))
        self.supernet.load_state_dict(state["supernet"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])
        self.scores = None if state["scores"] is None else Scores.from_json(state["scores"])
