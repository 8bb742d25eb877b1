"""The Gumbel-softmax search: weights and choices of a supernet trained jointly under a budget."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnas.board import Board
from dnas.engine import Batch, Engine
from dnas.loaders import EpochBatches, endless
from dnas.recipe import Optimiser, OptimiserConfig, evaluate_by_batch, task_loss, teacher_logits
from dnas.search.budget import Budget
from dnas.search.relax import HARD, Relaxation
from dnas.search.score_function import BASELINES, score_function
from dnas.search.supernet import Supernet

SEARCHERS = ("gumbel", "neighbourhood", "score_function", "binas")
NEIGHBOURHOOD_STARTS = ("uniform", "sensitivities")
TRAINS = ("needed", "always")
LEVELS = ("two", "one")
SCORE_METHODS = ("measured", "gradient", "logits")


@dataclass(frozen=True)
class SearchConfig:
    """The schedule of a search; without arguments that of the command, `conf/search/neighbourhood.yaml`.

    Other searchers want other numbers of epochs, rounds and images: those of the command are in `conf/search/`.

    searcher: `gumbel` trains the logits of all choices jointly with the weights, against the budget's penalty;
    `neighbourhood` trains around the current architecture, measures and selects exactly, so many `rounds`, where
    `mutation` is the probability that a choice takes another option than the current one (dnas.search.neighbourhood) and
    `loosen` the largest factor by which the budget that it trains around is looser (dnas.select.reference.loosened);
    it starts at the widest `uniform` network, or at what the `sensitivities` of the untrained network at its dearest options
    select, and with no rounds ends there; it trains weights `always`, or where that is `needed`
    (dnas.select.reference.bits_suffice), else it ends at what sensitivities on `rounds` times `score_images` images select,
    and `epochs` are not spent;
    `score_function` trains logits as `gumbel` does, by the losses of `samples` architectures per batch and a `baseline`
    (dnas.search.score_function), without a gradient through the network;
    `binas` trains `paths` random sub-networks per batch, with `sandwich` the largest and the smallest as well, learns no
    choice, and fits an accuracy estimator to a `pool` of sub-networks, each measured on `pool_images` held-back images, and
    judges it by `judged` others on all of these images (dnas.search.one_shot, dnas.search.effects).
    `band`: shares of the first budget's 8-bit cost between which sub-networks are drawn; None draws every option alike.
    `recentred`: share of the pool that is drawn, in `rounds` and with `mutation`, around what the estimator of the records
    before selects in the band: where it promises too much, the next one knows.
    `neighbours`: whether the estimator has effects of layers that follow each other.
    epochs: of the images that train weights; a fraction is allowed for `neighbourhood` and `binas`, and 0 for the former,
    which then measures the network as it is.
    level: `two` trains weights and choices on separate splits, in turns; `one` trains both on the same batch.
    warmup: share of the search that trains weights only, every option sampled alike.
    distill: share of the loss that is distillation from the float network.
    choice_lr: Adam's rate for the logits. scores: how options are scored at the end; score_rounds is of `measured`,
    score_images of it and of `neighbourhood`, which always measures.
    """

    searcher: str = "neighbourhood"
    epochs: float = 3
    batch_size: int = 64
    rounds: int = 3
    mutation: float = 0.25
    loosen: float = 2.0
    start: str = "uniform"
    train: str = "needed"
    samples: int = 4
    baseline: str = "leave_one_out"
    paths: int = 1
    sandwich: bool = True
    pool: int = 1000
    pool_images: int = 512
    judged: int = 60
    recentred: float = 0.5
    band: tuple[float, float] | None = None
    neighbours: bool = False
    warmup: float = 0.25
    level: str = "two"
    distill: float = 0.5
    choice_lr: float = 0.03
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=0.02, weight_decay=1e-4))
    scores: str = "measured"
    score_images: int = 128
    score_rounds: int = 2

    def __post_init__(self) -> None:
        if self.searcher not in SEARCHERS:
            raise ValueError(f"search.searcher is {self.searcher!r}; allowed: {list(SEARCHERS)}")
        if self.searcher in ("gumbel", "score_function") and self.epochs != int(self.epochs):
            raise ValueError(
                f"search.epochs is {self.epochs}; allowed: whole numbers, or search=neighbourhood or binas"
            )
        if self.start not in NEIGHBOURHOOD_STARTS:
            raise ValueError(f"search.start is {self.start!r}; allowed: {list(NEIGHBOURHOOD_STARTS)}")
        if self.train not in TRAINS:
            raise ValueError(f"search.train is {self.train!r}; allowed: {list(TRAINS)}")
        if self.searcher == "neighbourhood" and (self.level, self.scores) != ("two", "measured"):
            raise ValueError(
                f"search.level is {self.level!r} and search.scores {self.scores!r}; search=neighbourhood trains no choice and "
                "measures on held-back images: level 'two' and scores 'measured' are needed"
            )
        if self.start == "sensitivities" and self.searcher != "neighbourhood":
            raise ValueError(
                f"search.start is 'sensitivities' and search.searcher {self.searcher!r}; it goes with neighbourhood alone"
            )
        least = 0 if self.start == "sensitivities" else 1
        if self.rounds < least or not 0 < self.mutation < 1:
            raise ValueError(
                f"search.rounds is {self.rounds} and search.mutation {self.mutation}; allowed: rounds >= {least}, "
                "and 0 < mutation < 1"
            )
        if self.searcher == "neighbourhood" and self.mutation >= 0.5:
            raise ValueError(
                f"search.mutation is {self.mutation}; allowed for search=neighbourhood: less than 0.5, so that a choice keeps "
                "the current option more often than not"
            )
        if not 1 <= self.loosen < float("inf"):
            raise ValueError(f"search.loosen is {self.loosen}; allowed: a factor of at least 1, which loosens nothing")
        if min(self.paths, self.pool_images) < 1 or self.pool < 50 or self.judged < 10:
            raise ValueError("search: paths >= 1, pool >= 50, pool_images >= 1 and judged >= 10 are needed")
        if not 0 <= self.recentred < 1:
            raise ValueError(f"search.recentred is {self.recentred}; allowed: a share of 0 up to, not including, 1")
        if self.band is not None and not 0 < self.band[0] < self.band[1]:
            raise ValueError(f"search.band is {list(self.band)}; allowed: two shares, 0 < low < high, or null")
        if self.baseline not in BASELINES or self.samples < 2:
            raise ValueError(
                f"search.baseline is {self.baseline!r} and search.samples {self.samples}; allowed: {list(BASELINES)}, 2 or more"
            )
        if self.searcher == "score_function" and self.level != "two":
            raise ValueError(f"search.level is {self.level!r}; search.searcher=score_function needs two")
        if self.level not in LEVELS:
            raise ValueError(f"search.level is {self.level!r}; allowed: {list(LEVELS)}")
        if self.scores not in SCORE_METHODS:
            raise ValueError(f"search.scores is {self.scores!r}; allowed: {list(SCORE_METHODS)}")
        if self.searcher == "score_function" and self.scores == "gradient":
            raise ValueError(
                "search.scores is 'gradient', which search.searcher=score_function takes none of; allowed: measured, logits"
            )
        if min(self.batch_size, self.score_images, self.score_rounds) < 1 or not self.choice_lr > 0:
            raise ValueError("search: batch_size, score_images and score_rounds >= 1 and choice_lr > 0 are needed")
        if not 0 <= self.warmup < 1 or not 0 <= self.distill <= 1:
            raise ValueError("search: 0 <= warmup < 1 and 0 <= distill <= 1 are needed")
        if not (self.epochs > 0 or (self.epochs == 0 and self.searcher == "neighbourhood")):
            raise ValueError(f"search.epochs is {self.epochs}; allowed: more than 0, or 0 for search=neighbourhood")


def asked(config: SearchConfig, budget: Budget | None) -> str:
    """What a search is asked for, as its checkpoint keeps it; without a budget where it serves all of them."""
    caps = {f"budget.{name}": cap for name, cap in budget.caps.items()} if budget else {}
    return json.dumps({**asdict(config), **caps}, sort_keys=True)


def check_asked(state: Mapping[str, Any], config: SearchConfig, budget: Budget | None) -> None:
    """Raises ValueError where a checkpoint is of a search that was asked for something else."""
    if "asked" not in state:  # of an earlier version
        return
    before, now = json.loads(state["asked"]), json.loads(asked(config, budget))
    caps = {name for name in {*before, *now} if name.startswith("budget.")}
    others = [
        f"{name if name in caps else f'search.{name}'} is {before.get(name)} there, {now.get(name)} here"
        for name in sorted((set(before) & set(now)) | caps)
        if before.get(name) != now.get(name)
    ]
    if others:
        raise ValueError(
            f"the checkpoint is of a search by another schedule or budget: {'; '.join(others)}; remove it to search again, "
            "or give another folder"
        )


def check_relaxation(config: SearchConfig, relaxation: Relaxation) -> None:
    """Raises ValueError where a searcher cannot work with a relaxation."""
    if config.searcher != "gumbel" and relaxation.mode not in HARD:
        raise ValueError(
            f"relax.mode is {relaxation.mode!r}; search.searcher={config.searcher} draws whole architectures: it needs one of "
            f"{list(HARD)}. Use search=gumbel to mix options"
        )
    if config.searcher == "score_function" and relaxation.filters != "independent":
        raise ValueError(
            f"relax.filters is {relaxation.filters!r}; search.searcher=score_function needs independent filters "
            "(relax.filters=independent)"
        )


def freeze(parameters: Iterable[nn.Parameter], frozen: bool) -> None:
    """Switches gradients of these parameters off or on."""
    for parameter in parameters:
        parameter.requires_grad_(not frozen)


def weight_optimiser(supernet: Supernet, config: SearchConfig) -> Optimiser:
    """The optimiser of a supernet's weights and step sizes."""
    trained = {id(p) for p in supernet.weight_parameters()}
    named = [(name, p) for name, p in supernet.named_parameters() if id(p) in trained]
    return Optimiser(named, supernet.step_parameters(), config.optimiser)


