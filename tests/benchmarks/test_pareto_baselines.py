"""The baselines without a search: which images judge them, and how many pass."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import pareto_baselines
from pareto_baselines import IMAGES, images_judged, judges, sensitivities
from pareto_runs import Job, images_searched

import dnas
from dnas.data import Batches, Split
from tests.networks import Residual, example


@pytest.fixture
def held_back() -> Split:
    """Images that say which one they are."""
    return Split(torch.arange(2000.0).reshape(2000, 1, 1, 1), torch.arange(2000) % 10)


def test_every_seed_has_images_of_its_own_and_they_are_not_augmented(held_back: Split) -> None:
    first, again, other = (judges(held_back, seed) for seed in (0, 0, 1))
    assert len(first) == len(set(first.images.flatten().tolist())) == IMAGES
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    # of 512 in 2,000 a fourth is expected in common
    assert len(set(first.images.flatten().tolist()) & set(other.images.flatten().tolist())) < IMAGES / 2
    assert torch.equal(first.images.flatten().long() % 10, first.labels)


def job(architecture: str, search: str | None, start: str) -> Job:
    return Job("method", "main", "small", {"bops": 0.1}, architecture, start, search, 0, 0)


class Judged:
    """A run that notes which images are judged; its batches are the project's own."""

    def __init__(self) -> None:
        self.model = Residual().eval()
        (x,) = example(self.model, 600)
        self.data = SimpleNamespace(splits={"choices": Split(x, torch.randint(0, 5, (600,)))})
        self.space = dnas.build_space(self.model, example(self.model), (2, 8), (4, 8), (0.5, 1.0))
        self.config = SimpleNamespace(search=SimpleNamespace(distill=0.5))
        self.folder = SimpleNamespace(read_json=lambda *names: {"images": 77})

    def float_model(self) -> torch.nn.Module:
        return self.model

    def batches(self, split: Split, size: int, shuffle: bool) -> Batches:
        zeros = torch.zeros(split.images.shape[1])
        return Batches(split, batch_size=size, seed=0, mean=zeros, std=zeros + 1, shuffle=shuffle, drop_last=shuffle)


def test_two_seeds_measure_other_sensitivities_and_the_images_that_pass_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pareto_baselines, "IMAGES", 64)
    run: Any = Judged()
    supernet = dnas.Supernet(run.model, run.space)
    supernet.calibrate(run.data.splits["choices"].images[:32])
    passed: list[int] = []
    supernet.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    first, again, other = (sensitivities(run, supernet, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.values != other.values
    assert sum(passed) == 3 * images_judged(run.space)
    assert images_searched(run, job("sensitivity greedy", None, "float")) == images_judged(run.space)


def test_a_search_counts_where_its_supernet_is_the_start() -> None:
    run: Any = Judged()
    assert images_searched(run, job("selected", "ours", "supernet")) == 77
    assert images_searched(run, job("uniform 2 2 1", None, "float")) == 0
