"""How much of a search step goes into anything but the network and its optimiser: real data, augmentation, cost, logging."""

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from overhead_steps import WIDTHS, Batch, supernet

import dnas
from dnas.board import Board
from dnas.data import Batches, Split
from dnas.engine import Engine, EngineConfig, _Steps
from dnas.recipe import Optimiser, OptimiserConfig
from dnas.search.training import SearchConfig, SearchTraining

IMAGES = 64 * 24


def _batches(device: torch.device) -> Batches:
    """Photographs' shapes and types, with the augmentation of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    return Batches(
        Split(images, labels), batch_size=64, seed=0, mean=mean, std=std, augment="crop_flip", device=device,
        shuffle=True, drop_last=True, channels_last=True,
    )  # fmt: skip


def shares(rounds: int, device: torch.device) -> dict[str, Any]:
    """Epochs of `dnas`' own loop, level one, and the same steps bare, in turns; share of time beyond the bare ones."""
    batch = Batch("resnet8", 64, device)
    net, budget, data = supernet(batch, WIDTHS[3]), dnas.Budget(bops=0.1), _batches(device)
    engine = Engine(EngineConfig(device=str(device), progress=False, compile="never"))
    config = SearchConfig(searcher="gumbel", epochs=rounds, warmup=0.0, level="one", distill=0.0)
    training = SearchTraining(net, budget, data, None, data, None, config, engine, Board(None))
    other = supernet(batch, WIDTHS[3])
    trained = {id(p) for p in other.weight_parameters()}
    named = [(name, p) for name, p in other.named_parameters() if id(p) in trained]
    optimiser = Optimiser(named, other.step_parameters(), OptimiserConfig(lr=0.01))
    whole, bare = [], []
    for epoch in range(rounds):
        other._draw()  # the bare step draws nothing and prices nothing: the network, backward and one optimiser
        start = time.perf_counter()
        training.model.train()
        engine._epoch(training, epoch, _Bar(), None, _Steps(training, False))
        whole.append((time.perf_counter() - start) / len(data))
        other.train()
        start = time.perf_counter()
        for _ in range(len(data)):
            with torch.enable_grad():
                loss = F.cross_entropy(other.model(batch.x), batch.y)
            optimiser.sgd.zero_grad()
            loss.backward(retain_graph=True)
            optimiser.update(0.5)
        bare.append((time.perf_counter() - start) / len(data))
    found = sorted(1 - b / w for b, w in zip(bare, whole, strict=True))
    return {
        "whole_ms": round(1e3 * statistics.median(whole), 2),
        "network_and_optimiser_ms": round(1e3 * statistics.median(bare), 2),
        "share_outside": round(statistics.median(found), 4),
        "quartiles": [round(found[len(found) // 4], 4), round(found[3 * len(found) // 4], 4)],
        "share_of_minima": round(1 - min(bare) / min(whole), 4),
        "rounds": rounds,
    }


class _Bar:
    """A progress bar that shows nothing."""

    def update(self, task: Any, **kwargs: Any) -> None:
        """Nothing."""
