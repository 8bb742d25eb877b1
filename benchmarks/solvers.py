"""How fast selections are and how far they are proven: `python benchmarks/solvers.py` writes benchmarks/results/solvers.json.

Synthetic chains (benchmarks/solver_instances.py) with one to three resources, and the spaces of real networks with random
scores; label setting, and HiGHS where it ends within the time limit.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from solver_instances import chain
from torch import nn

import dnas
from dnas.models import elastic_mobilenet, mobilenetv2, resnet8, resnet20, resnet56
from dnas.run import source_commit
from dnas.search.scores import Scores
from dnas.select.labels import solve_by_labels, state_count
from dnas.select.pareto import frontier
from dnas.space.choice import Space

RESULT = Path(__file__).parent / "results" / "solvers.json"
CHAINS = ((20, 5, 5), (50, 5, 8), (100, 6, 10))
HIGHS_SECONDS = 60.0
BUDGETS: tuple[dict[str, float], ...] = (
    {"bops": 0.05},
    {"bops": 0.15},
    {"bops": 0.05, "weight_bits": 0.2},
    {"bops": 0.1, "weight_bits": 0.3, "activation_traffic_bits": 0.5},
)
ELASTIC: dict[str, Any] = {
    "weight_bits": (2, 3, 4, 8), "act_bits": (2, 3, 4, 8), "filters": {"*.expand.0": (0.5, 0.667, 1.0)},
    "kernels": (3, 5), "min_depth": 2, "branches": ("*.se",),
}  # fmt: skip


def networks() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Networks for images of 32x32, with the options of their spaces; () are the default widths and shares of filters."""
    elastic = elastic_mobilenet(
        3, 10, stem=(16, 16), stages=(16, 24, 40), strides=(1, 2, 1), last=(160, 160), hard_swish_from=1
    )
    return {
        "ResNet-8": (resnet8(3, 10), {}), "ResNet-20": (resnet20(3, 10), {}),
        "ResNet-20 with depth": (resnet20(3, 10), {"min_depth": 1}), "ResNet-56": (resnet56(3, 10), {}),
        "MobileNetV2": (mobilenetv2(3, 10, stem="cifar"), {}), "ElasticMobileNet": (elastic, ELASTIC),
    }  # fmt: skip


def random_scores(space: Space, seed: int) -> Scores:
    """Losses that fall with the width, with log-normal sensitivities and 15 % noise."""
    generator = np.random.default_rng(seed)
    values = {}
    for choice in space.choices:
        options, sensitivity = np.array(choice.options, dtype=float), np.exp(generator.normal(0, 0.7))
        loss = 4 * 4.0**-options if "bits" in choice.kind else 0.3 * (options[-1] / np.maximum(options, 0.5) - 1)
        values[choice.name] = tuple((-sensitivity * loss * generator.normal(1, 0.15, len(options))).tolist())
    return Scores(values, "random")


def chains() -> list[dict[str, Any]]:
    """Synthetic chains."""
    rows = []
    for layers, widths, pairs in CHAINS:
        for share in (0.1, 0.3):
            for resources in (1, 2, 3) if layers == 20 else (1,):
                for seed in range(3):
                    problem = chain(layers, widths, pairs, seed, share, resources)
                    found = solve_by_labels(problem, 60.0)
                    rows.append(
                        {
                            "instance": f"{layers} layers x {widths * pairs} options", "share": share, "seed": seed,
                            "resources": resources, "states": state_count(problem), "method": "labels",
                            "seconds": found.seconds, "value": found.value, "gap": found.gap,
                        }
                    )  # fmt: skip
                    print(rows[-1], flush=True)
    return rows


def spaces() -> list[dict[str, Any]]:
    """Spaces of real networks."""
    rows = []
    for name, (model, options) in networks().items():
        torch.manual_seed(0)
        space = dnas.build_space(model.eval(), torch.randn(2, 3, 32, 32), **options)
        scores = random_scores(space, 0)
        for caps in BUDGETS:
            budget = dnas.Budget(**caps)
            methods = ["labels"] + (["highs"] if len(caps) == 1 and name in ("ResNet-8", "ResNet-20") else [])
            for method in methods:
                certificate = dnas.select(scores, space, budget, HIGHS_SECONDS, method).certificate
                assert certificate is not None
                rows.append(
                    {
                        "instance": name, "choices": len(list(space.searched())), "budgets": caps, "method": method,
                        "seconds": certificate.seconds, "value": certificate.value, "gap": certificate.gap,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
        start = time.perf_counter()
        points = frontier(scores, space, dnas.Budget(bops=0.1), 40)
        rows.append(
            {
                "instance": name, "method": "frontier", "points": len(points), "seconds": time.perf_counter() - start,
                "gap": max(p.certificate.gap for p in points if p.certificate),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """The command."""
    versions = {name: version(name) for name in ("numpy", "scipy", "torch")}
    content = {
        "type": "dnas.Solvers",
        "commit": source_commit(),
        "versions": versions,
        "chains": chains(),
        "spaces": spaces(),
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
