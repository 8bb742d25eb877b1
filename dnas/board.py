"""What the training loops show in TensorBoard; does nothing where no folder is given."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.pictures import KINDS, Picture, architecture_picture, heat_map_picture
from dnas.space.architecture import Architecture
from dnas.space.choice import Choice, Space

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DIGITS = 5
"""Probabilities are remembered to so many decimals: the history travels in every checkpoint."""


class Board:
    """A TensorBoard folder, and the history of the choices' probabilities.

    To resume: give `load_state` what `state` returned at the checkpoint, and `purge` the first step that will be
    written again. Events and history from that step on are then dropped. With `purge_step`, opening does that.
    """

    def __init__(self, folder: Path | None, purge_step: int | None = None) -> None:
        """Opens the folder.

        Args:
            folder: where the events go; made if it is not there. None switches the board off.
            purge_step: events of an earlier process from this step on are hidden; None keeps all.
        """
        self._writer = None if folder is None else _open(folder, purge_step)
        self._purge_step = purge_step
        self._steps: list[int] = []
        self._history: dict[str, dict[str, Any]] = {}

    @property
    def enabled(self) -> bool:
        """Whether anything is written."""
        return self._writer is not None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point per curve; names with a slash share a section: `loss/train`, `accuracy/validation`."""
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def choices(self, space: Space, probabilities: Mapping[str, Sequence[Any]], step: int) -> None:
        """Writes the entropy (nats) of every searched choice and their mean per kind, and remembers for `heat_maps`.

        Args:
            space: the space of the choices.
            probabilities: of the options of every choice; where filters decide, those of every decision, of which the
                mean is shown. What is not searched may be missing.
            step: the epoch; if it was remembered before, it and all later ones are replaced.

        Raises:
            ValueError: another number of probabilities than of options; nothing is written then.
        """
        if self._writer is None:
            return
        means = {choice.name: _mean(probabilities[choice.name], choice) for choice in space.searched()}
        kinds: dict[str, list[float]] = {}
        self._forget(step)
        self._steps.append(step)
        for choice in space.searched():
            found, entropy = means[choice.name]
            self._writer.add_scalar(f"entropy/{choice.name}", entropy, step)
            kinds.setdefault(choice.kind, []).append(entropy)
            entry = {"kind": choice.kind, "options": choice.labels, "probabilities": []}
            rows = self._history.setdefault(choice.name, entry)["probabilities"]
            rows.append([round(p, DIGITS) for p in found])
        for kind, entropies in kinds.items():
            self._writer.add_scalar(f"entropy_mean/{kind}", sum(entropies) / len(entropies), step)

    def heat_maps(self, step: int) -> None:
        """One picture per kind of choice: how the probabilities developed. Takes about a second per 50 choices."""
        if self._writer is None or not self._steps:
            return
        kinds = dict.fromkeys([*KINDS, *(entry["kind"] for entry in self._history.values())])
        for kind in kinds:
            found = {
                name: (entry["options"], entry["probabilities"])
                for name, entry in self._history.items()
                if entry["kind"] == kind
            }
            if found:
                self.image(f"choices/{kind}", heat_map_picture(kind, self._steps, found), step)

    def architecture(self, architecture: Architecture, step: int) -> None:
        """A picture of the network."""
        if self._writer is not None:
            self.image("architecture", architecture_picture(architecture), step)

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Any picture."""
        if self._writer is not None:
            self._writer.add_image(name, picture.pixels(), step, dataformats="HWC")

    def text(self, name: str, lines: Sequence[str], step: int) -> None:
        """Sentences, a paragraph each."""
        if self._writer is not None:
            self._writer.add_text(name, "\n\n".join(lines), step)

    def hparams(self, params: Mapping[str, Any], metrics: Mapping[str, float], step: int | None = None) -> None:
        """Settings and results of this run, for comparison between runs, in this folder (not in a sub-run).

        Args:
            params: flat; what is not a number is written as text.
            metrics: also written as scalars, under the same names.
            step: of these scalars.
        """
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        plain = {key: value if type(value) in (int, float) else str(value) for key, value in params.items()}
        assert self._writer.file_writer is not None
        for summary in hparams(plain, {key: float(value) for key, value in metrics.items()}):
            self._writer.file_writer.add_summary(summary)
        self.scalars(metrics, 0 if step is None else step)

    def state(self) -> dict[str, Any]:
        """The history, as JSON can hold it."""
        return {
            "steps": list(self._steps),
            "choices": {
                name: {**entry, "probabilities": [list(row) for row in entry["probabilities"]]}
                for name, entry in self._history.items()
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned; drops what lies at or after `purge_step`."""
        self._steps = [int(step) for step in state["steps"]]
        self._history = {
            name: {
                "kind": entry["kind"],
                "options": list(entry["options"]),
                "probabilities": [list(row) for row in entry["probabilities"]],
            }
            for name, entry in state["choices"].items()
        }
        if self._purge_step is not None:
            self._forget(self._purge_step)

    def purge(self, step: int) -> None:
        """Hides what an earlier process wrote at this step and later, and drops that from the history."""
        self._forget(step)
        if self._writer is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        assert self._writer.file_writer is not None
        self._writer.file_writer.add_event(Event(step=step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._writer.file_writer.add_event(Event(step=step, session_log=start))

    def flush(self) -> None:
        """Brings everything to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes; further calls do nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _forget(self, step: int) -> None:
        """Drops the history at and after a step."""
        keep = sum(known < step for known in self._steps)
        self._steps = self._steps[:keep]
        for entry in self._history.values():
            del entry["probabilities"][keep:]


def _mean(probabilities: Sequence[Any], choice: Choice) -> tuple[list[float], float]:
    """The mean of the decisions' probabilities, and the mean of their entropies (nats)."""
    rows = list(probabilities) if choice.by_filter else [probabilities]
    for row in rows:
        if len(row) != choice.width:
            raise ValueError(f"{choice.name}: {len(row)} probabilities, but {choice.width} options")
    entropies = [-sum(float(p) * math.log(float(p)) for p in row if p > 0) for row in rows]
    return [sum(map(float, column)) / len(rows) for column in zip(*rows, strict=True)], sum(entropies) / len(rows)


def _open(folder: Path, purge_step: int | None) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and a board is optional

    return SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)
