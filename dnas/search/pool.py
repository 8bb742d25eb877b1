"""What one-shot evaluation of random sub-networks yields: the records that BINAS' estimator is fitted to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dnas.engine import Batch
from dnas.search.sampling import Draws
from dnas.search.supernet import Supernet
from dnas.space.batch_norm import batch_statistics
from dnas.space.choice import Space, read_typed
from quant.files import write_atomically

SAVED = 100
"""Records between two writes of a pool's file."""
Record = tuple[list[int], float, int, int]
"""Positions, accuracy in %, number of the batch, images."""


@dataclass(frozen=True)
class Pool:
    """Records of sub-networks, each judged on held-back images.

    choices: names, those of all choices of the space. positions: shape (n, choices). accuracy: in %, batch: number of the
    batch, images: how many; shape (n,) each. origin: the search that they are of, as its file says it.
    """

    choices: tuple[str, ...]
    positions: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    batch: NDArray[np.int64]
    images: NDArray[np.int64]
    origin: str = ""

    @staticmethod
    def of(space: Space, records: Sequence[Record], origin: str = "") -> "Pool":
        """A pool of these records."""
        positions, accuracy, batch, images = ([record[i] for record in records] for i in range(4))
        names = tuple(choice.name for choice in space.choices)
        return Pool(
            names, np.asarray(positions, dtype=np.int64).reshape(-1, len(names)), np.asarray(accuracy, dtype=np.float64),
            np.asarray(batch, dtype=np.int64), np.asarray(images, dtype=np.int64), origin,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.accuracy)

    def take(self, rows: slice) -> "Pool":
        """These records."""
        own = (self.positions[rows], self.accuracy[rows], self.batch[rows], self.images[rows])
        return Pool(self.choices, *own, self.origin)

    def records(self) -> list[Record]:
        """The records one by one."""
        columns = (self.positions, self.accuracy, self.batch, self.images)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def to_json(self) -> str:
        """JSON with `type` and `version`."""
        content = {"type": "dnas.Pool", "version": 1, "choices": list(self.choices), "origin": self.origin}
        return json.dumps({**content, "records": self.records()})

    @staticmethod
    def from_json(text: str, space: Space) -> "Pool":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: another type or version, or a pool of another space.
        """
        content = read_typed(text, "dnas.Pool", 1)
        if content["choices"] != [choice.name for choice in space.choices]:
            raise ValueError("this pool is of another space; run stage=search again in a new folder")
        return Pool.of(space, content["records"], content.get("origin", ""))


@torch.no_grad()
def one_shot_accuracy(supernet: Supernet, positions: NDArray[np.int64], batch: Batch) -> float:
    """Accuracy (%) of a sub-network on one batch, which its batch norms take their statistics from."""
    names = [choice.name for choice in supernet.space.choices]
    x, y = batch
    with supernet.taking(dict(zip(names, positions.tolist(), strict=True))), batch_statistics(supernet):
        return 100.0 * float((supernet(x).argmax(1) == y).double().mean())


def collect(
    supernet: Supernet,
    draws: Draws,
    batches: Sequence[Batch],
    count: int,
    file: Path | None = None,
    known: Pool | None = None,
    origin: str = "",
) -> Pool:
    """Judges random sub-networks on held-back images, every one on the next batch in turn.

    Args:
        supernet: trained; left as it was.
        draws: the sub-networks; not those that it was trained on.
        batches: held-back images.
        count: records.
        file: where the pool is kept as it grows; what is there already is not done again.
        known: the first records.
        origin: the search that the file is of.
    """
    space = supernet.space
    if file is not None and file.exists():
        known = Pool.from_json(file.read_text(encoding="utf-8"), space)
    records = known.records() if known else []
    for number in range(len(records), count):
        which = number % len(batches)
        positions = draws.positions(number)
        accuracy = one_shot_accuracy(supernet, positions, batches[which])
        records.append((positions.tolist(), accuracy, which, len(batches[which][1])))
        if file is not None and (len(records) == count or len(records) % SAVED == 0):
            write_atomically(file, Pool.of(space, records, origin).to_json())
    return Pool.of(space, records[:count], origin)


def average(
    supernet: Supernet,
    draws: Draws,
    batches: Sequence[Batch],
    count: int,
    file: Path | None = None,
    origin: str = "",
) -> Pool:
    """Judges random sub-networks, each on all batches: few records with little noise, to judge an estimator by.

    Args:
        supernet: trained; left as it was.
        draws: the sub-networks.
        batches: held-back images.
        count: records.
        file: where they are kept; what is there already is not done again.
        origin: the search that the file is of.
    """
    if file is not None and file.exists():
        return Pool.from_json(file.read_text(encoding="utf-8"), supernet.space)
    sizes, records = [len(y) for _, y in batches], []
    for number in range(count):
        positions = draws.positions(number)
        found = [one_shot_accuracy(supernet, positions, batch) for batch in batches]
        records.append((positions.tolist(), float(np.average(found, weights=sizes)), 0, sum(sizes)))
    pool = Pool.of(supernet.space, records, origin)
    if file is not None:
        write_atomically(file, pool.to_json())
    return pool
