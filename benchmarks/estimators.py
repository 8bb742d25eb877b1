"""How well do estimators know the gradient of the choices? `python benchmarks/estimators.py`

ResNet-8 on scikit-learn's digits, trained, with a space that is small enough to enumerate: every architecture's loss on a
fixed batch is computed, so that the gradient of the expected loss in the logits is exact. Then bias and standard deviation of
every estimator that `relax` and `search` offer, from repeated draws; both in norms, relative to that of the exact gradient. The
score function sees the losses of four samples (its `samples`); the others' gradients of four draws are averaged, too. Mean and
spread of the loss over the architectures say by how much a baseline can cut its deviation. Writes results/estimators.json.
"""

import json
import os
import time
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

from dnas.board import Board
from dnas.data import Batches, DataConfig, load_data
from dnas.engine import Engine, EngineConfig
from dnas.models.resnet import resnet8
from dnas.pretrain import PretrainConfig, float_training
from dnas.run import source_commit
from dnas.search.budget import Budget
from dnas.search.relax import Relaxation
from dnas.search.score_function import score_function
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, SearchTraining, freeze
from dnas.space.architecture import Architecture
from dnas.space.batch_norm import batch_statistics
from dnas.space.build import build_space

RESULT = Path(__file__).parent / "results" / "estimators.json"
SAMPLES, DRAWS, IMAGES, SUPERNET_EPOCHS = 4, 200, 128, 12
SPACE: dict[str, Any] = {
    "weight_bits": (2, 4, 8), "act_bits": (2, 8), "filters": (0.5, 1.0), "exclude": ("layer1.*", "layer2.*", "fc", "conv1"),
}  # fmt: skip
ESTIMATORS = {
    "softmax": Relaxation("softmax", 1.0, 1.0),
    "Gumbel, soft, T=1": Relaxation("gumbel_soft", 1.0, 1.0),
    "Gumbel, straight-through, T=1": Relaxation("gumbel_hard", 1.0, 1.0),
    "Gumbel, straight-through, T=0.3": Relaxation("gumbel_hard", 0.3, 0.3),
    "ReinMax, T=1.3": Relaxation("reinmax", 1.3, 1.3),
}


def trained(seed: int) -> tuple[Supernet, Tensor, Tensor]:
    """A supernet of a trained network in the small space, its weights adapted to quantisation, and a batch."""
    data, engine = load_data(DataConfig("digits", "digits"), 0), Engine(EngineConfig(threads=1, progress=False))

    def batches(name: str, size: int, shuffle: bool) -> Batches:
        return Batches(
            data.splits[name],
            batch_size=size,
            seed=seed,
            mean=data.mean,
            std=data.std,
            shuffle=shuffle,
            drop_last=shuffle,
        )

    torch.manual_seed(seed)
    model = resnet8(1, 10)
    training = float_training(
        model,
        batches("weights", 64, True),
        batches("validation", 500, False),
        PretrainConfig(epochs=12, batch_size=64),
        engine,
    )
    engine.fit(training, None, Board(None), seed)
    x, y = next(iter(batches("choices", IMAGES, False).epoch(0)))
    supernet = Supernet(model, build_space(model, (x,), **SPACE), seed=seed)
    supernet.calibrate(x)
    config = SearchConfig(searcher="gumbel", epochs=SUPERNET_EPOCHS, level="one", warmup=0.999)  # of weights alone
    sets = batches("weights", 64, True), None, batches("validation", 500, False)
    engine.fit(
        SearchTraining(supernet, Budget(bops=1.0), *sets, None, config, engine, Board(None)), None, Board(None), seed
    )
    freeze(supernet.choice_parameters(), False)
    with torch.no_grad():
        supernet.choices.logits.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed))
    return supernet, x, y


