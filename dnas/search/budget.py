"""Upper bounds on costs, and the controller that turns them into a penalty."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.conventions import LayerCost
from dnas.space.cost import COSTS, build_cost, reference_cost
from dnas.space.preflight import extreme_cost, heaviest_choice


class BudgetError(ValueError):
    """A budget that is missing, malformed, or that no architecture of the space can meet."""


@dataclass(frozen=True, init=False)
class Budget:
    """Upper bounds on one or more costs.

    A value up to 1 is a share of the same network at full width with 8-bit weights and activations; a value above 1 is
    absolute, in the cost's own unit.

    The penalty is an augmented Lagrangian in v = log(expected cost / limit): lambda v + strength v^2 / 2 where that
    grows with v, and lambda <- max(0, lambda + rate v) once per training step: it grows until the budget is met, falls
    when it is more than met, and grows again if it is violated later. Its state lives in the supernet.
    """

    caps: Mapping[str, float]
    strength: float = 4.0
    rate: float = 0.02
    functions: Mapping[str, LayerCost] = field(default_factory=dict, compare=False, repr=False)

    def __init__(
        self,
        *,
        strength: float = 4.0,
        rate: float = 0.02,
        functions: Mapping[str, LayerCost] | None = None,
        **caps: float | None,
    ) -> None:
        """Budgets by cost name.

        Args:
            strength: weight of the quadratic part of the penalty.
            rate: how fast the multiplier follows a violation.
            functions: the user's own costs per layer; their names are allowed as budgets.
            caps: `bops=0.05`, `weight_bits=1e6`, ...; None is no budget.

        Raises:
            BudgetError: an unknown cost, no budget at all, or one that is not positive.
        """
        given = {name: float(value) for name, value in caps.items() if value is not None}
        allowed = sorted({*COSTS, *(functions or {})})
        for name, value in given.items():
            if name not in allowed:
                raise BudgetError(f"unknown budget {name!r}; allowed: {allowed}")
            if not 0 < value < float("inf"):
                raise BudgetError(
                    f"budget.{name} is {value}; allowed: a share above 0 and up to 1, or an absolute value above 1"
                )
        if not given:
            raise BudgetError(f"no budget is set; give at least one of {allowed}, e.g. budget.bops=0.05")
        if not strength > 0 or rate < 0:
            raise BudgetError(
                f"budget.strength is {strength} and budget.rate {rate}; needed are strength > 0 and rate >= 0"
            )
        object.__setattr__(self, "caps", given)
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "functions", dict(functions or {}))

    def limits(self, space: Space) -> dict[str, float]:
        """Every budget in absolute units."""
        return {
            name: cap * reference_cost(space, name, functions=self.functions) if cap <= 1 else cap
            for name, cap in self.caps.items()
        }

    def check(self, space: Space) -> None:
        """Raises BudgetError if some budget is below the smallest cost that the space can reach.

        For each of them it names that cost, and the choice whose cheapest option still takes part in most of it.
        """
        found = []
        for name, limit in self.limits(space).items():
            cost = build_cost(space, name, self.functions)
            smallest = extreme_cost(space, cost, dearest=False)
            if smallest > limit:
                reference = reference_cost(space, name, functions=self.functions)
                most = heaviest_choice(space, cost)
                found.append(
                    f"budget.{name}={self.caps[name]:g} allows {limit:.6g}, but the smallest architecture of this space costs "
                    f"{smallest:.6g} ({smallest / reference:.4f} of the 8-bit network)"
                    + (f", most of it where {most[0]} enters at its cheapest option ({most[1]:.0%})" if most else "")
                )
        if found:
            raise BudgetError(
                f"{'; '.join(found)}; raise the budget, or allow fewer bits or filters "
                "(space.weight_bits, space.act_bits, space.filters, space.exclude)"
            )

    def holds(self, architecture: Architecture) -> bool:
        """Whether an architecture meets every budget."""
        space, positions = architecture.space, architecture.positions()
        limits = self.limits(space)
        return all(build_cost(space, name, self.functions).at(positions) <= limit for name, limit in limits.items())

    def penalty(self, supernet: Supernet) -> Tensor:
        """What to add to the task loss; shape ().

        The multipliers move only in training mode with gradients on, once per forward pass of the supernet.
        """
        total: Tensor = torch.zeros((), device=supernet.ranks.device)
        for name, limit in self.limits(supernet.space).items():
            state = supernet.multiplier(name)
            violation = torch.log(supernet.cost(name).clamp_min(1e-12) / limit)
            draw = float(supernet.draws)
            if supernet.training and torch.is_grad_enabled() and float(state[1]) != draw:
                with torch.no_grad():
                    state[0] = (state[0] + self.rate * violation).clamp(0.0, 1e6)
                    state[1] = draw
            multiplier = state[0].detach()
            active = violation > -multiplier / self.strength
            inside = multiplier * violation + self.strength / 2 * violation.square()
            flat = -multiplier.square() / (2 * self.strength)
            total = total + torch.where(active, inside, flat).to(total.dtype)
        return total
