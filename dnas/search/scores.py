"""How much each option is worth for the task, with the price of complexity removed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from dnas.space.choice import Choice, Space, read_typed


def no_scores(choice: Choice) -> tuple[Any, ...]:
    """Zero for every option, of every decision where there are several."""
    row = (0.0,) * choice.width
    return (row,) * choice.count if choice.by_filter else row


def as_scores(values: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers of the options, or of those of every decision, as tuples."""
    return tuple(tuple(row) if isinstance(row, list | tuple) else row for row in values)


def nested(values: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(nested(value) for value in values) if isinstance(values, list | tuple) else values


def _shape(table: Any) -> tuple[int, ...] | None:
    """The lengths of nested lists, one per level; None where they are ragged or hold anything but numbers."""
    if not isinstance(table, list | tuple):
        return () if isinstance(table, int | float) else None
    inner = {_shape(row) for row in table}
    (found,) = inner if len(inner) == 1 else (None,)
    return None if found is None else (len(table), *found)


def _rows(values: Sequence[Any]) -> list[Any]:
    """The options' numbers decision by decision."""
    return list(values) if values and isinstance(values[0], tuple) else [values]


@dataclass(frozen=True)
class Scores:
    """A number for every option of every choice: higher is better, differences count, in units of the task loss.

    values: a tuple over the options; for a choice by filter a tuple of such tuples, one per decision (of kind `filters`:
    removed, kept). method: how they were obtained (`gradient`, `logits`, `measured`, `binas`). joint: for some sets of
    choices a table over their joint options (nested tuples, one level per choice) that adds to the values.
    """

    values: Mapping[str, tuple[Any, ...]]
    method: str
    joint: tuple[tuple[tuple[str, ...], Any], ...] = ()

    def rows(self, choice: Choice) -> list[tuple[float, ...]]:
        """The scores of a choice, decision by decision."""
        return _rows(self.values[choice.name])

    def total(self, choice: Choice) -> list[float]:
        """The scores of a choice's options; where filters decide, those of all of them at the option."""
        return [sum(column) for column in zip(*self.rows(choice), strict=True)]

    def of(self, space: Space, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Total scores of many architectures, where no single filters decide.

        Args:
            space: the space.
            positions: shape (n, choices), in the order of the space's choices.

        Returns:
            shape (n,).
        """
        column = {choice.name: i for i, choice in enumerate(space.choices)}
        found = np.zeros(len(positions))
        for names, table in [*(((choice.name,), self.values[choice.name]) for choice in space.choices), *self.joint]:
            found += np.asarray(table, dtype=float)[tuple(positions[:, column[name]] for name in names)]
        return found

    def check(self, space: Space) -> None:
        """Raises ValueError unless there is one finite score for every option of the space."""
        for choice in space.choices:
            found = _rows(self.values.get(choice.name, ()))
            if [len(row) for row in found] != [choice.width] * choice.count or not np.isfinite(found).all():
                raise ValueError(
                    f"scores of {choice.name}: found {found}, needed are {choice.width} finite numbers"
                    f"{f' for each of {choice.count} decisions' if choice.by_filter else ''}"
                )
        known = {choice.name: choice for choice in space.choices}
        for names, table in self.joint:
            if len(set(names)) < len(names) or not names or not set(names) <= set(known):
                raise ValueError(f"joint scores of {names}: needed are distinct choices of the space, {sorted(known)}")
            if any(known[name].by_filter for name in names):
                raise ValueError(
                    f"joint scores of {names}: single filters decide about one of them; allowed are choices per layer "
                    "(space.granularity=layer, space.act_granularity=layer)"
                )
            shape = tuple(known[name].width for name in names)
            if _shape(table) != shape or not np.isfinite(np.asarray(table, dtype=float)).all():
                raise ValueError(f"joint scores of {names}: found {table}, needed are finite numbers of shape {shape}")

    def monotone(self, space: Space, weights: Mapping[str, Sequence[float]] | None = None) -> "Scores":
        """The nearest scores that never fall as an option gets dearer (isotonic regression along each choice).

        A dearer option contains the cheaper one up to retraining; where scores say otherwise, they are noise. Joint pairs of
        widths stay as they are, since W3A3 does not contain W2A4, and so do joint tables: they say by how much options are
        worth more or less together.
        """
        fitted = dict(self.values)
        for name, values in self.values.items():
            if space.choice(name).kind == "pair_bits":
                continue
            own = None if weights is None else weights[name]
            rows = [
                tuple(isotonic_regression(np.asarray(row, dtype=float), weights=own).x.astype(float).tolist())
                for row in _rows(values)
            ]
            fitted[name] = tuple(rows) if values and isinstance(values[0], tuple) else rows[0]
        return Scores(fitted, self.method, self.joint)

    def mean(self, other: "Scores") -> "Scores":
        """The mean of two score tables, option by option; `method` is that of the other.

        A joint table that only one of them has counts as zeros in the other.
        """

        def half(mine: Any, its: Any) -> Any:
            if isinstance(mine, tuple):
                return tuple(half(a, b) for a, b in zip(mine, its, strict=True))
            return (mine + its) / 2

        values = {name: half(mine, other.values[name]) for name, mine in self.values.items()}
        mine, its = dict(self.joint), dict(other.joint)
        joint = {
            names: (np.asarray(mine.get(names, 0.0)) + np.asarray(its.get(names, 0.0))) / 2 for names in {**mine, **its}
        }
        return Scores(values, other.method, tuple((names, nested(table.tolist())) for names, table in joint.items()))

    def to_json(self) -> str:
        """JSON with `type` and `version`."""
        values = {name: list(scores) for name, scores in self.values.items()}
        content: dict[str, Any] = {"type": "dnas.Scores", "version": 1, "method": self.method, "values": values}
        if self.joint:
            content["joint"] = [[list(names), table] for names, table in self.joint]
        return json.dumps(content, indent=1)

    @staticmethod
    def from_json(text: str) -> "Scores":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another type or version.
        """
        content = read_typed(text, "dnas.Scores", 1)
        joint = tuple((tuple(names), nested(table)) for names, table in content.get("joint", []))
        return Scores({name: as_scores(values) for name, values in content["values"].items()}, content["method"], joint)
