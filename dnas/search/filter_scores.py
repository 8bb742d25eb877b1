"""Scores of single filters: what a whole layer loses, measured, divided among its filters by how much each has to lose.

One forward pass per option of a layer, as for choices of whole layers, and one backward pass: a filter's share of a
layer's loss at some width is that of the quantisation error of its weights there, each weighted by the squared gradient
(the diagonal of the Fisher information, as in Dong et al. 2019, arXiv 1905.03696). Channels of activations go by their
squared quantisation errors alone. What removing filters loses is measured at a few counts and falls off in between.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor

from dnas.search.mixed import Mixed, MixedActivation
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.batch_norm import batch_statistics
from dnas.space.choice import Choice
from quant.quantizer import quantize

COUNTS = 5
"""Filter counts at which a group is measured."""


class FilterScores:
    """Scores of the choices by filter of one supernet, around one architecture."""

    def __init__(
        self, supernet: Supernet, base: Architecture, loss: Callable[[Architecture], float], x: Tensor, y: Tensor
    ) -> None:
        """Nothing is computed yet.

        Args:
            supernet: trained; left as it was.
            base: the architecture in which options are switched.
            loss: of an architecture, on images that are held back.
            x: images for the backward pass.
            y: their labels.
        """
        self.supernet, self.base, self.loss = supernet, supernet.with_filters(base), loss
        self._x, self._y = x, y
        self._errors: dict[str, NDArray[np.float64]] = {}

    def scores(self, choice: Choice) -> tuple[tuple[float, ...], ...]:
        """For every decision of a choice by filter the score of each option, the dearest's or removal's being 0."""
        if choice.kind == "filters":
            return self._counts(choice)
        if not self._errors:
            self._errors = self._measure_errors()
        dearest = self._at(choice, len(choice.options) - 1)
        drops = [self._at(choice, option) - dearest for option in range(len(choice.options))]
        drops = [*np.maximum.accumulate(np.maximum(drops, 0.0)[::-1])[::-1]]
        errors = self._errors[choice.name]
        shares = errors / np.maximum(errors.sum(0, keepdims=True), 1e-30)
        shares[:, errors.sum(0) <= 0] = 1.0 / choice.count
        return tuple(tuple(row) for row in (-shares * np.asarray(drops)).tolist())

    def _at(self, choice: Choice, option: int) -> float:
        """The loss with all filters at one option."""
        options = {**self.base.options, choice.name: (choice.options[option],) * choice.count}
        return self.loss(replace(self.base, options=options))

    def _counts(self, choice: Choice) -> tuple[tuple[float, ...], ...]:
        supernet, space = self.supernet, self.supernet.space
        index = next(i for i, group in enumerate(space.groups) if group.choice == choice.name)
        size = space.groups[index].size
        order = supernet.keeping_order(choice)
        last = len(choice.options) - 1
        counts = [choice.options[i] for i in sorted({round(last * part / (COUNTS - 1)) for part in range(COUNTS)})]
        losses = []
        for count in counts:
            blocks = order[: count // choice.block] if count < size else order
            decided = tuple(int(i in set(blocks)) for i in range(choice.count))
            positions = {**self.base.positions(), choice.name: decided}
            kept = {name: found for name, found in (self.base.kept or {}).items() if name != choice.name}
            losses.append(self.loss(Architecture.at(space, positions, kept=kept)))
        lengths = np.diff(counts).astype(float)
        slopes = np.maximum(-np.diff(losses) / lengths, 0.0)
        slopes = isotonic_regression(slopes, weights=lengths, increasing=False).x
        first = float(slopes[0]) if len(slopes) else 0.0
        benefits = np.zeros(choice.count)
        channels = 0
        for rank, decision in enumerate(order):
            band = int(np.searchsorted(counts[1:], channels, side="right"))
            slope = first if channels < counts[0] else float(slopes[min(band, len(slopes) - 1)])
            length = min(choice.block, size - decision * choice.block)
            benefits[decision] = slope * length + 1e-9 * (choice.count - rank)
            channels += length
        return tuple((0.0, benefit) for benefit in benefits.tolist())

    def _measure_errors(self) -> dict[str, NDArray[np.float64]]:
        """For every choice of widths by filter the weighted squared error of each option; shape (decisions, K)."""
        supernet, inputs = self.supernet, dict[MixedActivation, Tensor]()
        layers = {layer.weight_choice: supernet.mixed_layer(layer.name) for layer in supernet.space.layers}
        weights: dict[str, Tensor] = {name: mixed.layer.weight for name, mixed in layers.items()}  # type: ignore[misc]
        handles = [
            module.register_forward_pre_hook(lambda m, args: inputs.setdefault(m, args[0].detach()))
            for module in supernet.activations.values()
        ]
        required = {name: weight.requires_grad for name, weight in weights.items()}
        try:
            with torch.enable_grad(), supernet.evaluate_as(self.base), batch_statistics(supernet):
                for weight in weights.values():
                    weight.requires_grad_(True)
                task = F.cross_entropy(supernet(self._x), self._y)
                gradients = torch.autograd.grad(task, list(weights.values()), allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
            for name, weight in weights.items():
                weight.requires_grad_(required[name])
        found = {}
        for (name, mixed), gradient in zip(layers.items(), gradients, strict=True):
            if mixed.block:
                own = weights[name].detach().transpose(0, mixed.axis)
                slope = torch.ones_like(own) if gradient is None else gradient.transpose(0, mixed.axis)
                found[name] = _errors(mixed, own, slope.square())
        for activation, tensor in inputs.items():
            if activation.channels is not None:
                own = tensor.transpose(0, activation.channels.dimension)
                found[activation.choice] = _errors(activation, own, torch.ones(()))
        return found


def _errors(mixed: Mixed, x: Tensor, weight: Tensor) -> NDArray[np.float64]:
    """Squared errors of x (filters first) beyond those of the last option; shape (decisions, K)."""
    with torch.no_grad():
        errors = torch.stack(
            [
                ((quantize(x, step, spec) - x).square() * weight).flatten(1).sum(1)
                for step, spec in zip(mixed.steps, mixed.specs, strict=True)
            ],
            1,
        )
    beyond = (errors - errors[:, -1:]).clamp_min(0.0).double().cpu().numpy()
    found: NDArray[np.float64] = np.add.reduceat(beyond, np.arange(0, len(beyond), mixed.block), axis=0)
    return found
