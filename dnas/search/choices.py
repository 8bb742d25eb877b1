"""The relaxed choices of a supernet: logits, sampling, probabilities, and what the task says about every option."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.search.composition import Composition
from dnas.search.relax import HARD, Relaxation, gumbel_noise, probabilities, relax
from dnas.space.choice import Space

SCORE_DECAY = 0.995


class RelaxedChoices(nn.Module):
    """All D decisions of a space's searched choices in one matrix of at most K options each.

    A choice of a layer is one decision, a choice by filter has one per filter; a draw costs the same for any number of
    choices. Logits are those of single decisions, or, for widths by filter in a `composition`, of whole layers: they
    then say which share of the filters gets each width, and the filters' order says which.

    Attributes:
        logits: shape (L, K), L = D without compositions; entries beyond a choice's own options do nothing.
        temperature: of the relaxation; shape (), float64.
        draws: samples drawn so far; shape (), int64.
        benefit: running mean of minus the task loss' gradient with respect to each option's weight; shape (D, K).
        benefit_weight: total weight of that mean; shape ().
        places: where every decision of a composition stands, the most sensitive filter first; shape (D,), int64.
        drawn: the last sample, without a gradient.
        forced: decisions that always take their last option: one filter of every group stays; shape (D,), bool.
    """

    temperature: Tensor
    draws: Tensor
    exists: Tensor
    flat: Tensor
    places: Tensor
    forced: Tensor
    drawn: Tensor

    def __init__(self, space: Space, relaxation: Relaxation, seed: int) -> None:
        super().__init__()
        searched = tuple(space.searched())
        self.relaxation = relaxation
        self.fixed = {choice.name: choice.count for choice in space.choices if not choice.searched}
        self.index: dict[str, slice] = {}
        self.sizes: list[int] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        for choice in searched:
            self.index[choice.name] = slice(len(self.sizes), len(self.sizes) + choice.count)
            self._shapes[choice.name] = (choice.count, choice.width) if choice.by_filter else (choice.width,)
            self.sizes += [choice.width] * choice.count
        shape = (len(self.sizes), max(self.sizes, default=1))
        exists = torch.arange(shape[1]) < torch.tensor(self.sizes, dtype=torch.int64).unsqueeze(1)
        composed = [c for c in searched if c.by_filter and c.kind != "filters" and relaxation.filters == "composition"]
        self.composition = Composition([self.index[c.name] for c in composed], shape[0]) if composed else None
        rows = self.composition.rows if self.composition else shape[0]
        self.logits = nn.Parameter(torch.zeros(rows, shape[1]))
        self.benefit = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.benefit_weight = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("exists", exists, persistent=False)
        self.register_buffer("flat", exists.flatten().nonzero().flatten(), persistent=False)
        self.register_buffer("temperature", torch.tensor(relaxation.start, dtype=torch.float64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.register_buffer("places", torch.zeros(shape[0], dtype=torch.int64))
        self.register_buffer("forced", torch.zeros(shape[0], dtype=torch.bool))
        self._may_force = any(choice.by_filter and choice.kind == "filters" for choice in searched)
        self._generator = torch.Generator().manual_seed(seed)

    def rows(self, matrix: Tensor) -> dict[str, Tensor]:
        """The matrix by choice: shape (K,) of its own options each, (decisions, K) by filter. Changes are the matrix's."""
        found = {}
        for name, rows in self.index.items():
            shape = self._shapes[name]
            found[name] = matrix[rows if len(shape) == 2 else rows.start, : shape[-1]]
        return found

    def logit_rows(self) -> dict[str, Tensor]:
        """The logits by choice, shaped as in `rows`; (K,) of a composition. Changes are changes of the logits."""
        if self.composition is None:
            return self.rows(self.logits)
        place = self.composition.row_of
        found = {}
        for name, rows in self.index.items():
            shape, first, last = self._shapes[name], place(rows.start), place(rows.stop - 1) + 1
            single = len(shape) == 1 or last - first < shape[0]
            found[name] = self.logits[first if single else slice(first, last), : shape[-1]]
        return found

    def parts(self, matrix: Tensor) -> dict[str, Tensor]:
        """As `rows`, and with a 1 for every choice of one option; gradients are gathered in one operation."""
        lengths = [prod(shape) for shape in self._shapes.values()]
        parts = matrix.flatten().index_select(0, self.flat).split(lengths) if lengths else ()
        found = {name: part.view(self._shapes[name]) for name, part in zip(self.index, parts, strict=True)}
        ones = matrix.new_ones(max(self.fixed.values(), default=1), 1)
        return found | {name: ones[0] if count == 1 else ones[:count] for name, count in self.fixed.items()}

    def _masked(self, matrix: Tensor) -> Tensor:
        exists = self.exists if self.composition is None else self.composition.first(self.exists)
        return matrix.masked_fill(~exists, float("-inf"))

    def _decided(self, weights: Tensor, hard: bool = False) -> Tensor:
        """The weights of every decision's options, shape (D, K), from those of the logits' rows."""
        if self.composition is not None:
            weights = self.composition.expand(weights, self.places, self.exists, hard)
        if not self._may_force:
            return weights
        last = torch.zeros_like(weights)
        last[:, 1] = 1.0
        return torch.where(self.forced.unsqueeze(1), last, weights)

    def price_temperature(self) -> float:
        """Gumbel samples follow softmax(logits) at any temperature; a plain softmax mixes by softmax(logits / T)."""
        return float(self.temperature) if self.relaxation.mode == "softmax" else 1.0

    def chances(self) -> Tensor:
        """The probability of every option, shape (D, K), differentiable in the logits."""
        return self._decided(probabilities(self._masked(self.logits), self.price_temperature()))

    def probabilities(self) -> dict[str, Tensor]:
        """The same by choice, for every choice of the space: shape (K,), or (decisions, K) by filter."""
        return self.parts(self.chances())

    def sample(self) -> Tensor:
        """A new sample: the weights of all options, shape (D, K)."""
        self.draws += 1
        noise = gumbel_noise(tuple(self.logits.shape), self._generator)
        hard = self.relaxation.mode in HARD
        logits, temperature = self._masked(self.logits), float(self.temperature)
        if self.composition is None:
            weights = self._decided(relax(logits, self.relaxation, temperature, noise))
        else:
            weights = self._decided(self.composition.sample(logits, self.relaxation, temperature, noise), hard)
        if torch.is_grad_enabled() and weights.requires_grad:
            weights.register_hook(self._accumulate)
        self.drawn = weights.detach()
        return weights

    def log_probability(self, drawn: Tensor) -> Tensor:
        """Log probability of a sample of single options, differentiable in the logits; shape ().

        Args:
            drawn: one-hot, shape (D, K), of independent decisions.
        """
        found = torch.log_softmax(self._masked(self.logits), -1).masked_fill(~self.exists, 0.0)
        return (drawn * found).sum()

    @torch.no_grad()
    def concentrate(self, positions: Mapping[str, int | Sequence[int]], mutation: float) -> None:
        """Sets the logits to a neighbourhood: every decision keeps its position, or takes another one.

        Args:
            positions: the middle, by choice; of every decision where filters decide.
            mutation: probability (0 to 1) of another position; of these each step away from the middle halves it.
        """
        for name, logits in self.logit_rows().items():
            taken = positions[name]
            rows = torch.tensor([taken] if isinstance(taken, int) else list(taken), device=logits.device).unsqueeze(1)
            steps = (torch.arange(logits.shape[-1], device=logits.device) - rows).abs()
            others = torch.where(steps > 0, 0.5**steps, 0.0)
            chances = mutation * others / others.sum(1, keepdim=True)
            chances = torch.where(steps == 0, 1.0 - mutation, chances)
            if logits.dim() == 1:  # of a layer, or of a composition: the share of its filters
                chances = chances.mean(0, keepdim=True)
            logits.copy_(torch.log(chances.clamp_min(1e-9)).view_as(logits))

    def discrete(self, positions: Sequence[int]) -> Tensor:
        """One-hot weights of the option at a position for every decision; shape (D, K)."""
        found = torch.tensor(positions, dtype=torch.int64, device=self.logits.device)
        return F.one_hot(found, self.exists.shape[1]).to(self.logits.dtype)

    def most_probable(self) -> list[int]:
        """Position of every decision's most probable option; of equal ones the dearest."""
        if not self.sizes:
            return []
        last = self.exists.shape[1] - 1
        with torch.no_grad():
            chances = self.chances()
            if self.composition is not None:
                shares = probabilities(self._masked(self.logits), self.price_temperature())
                chances = self.composition.rounded(shares, self.places, chances)
        return (last - chances.masked_fill(~self.exists, -1.0).flip(1).argmax(1)).tolist()

    @torch.no_grad()
    def _accumulate(self, grad: Tensor) -> None:
        """Only the task reaches a sample; the price does not."""
        if torch.isfinite(grad).all():
            mean = (grad * self.exists).sum(1, keepdim=True) / self.exists.sum(1, keepdim=True)
            self.benefit.mul_(SCORE_DECAY).sub_((grad - mean) * self.exists, alpha=1 - SCORE_DECAY)
            self.benefit_weight.mul_(SCORE_DECAY).add_(1 - SCORE_DECAY)

    def benefits(self) -> dict[str, Tensor]:
        """What an option is worth for the task, per unit of its weight; shapes as in `rows`."""
        return self.rows(self.benefit / self.benefit_weight.clamp_min(1e-12))

    def get_extra_state(self) -> dict[str, Any]:
        """State of the generator that draws the choices."""
        return {"generator": self._generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores the generator."""
        self._generator.set_state(state["generator"])