class SearchTraining:
    """One `step` is one batch of weights and, after the warm-up, one of choices."""

    name = "search"
    model: nn.Module

    def __init__(
        self,
        supernet: Supernet,
        budget: Budget,
        weights: EpochBatches,
        choices: EpochBatches | None,
        validation: EpochBatches,
        teacher: nn.Module | None,
        config: SearchConfig,
        engine: Engine,
        board: Board,
    ) -> None:
        """Sets up optimisers.

        Args:
            supernet: what is trained.
            budget: its penalty is added to the loss of the choices.
            weights: batches that train weights and step sizes.
            choices: batches that train choices; None with `level="one"`.
            validation: for the accuracy that is shown.
            teacher: the float network, in evaluation mode; None trains without distillation.
            config: the schedule.
            engine: device and precision.
            board: TensorBoard.
        """
        self.model = self.supernet = supernet
        self.network = supernet.model
        self.budget, self.weights, self.choices, self.validation = budget, weights, choices, validation
        self.teacher, self.config, self.board, self.epochs = teacher, config, board, int(config.epochs)
        self.forward = engine.fabric.setup_module(supernet)
        for name in budget.caps:
            supernet.multiplier(name)
        self.optimiser = weight_optimiser(supernet, config)
        self.choice_optimiser = torch.optim.Adam(supernet.choice_parameters(), lr=config.choice_lr, betas=(0.5, 0.999))

    def batches(self, epoch: int) -> Iterator[tuple[Batch, Batch | None]]:
        """Pairs of a batch for weights and one for choices."""
        if self.choices is None:
            yield from ((batch, None) for batch in self.weights.epoch(epoch))
            return
        yield from zip(self.weights.epoch(epoch), endless(self.choices, epoch), strict=False)

    def steps(self) -> int:
        """Pairs in an epoch."""
        return len(self.weights)

    def step(self, batch: tuple[Batch, Batch | None], fraction: float) -> dict[str, Tensor]:
        """One update of the weights and, after the warm-up, one of the choices."""
        (x, y), second = batch
        warming = fraction < self.config.warmup
        self.supernet.anneal(0.0 if warming else (fraction - self.config.warmup) / (1 - self.config.warmup))
        joint = self.choices is None and not warming
        freeze(self.supernet.choice_parameters(), not joint)
        loss = self._loss(x, y)
        numbers = {"loss": loss.detach()}
        if joint:
            penalty = self.budget.penalty(self.supernet)
            numbers["penalty"] = penalty.detach()
            self.choice_optimiser.zero_grad(set_to_none=True)
            self.optimiser.step(loss + penalty, fraction)
            self.choice_optimiser.step()
        else:
            self.optimiser.step(loss, fraction)
        if second is not None and not warming:
            numbers |= self._train_choices(*second)
        return numbers

    def _train_choices(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        freeze(self.supernet.choice_parameters(), False)  # gradients of the weights come along; no optimiser uses them
        loss = self._scored(x, y) if self.config.searcher == "score_function" else self._loss(x, y)
        penalty = self.budget.penalty(self.supernet)
        self.choice_optimiser.zero_grad(set_to_none=True)
        (loss + penalty).backward()
        self.choice_optimiser.step()
        return {"choice_loss": loss.detach(), "penalty": penalty.detach()}

    def _scored(self, x: Tensor, y: Tensor) -> Tensor:
        choices, losses, drawn = self.supernet.choices, [], []
        with torch.no_grad():
            for _ in range(self.config.samples):
                losses.append(self._loss(x, y))
                drawn.append(choices.drawn)
        logs = torch.stack([choices.log_probability(one) for one in drawn])
        return score_function(torch.stack(losses), logs, self.config.baseline)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        target = teacher_logits(self.teacher, x, self.config.distill)
        return task_loss(self.forward(x), y, target, self.config.distill)

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Accuracy of the most probable architecture, every budgeted cost against its limit, and what drives them."""
        supernet = self.supernet
        accuracy, _ = evaluate_by_batch(supernet, self.validation.epoch(0))
        numbers = {"accuracy": accuracy, "temperature": float(supernet.temperature)}
        likely = supernet.most_probable()
        with torch.no_grad():
            for name, limit in self.budget.limits(supernet.space).items():
                numbers[f"{name}_expected_over_budget"] = float(supernet.cost(name)) / limit
                numbers[f"{name}_argmax_over_budget"] = float(likely.cost(name)) / limit
                numbers[f"{name}_multiplier"] = float(supernet.multiplier(name)[0])
            found = {name: p.tolist() for name, p in supernet.probabilities().items()}
        self.board.choices(supernet.space, found, epoch + 1)
        return numbers

    def state(self) -> dict[str, Any]:
        """Supernet (its generator and multipliers included) and both optimisers."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimiser": self.optimiser.sgd.state_dict(),
            "choice_optimiser": self.choice_optimiser.state_dict(),
            "asked": asked(self.config, self.budget),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores all of it.

        Raises:
            ValueError: it is the state of a search by another schedule or budget.
        """
        check_asked(state, self.config, self.budget)
        self.supernet.load_state_dict(state["supernet"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])
        self.choice_optimiser.load_state_dict(state["choice_optimiser"])
