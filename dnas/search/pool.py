"""What one-shot evaluation of random sub-networks yields: the records that BINAS' estimator is fitted to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dnas.engine import Batch
from dnas.recipe import batch_statistics
from dnas.search.sampling import Draws
from dnas.search.supernet import Supernet
from dnas.space.choice import Space, read_typed
from quant.files import write_atomically

SAVED = 100
"""Records between two writes of a pool's file."""


@dataclass(frozen=True)
class Pool:
    """Records of sub-networks, each judged on one batch of held-back images.

    choices: names, those of all choices of the space. positions: shape (n, choices). accuracy: in %, loss: mean
    cross-entropy, batch: number of the batch, images: how many it holds; shape (n,) each.
    """

    choices: tuple[str, ...]
    positions: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    loss: NDArray[np.float64]
    batch: NDArray[np.int64]
    images: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.accuracy)

    def take(self, rows: NDArray[np.int64] | slice) -> "Pool":
        """These records."""
        return Pool(
            self.choices,
            self.positions[rows],
            self.accuracy[rows],
            self.loss[rows],
            self.batch[rows],
            self.images[rows],
        )

    def to_json(self) -> str:
        """JSON with `type` and `version`."""
        names = ("positions", "accuracy", "loss", "batch", "images")
        content = {name: getattr(self, name).tolist() for name in names}
        return json.dumps({"type": "dnas.Pool", "version": 1, "choices": list(self.choices), **content})

    @staticmethod
    def from_json(text: str, space: Space) -> "Pool":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another type or version, or a pool of another space.
        """
        content = read_typed(text, "dnas.Pool", 1)
        names = tuple(choice.name for choice in space.choices)
        if tuple(content["choices"]) != names:
            raise ValueError("this pool is of another space; run stage=search again in a new folder")
        return Pool(
            names, np.asarray(content["positions"], dtype=np.int64).reshape(-1, len(names)),
            np.asarray(content["accuracy"], dtype=np.float64), np.asarray(content["loss"], dtype=np.float64),
            np.asarray(content["batch"], dtype=np.int64), np.asarray(content["images"], dtype=np.int64),
        )  # fmt: skip


@torch.no_grad()
def judge(supernet: Supernet, positions: NDArray[np.int64], batch: Batch) -> tuple[float, float]:
    """(accuracy in %, mean cross-entropy) of a sub-network on one batch, which its batch norms take their statistics from."""
    names = [choice.name for choice in supernet.space.choices]
    x, y = batch
    with supernet.taking(dict(zip(names, positions.tolist(), strict=True))), batch_statistics(supernet):
        logits = supernet(x)
    return 100.0 * float((logits.argmax(1) == y).double().mean()), float(F.cross_entropy(logits, y))


def collect(
    supernet: Supernet,
    sampler: Draws,
    batches: Sequence[Batch],
    count: int,
    file: Path | None = None,
    known: Pool | None = None,
) -> Pool:
    """Judges random sub-networks on held-back images, every one on the next batch in turn.

    Args:
        supernet: trained; left as it was.
        sampler: draws the sub-networks; not those that it was trained on.
        batches: held-back images.
        count: records.
        file: where the pool is kept as it grows; what is there already is not done again.
        known: the first records.
    """
    names = tuple(choice.name for choice in supernet.space.choices)
    rows: list[tuple[list[int], float, float, int, int]] = []
    old = known
    if file is not None and file.exists():
        old = Pool.from_json(file.read_text(encoding="utf-8"), supernet.space)
    if old is not None:
        rows = list(
            zip(
                old.positions.tolist(), old.accuracy.tolist(), old.loss.tolist(), old.batch.tolist(),
                old.images.tolist(), strict=True,
            )
        )  # fmt: skip
    pool = _pool(names, rows)
    for number in range(len(rows), count):
        which = number % len(batches)
        positions = sampler.positions(number)
        accuracy, loss = judge(supernet, positions, batches[which])
        rows.append((positions.tolist(), accuracy, loss, which, len(batches[which][1])))
        if len(rows) == count or len(rows) % SAVED == 0:
            pool = _pool(names, rows)
            if file is not None:
                write_atomically(file, pool.to_json())
    return pool.take(slice(count))


def average(supernet: Supernet, sampler: Draws, batches: Sequence[Batch], count: int, file: Path | None = None) -> Pool:
    """Judges random sub-networks, each on all batches: few records with little noise, to judge an estimator by.

    Args:
        supernet: trained; left as it was.
        sampler: draws the sub-networks.
        batches: held-back images.
        count: records.
        file: where they are kept; what is there already is not done again.
    """
    if file is not None and file.exists():
        return Pool.from_json(file.read_text(encoding="utf-8"), supernet.space)
    rows: list[tuple[list[int], float, float, int, int]] = []
    sizes = [len(y) for _, y in batches]
    for number in range(count):
        positions = sampler.positions(number)
        found = np.array([judge(supernet, positions, batch) for batch in batches])
        accuracy, loss = np.average(found, axis=0, weights=sizes)
        rows.append((positions.tolist(), float(accuracy), float(loss), 0, sum(sizes)))
    pool = _pool(tuple(choice.name for choice in supernet.space.choices), rows)
    if file is not None:
        write_atomically(file, pool.to_json())
    return pool


def _pool(names: tuple[str, ...], rows: Sequence[tuple[list[int], float, float, int, int]]) -> Pool:
    columns: list[Sequence[object]] = [[row[i] for row in rows] for i in range(5)]
    return Pool(
        names, np.asarray(columns[0], dtype=np.int64).reshape(len(rows), len(names)), np.asarray(columns[1], dtype=float),
        np.asarray(columns[2], dtype=float), np.asarray(columns[3], dtype=np.int64), np.asarray(columns[4], dtype=np.int64),
    )  # fmt: skip
