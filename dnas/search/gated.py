"""A module that a sample may leave out: its input then is its output."""

from typing import Any

import torch
from torch import Tensor, nn

from dnas.search.mixed import Sample
from dnas.space.choice import Gate, Space


class Gated:
    """Makes a module's forward x + g (module(x) - x), where g is the weight of the options that let it run.

    It becomes a base of the module's own class, so that the module stays at its path, with its attributes and type.
    """

    _own: type[nn.Module]
    _gate: tuple[str, Tensor, list[Sample]]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """X as the module takes it."""
        choice, opens, samples = self._gate
        sample = samples[0]
        if not sample.quantised:
            whole: Tensor = self._own.forward(self, x, *args, **kwargs)
            return whole
        weights = sample.weights[choice]
        share = (weights * opens.to(weights)).sum()
        if sample.hard and not share.requires_grad and not torch.compiler.is_compiling() and float(share) == 0.0:
            return x
        y: Tensor = self._own.forward(self, x, *args, **kwargs)
        return x + share.to(y) * (y - x)


def add_gate(module: nn.Module, space: Space, gate: Gate, sample: Sample) -> None:
    """Lets samples leave a module out, in place."""
    own = type(module)
    options = space.choice(gate.choice).options
    module._own = own  # type: ignore[assignment]
    module._gate = (gate.choice, torch.tensor([float(o >= gate.least) for o in options]), [sample])  # type: ignore[assignment]
    module.__class__ = type(own.__name__, (Gated, own), {"__module__": own.__module__, "__doc__": own.__doc__})


def remove_gate(module: nn.Module) -> None:
    """Makes a module always run again, in place."""
    module.__class__ = module._own  # type: ignore[assignment]
    del module._own, module._gate
