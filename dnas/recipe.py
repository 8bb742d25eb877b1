"""What all trainings share: optimiser, learning-rate schedule, distillation, accuracy, batch-norm statistics."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.engine import Batch, NumericsError
from dnas.space.batch_norm import batch_statistics

STEP_FLOOR = 0.25
"""Step sizes stay above this share of their value at the start: one that reached 0 would have no gradient to return by."""


@dataclass(frozen=True)
class OptimiserConfig:
    """SGD with Nesterov momentum and a cosine schedule after a linear warm-up.

    weight_decay does not reach biases, normalisations and step sizes; step_lr multiplies the rate of step sizes; clip
    bounds the gradient norm; warmup is a share of training.
    """

    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    step_lr: float = 0.1
    clip: float = 5.0
    warmup: float = 0.05

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0 or not self.clip > 0:
            raise ValueError(
                f"optimiser: lr > 0, 0 <= momentum < 1, weight_decay >= 0 and clip > 0 are needed; found {self}"
            )
        if not 0 <= self.warmup < 1 or self.step_lr < 0:
            raise ValueError(f"optimiser: 0 <= warmup < 1 and step_lr >= 0 are needed; found {self}")


class Optimiser:
    """SGD over a model's weights and step sizes, scheduled by the fraction of training that is done."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], steps: Iterable[nn.Parameter], config: OptimiserConfig
    ) -> None:
        """Sorts parameters into groups.

        Args:
            named: all parameters to train, by name.
            steps: which of them are step sizes.
            config: rates.
        """
        self.config = config
        step_ids = {id(p) for p in steps}
        self._named = [(name, p) for name, p in named]
        decayed = [p for _, p in self._named if p.dim() > 1 and id(p) not in step_ids]
        others = [p for _, p in self._named if p.dim() <= 1 and id(p) not in step_ids]
        sizes = [p for _, p in self._named if id(p) in step_ids]
        self._factors = [1.0, 1.0, config.step_lr]
        decays = [config.weight_decay, 0.0, 0.0]
        self._parameters = [p for _, p in self._named]
        self._sizes: list[Tensor] = list(sizes)
        self._floors = [STEP_FLOOR * p.detach().clone() for p in sizes]
        groups = [
            {"params": params, "weight_decay": decay, "factor": factor}
            for params, decay, factor in zip((decayed, others, sizes), decays, self._factors, strict=True)
            if params
        ]
        nesterov = config.momentum > 0
        self.sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, foreach=True)

    def rate(self, fraction: float) -> float:
        """Learning rate after this fraction of training."""
        warmup = self.config.warmup
        if fraction < warmup:
            return self.config.lr * (fraction + 1e-3) / (warmup + 1e-3)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / max(1 - warmup, 1e-9)))

    def zero(self) -> None:
        """Forgets all gradients."""
        self.sgd.zero_grad(set_to_none=True)

    def step(self, loss: Tensor, fraction: float) -> None:
        """Backward and one update.

        Raises:
            NumericsError: a gradient that is not finite, named.
        """
        self.zero()
        loss.backward()
        self.update(fraction)

    def update(self, fraction: float) -> None:
        """One update from the gradients that are there."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        length = float(norm)
        if not math.isfinite(length):  # before the gradients are scaled by it
            bad = [n for n, p in self._named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
            raise NumericsError(f"the gradient of {bad[0] if bad else 'the loss'} is not finite")
        if length > self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip, norm)
        for group in self.sgd.param_groups:
            group["lr"] = self.rate(fraction) * group["factor"]
        self.sgd.step()
        with torch.no_grad():
            if self._sizes:
                torch._foreach_maximum_(self._sizes, self._floors)


def distillation_losses(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(teacher || student) at a temperature, times its square (Hinton et al. 2015); logits (n, classes) -> (n,)."""
    target = F.log_softmax(teacher / temperature, 1)
    found = F.log_softmax(student / temperature, 1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(1) * temperature**2


def image_losses(logits: Tensor, labels: Tensor, target: Tensor | None, share: float) -> Tensor:
    """Cross-entropy, `share` of it replaced by distillation towards the teacher's logits where there are some; shape (n,)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    if target is None or share == 0.0:
        return losses
    return (1 - share) * losses + share * distillation_losses(logits, target)


def task_loss(logits: Tensor, labels: Tensor, target: Tensor | None, share: float) -> Tensor:
    """The mean of `image_losses`."""
    return image_losses(logits, labels, target, share).mean()


@torch.no_grad()
def teacher_logits(teacher: nn.Module | None, x: Tensor, share: float) -> Tensor | None:
    """What to distil towards; None where there is no teacher or distillation has no share."""
    return None if teacher is None or share == 0.0 else teacher(x)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """(accuracy in %, mean cross-entropy) in evaluation mode; the training mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    correct, loss, count = 0, 0.0, 0
    try:
        for x, y in batches:
            logits = model(x)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            count += len(y)
    finally:
        for module, mode in modes:
            module.training = mode
    return 100.0 * correct / max(count, 1), loss / max(count, 1)


def evaluate_by_batch(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """As `evaluate`, with batch norms that normalise by the batch at hand; a last batch of one image joins the one before."""
    with batch_statistics(model):
        return evaluate(model, _joined(batches))


def _joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if len(held) > 2:
            yield held.pop(0)
    if len(held) == 2 and len(held[1][1]) == 1:
        (x, y), (more, labels) = held
        held = [(torch.cat([x, more]), torch.cat([y, labels]))]
    yield from held


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replaces running statistics by their averages over these batches, every image counting alike; without one they stay.

    All else runs as in evaluation, batch norms that the model's own `train` keeps in evaluation mode as well.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    norms = [norm for norm in norms if norm.training]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        count = 0
        for x, _ in batches if norms else ():
            if count == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.train()
            count += len(x)
            for norm in norms:
                norm.momentum = len(x) / count
            model(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
