"""How much each option is worth for the task, with the price of complexity removed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from dnas.space.choice import Space, read_typed


@dataclass(frozen=True)
class Scores:
    """A number for every option of every choice: higher is better, differences count, in units of the task loss.

    method: how they were obtained (`gradient`, `logits`, `measured`).
    """

    values: Mapping[str, tuple[float, ...]]
    method: str

    def check(self, space: Space) -> None:
        """Raises ValueError unless there is one finite score for every option of the space."""
        for choice in space.choices:
            found = self.values.get(choice.name, ())
            if len(found) != len(choice.options) or not np.isfinite(found).all():
                raise ValueError(
                    f"scores of {choice.name}: found {list(found)}, needed are {len(choice.options)} finite numbers"
                )

    def monotone(self, weights: Mapping[str, Sequence[float]] | None = None) -> "Scores":
        """The nearest scores that never fall as an option gets dearer (isotonic regression along each choice).

        A dearer option contains the cheaper one up to retraining; where scores say otherwise, they are noise.
        """
        fitted = {
            name: tuple(
                isotonic_regression(np.asarray(values, dtype=float), weights=None if weights is None else weights[name])
                .x.astype(float)
                .tolist()
            )
            for name, values in self.values.items()
        }
        return Scores(fitted, self.method)

    def to_json(self) -> str:
        """JSON with `type` and `version`."""
        values = {name: list(scores) for name, scores in self.values.items()}
        return json.dumps({"type": "dnas.Scores", "version": 1, "method": self.method, "values": values}, indent=1)

    @staticmethod
    def from_json(text: str) -> "Scores":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another type or version.
        """
        content = read_typed(text, "dnas.Scores", 1)
        return Scores({name: tuple(values) for name, values in content["values"].items()}, content["method"])
