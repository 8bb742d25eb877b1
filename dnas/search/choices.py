"""The relaxed choices of a supernet: logits, sampling, probabilities, and what the task says about every option."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.search.relax import Relaxation, gumbel_noise, probabilities, relax
from dnas.space.choice import Space

SCORE_DECAY = 0.995


class RelaxedChoices(nn.Module):
    """All C searched choices of a space in one matrix of at most K options each: a draw costs the same for any C.

    Attributes:
        logits: shape (C, K); entries beyond a choice's own options do nothing.
        temperature: of the relaxation; shape (), float64.
        draws: samples drawn so far; shape (), int64.
        benefit: running mean of minus the task loss' gradient with respect to each option's weight; shape (C, K).
        benefit_weight: total weight of that mean; shape ().
    """

    temperature: Tensor
    draws: Tensor
    exists: Tensor
    flat: Tensor

    def __init__(self, space: Space, relaxation: Relaxation, seed: int) -> None:
        super().__init__()
        searched = tuple(space.searched())
        self.index = {choice.name: i for i, choice in enumerate(searched)}
        self.fixed = tuple(choice.name for choice in space.choices if not choice.searched)
        self.sizes = [len(choice.options) for choice in searched]
        self.relaxation = relaxation
        shape = (len(searched), max(self.sizes, default=1))
        exists = torch.arange(shape[1]) < torch.tensor(self.sizes, dtype=torch.int64).unsqueeze(1)
        self.logits = nn.Parameter(torch.zeros(shape))
        self.benefit = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.benefit_weight = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("exists", exists, persistent=False)
        self.register_buffer("flat", exists.flatten().nonzero().flatten(), persistent=False)
        self.register_buffer("temperature", torch.tensor(relaxation.start, dtype=torch.float64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._generator = torch.Generator().manual_seed(seed)

    def rows(self, matrix: Tensor) -> dict[str, Tensor]:
        """The matrix by choice: shape (K,) of its own options each. Changes in place change the matrix."""
        return {name: matrix[i, : self.sizes[i]] for name, i in self.index.items()}

    def parts(self, matrix: Tensor) -> dict[str, Tensor]:
        """As `rows`, and with a 1 for every choice of one option; gradients are gathered in one operation."""
        parts = matrix.flatten().index_select(0, self.flat).split(self.sizes) if self.sizes else ()
        one = torch.ones(1, device=matrix.device, dtype=matrix.dtype)
        return dict(zip(self.index, parts, strict=True)) | dict.fromkeys(self.fixed, one)

    def _masked(self) -> Tensor:
        return self.logits.masked_fill(~self.exists, float("-inf"))

    def price_temperature(self) -> float:
        """Gumbel samples follow softmax(logits) at any temperature; a plain softmax mixes by softmax(logits / T)."""
        return float(self.temperature) if self.relaxation.mode == "softmax" else 1.0

    def chances(self) -> Tensor:
        """The probability of every option, shape (C, K), differentiable in the logits."""
        return probabilities(self._masked(), self.price_temperature())

    def probabilities(self) -> dict[str, Tensor]:
        """The same by choice, for every choice of the space: shape (K,) each."""
        return self.parts(self.chances())

    def sample(self) -> Tensor:
        """A new sample: the weights of all options, shape (C, K)."""
        self.draws += 1
        noise = gumbel_noise(tuple(self.logits.shape), self._generator)
        weights = relax(self._masked(), self.relaxation, float(self.temperature), noise)
        if torch.is_grad_enabled() and weights.requires_grad:
            weights.register_hook(self._accumulate)
        return weights

    def discrete(self, positions: Sequence[int]) -> Tensor:
        """One-hot weights of the option at a position for every searched choice; shape (C, K)."""
        found = torch.tensor(positions, dtype=torch.int64, device=self.logits.device)
        return F.one_hot(found, self.logits.shape[1]).to(self.logits.dtype)

    def most_probable(self) -> list[int]:
        """Position of every searched choice's most probable option; of equal ones the dearest."""
        if not self.sizes:
            return []
        last = self.logits.shape[1] - 1
        return (last - self._masked().detach().flip(1).argmax(1)).tolist()

    @torch.no_grad()
    def _accumulate(self, grad: Tensor) -> None:
        """Only the task reaches a sample; the price does not."""
        if torch.isfinite(grad).all():
            mean = (grad * self.exists).sum(1, keepdim=True) / self.exists.sum(1, keepdim=True)
            self.benefit.mul_(SCORE_DECAY).sub_((grad - mean) * self.exists, alpha=1 - SCORE_DECAY)
            self.benefit_weight.mul_(SCORE_DECAY).add_(1 - SCORE_DECAY)

    def benefits(self) -> dict[str, Tensor]:
        """What an option is worth for the task, per unit of its weight: shape (K,) per searched choice."""
        return self.rows(self.benefit / self.benefit_weight.clamp_min(1e-12))

    def get_extra_state(self) -> dict[str, Any]:
        """State of the generator that draws the choices."""
        return {"generator": self._generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores the generator."""
        self._generator.set_state(state["generator"])
