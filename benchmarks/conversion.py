"""What converting a ResNet-50 costs: `python benchmarks/conversion.py`, on images of 224 x 224, two at a time.

Seconds of building the space, the supernet and all cost tables, and the peak memory of a process that does it, beside that of
a process that takes one training step (SGD with momentum) of the same network. Writes results/conversion.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

import dnas
from dnas.run import source_commit
from dnas.space.cost import COSTS

RESULTS = Path(__file__).parent / "results" / "conversion.json"
ROUNDS = 3


def convert(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Space, supernet and all cost tables."""
    supernet = dnas.Supernet(model, dnas.build_space(model, images))
    for name in COSTS:
        supernet.cost_table(name)


def train(model: torch.nn.Module, images: torch.Tensor) -> None:
    """One training step."""
    optimiser = torch.optim.SGD(model.train().parameters(), 0.01, momentum=0.9)
    F.cross_entropy(model(images).logits, torch.arange(len(images))).backward()
    optimiser.step()


STEPS = {"convert": convert, "train": train, "import": lambda model, images: None}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=STEPS, help="take this one in this process (used by the script itself)")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if given.step:
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, images = ResNetForImageClassification(ResNetConfig(num_labels=1000)), torch.randn(2, 3, 224, 224)
        start, used = time.perf_counter(), time.process_time()
        STEPS[given.step](model, images)
        seconds, processor = time.perf_counter() - start, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "processor_seconds": processor, "peak_mb": peak}))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STEPS}
    for _ in range(ROUNDS):
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    content: dict[str, Any] = {
        "type": "dnas.Conversion",
        "version": 1,
        "steps": {name: {key: min(r[key] for r in rounds) for key in rounds[0]} for name, rounds in found.items()},
        "rounds": ROUNDS,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers")},
        "commit": source_commit(),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["steps"], indent=1))


if __name__ == "__main__":
    main()