def loss_of(supernet: Supernet, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy under a new sample; batch norms normalise by the batch, as in `exact_gradient`."""
    return torch.nn.functional.cross_entropy(supernet(x), y)


def exact_gradient(supernet: Supernet, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float], int]:
    """Of the expected loss in the logits, the sum over all architectures; the loss' mean and spread; and how many there are."""
    choices = list(supernet.space.searched())
    total, mean, square = torch.zeros(()), 0.0, 0.0
    probabilities = supernet.probabilities()
    count = 0
    fixed = {c.name: c.options[0] for c in supernet.space.choices if not c.searched}
    for taken in product(*(range(len(c.options)) for c in choices)):
        options = fixed | {c.name: c.options[i] for c, i in zip(choices, taken, strict=True)}
        with torch.no_grad(), supernet.evaluate_as(Architecture(supernet.space, options)), batch_statistics(supernet):
            loss = float(loss_of(supernet, x, y))
        chance = torch.ones(())
        for choice, i in zip(choices, taken, strict=True):
            chance = chance * probabilities[choice.name][i]
        total = total + chance * loss
        mean += float(chance.detach()) * loss
        square += float(chance.detach()) * loss**2
        count += 1
    spread = {"mean": mean, "sd": max(0.0, square - mean**2) ** 0.5}
    return torch.autograd.grad(total, supernet.choices.logits)[0], spread, count


def draws(supernet: Supernet, x: Tensor, y: Tensor, baseline: str | None) -> Tensor:
    """Gradients of repeated estimates, shape (DRAWS, choices, options)."""
    found, logits = [], supernet.choices.logits
    supernet.train()
    for _ in range(DRAWS):
        if baseline is None:
            single = [torch.autograd.grad(loss_of(supernet, x, y), logits)[0] for _ in range(SAMPLES)]
            found.append(torch.stack(single).mean(0))
            continue
        losses, drawn = [], []
        with torch.no_grad():
            for _ in range(SAMPLES):
                losses.append(loss_of(supernet, x, y))
                drawn.append(supernet.choices.drawn)
        logs = torch.stack([supernet.choices.log_probability(one) for one in drawn])
        found.append(torch.autograd.grad(score_function(torch.stack(losses), logs, baseline), logits)[0])
    return torch.stack(found)


def measured(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, float], int]:
    """Bias and deviation of every estimator, relative to the exact gradient's norm, at one network; its losses' spread."""
    supernet, x, y = trained(seed)
    exact, losses, architectures = exact_gradient(supernet, x, y)
    norm, rows = exact.norm(), {}

    def row(gradients: Tensor) -> dict[str, float]:
        mean = gradients.mean(0)
        deviation = (gradients - mean).square().sum((1, 2)).mean().sqrt()
        cosine = torch.nn.functional.cosine_similarity(mean.flatten(), exact.flatten(), 0)
        return {
            "bias": float((mean - exact).norm() / norm), "sd": float(deviation / norm), "cosine": float(cosine),
            "bias_noise": float(deviation / norm) / DRAWS**0.5, "norm": float(mean.norm() / norm),
        }  # fmt: skip

    for name, relaxation in ESTIMATORS.items():
        supernet.relaxation = supernet.choices.relaxation = replace(relaxation)
        supernet.anneal(0.0)
        rows[name] = row(draws(supernet, x, y, None))
    supernet.relaxation = supernet.choices.relaxation = Relaxation("gumbel_hard", 1.0, 1.0)
    for name, baseline in (("score function", "none"), ("score function, leave-one-out", "leave_one_out")):
        rows[name] = row(draws(supernet, x, y, baseline))
    return rows, losses, architectures


def main() -> None:
    """The command."""
    start, runs, spreads = time.perf_counter(), [], []
    for seed in range(3):
        rows, losses, architectures = measured(seed)
        runs.append(rows)
        spreads.append(losses)
        print(seed, json.dumps(rows, indent=1), flush=True)
    content = {
        "type": "dnas.Estimators", "version": 1, "architectures": architectures, "samples": SAMPLES, "draws": DRAWS,
        "images": IMAGES, "runs": runs, "losses": spreads, "seconds": round(time.perf_counter() - start),
        "commit": source_commit(), "versions": {name: version(name) for name in ("torch", "numpy")},
    }  # fmt: skip
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
