"""What it costs to let every filter decide: `python benchmarks/by_filter.py` writes results/by_filter.json.

Search steps (as in `overhead.py`: batch 64, weights, steps and choices together, cost and penalty included) with one width per
layer and with widths by filter, interleaved in one process; and selections at a quarter of the 8-bit cost of the smallest
and the largest network's geometric mean from random scores: seconds, and how far the certificate's bound is.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from overhead_steps import Batch, search_step

import dnas
from dnas.run import source_commit
from dnas.search.relax import Relaxation
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.space.choice import Space
from dnas.space.cost import build_cost, reference_cost

RESULT = Path(__file__).parent / "results" / "by_filter.json"
WIDTHS = (2, 4, 8)
FINE: dict[str, Any] = {
    "weight_bits": (0, *WIDTHS),
    "act_bits": WIDTHS,
    "filters": (0.25, 1.0),
    "granularity": "filter",
}
LAYER: dict[str, Any] = {"weight_bits": WIDTHS, "act_bits": WIDTHS}
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "one width per layer, 4 filter counts": (LAYER, "independent"),
    "every filter its own width": ({**LAYER, "filters": (1.0,), "granularity": "filter"}, "independent"),
    "every filter its own width, or none": (FINE, "independent"),
    "the same, blocks of 8 filters": ({**FINE, "filter_block": 8}, "independent"),
    "the same, as compositions": (FINE, "composition"),
    "the same, and every channel of an activation": ({**FINE, "act_granularity": "filter"}, "independent"),
}


def steps(network: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of every variant: minimum and median over rounds of two steps, all variants in each round."""
    batch = Batch(network, 64, torch.device("cpu"))
    functions = {}
    for name, (options, filters) in VARIANTS.items():
        space = dnas.build_space(batch.model, batch.x[:8], **options)
        net = Supernet(batch.model, space, Relaxation(filters=filters)).train()
        functions[name] = search_step(batch, net=net)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, step in functions.items():
            for _ in range(2):
                start = time.perf_counter()
                step()
                if turn:
                    times[name].append(1000 * (time.perf_counter() - start))
    first = min(times[next(iter(times))])
    return {
        name: {
            "min_ms": round(min(found), 2),
            "median_ms": round(float(np.median(found)), 2),
            "ratio": round(min(found) / first, 3),
            "n": len(found),
        }
        for name, found in times.items()
    }


def scores_of(space: Space, seed: int) -> Scores:
    """Losses that grow as 4 ** -bits, times a random sensitivity per filter; of removal, random as well."""
    generator = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for choice in space.choices:
        rows = []
        for sensitivity in generator.lognormal(0.0, 1.0, choice.count):
            if choice.kind == "filters":
                row = (0.0, sensitivity) if choice.by_filter else tuple(-sensitivity / c for c in choice.options)
            else:
                row = tuple(-sensitivity * 4.0 ** (2 - bits) for bits in choice.options)
            rows.append(row)
        values[choice.name] = tuple(rows) if choice.by_filter else rows[0]
    return Scores(values, "random")


def selections(network: str, seeds: int) -> dict[str, Any]:
    """Selections from random scores: seconds and the bound's distance, as a share of what the scores' range is."""
    batch = Batch(network, 8, torch.device("cpu"))
    found: dict[str, Any] = {}
    for name in ("every filter its own width", "every filter its own width, or none"):
        space = dnas.build_space(batch.model, batch.x, **VARIANTS[name][0])
        cost, reference = build_cost(space, "bops"), reference_cost(space, "bops")
        low, high = (cost.at(space.extreme(dearest)) / reference for dearest in (False, True))
        runs = []
        for seed in range(seeds):
            scores = scores_of(space, seed)
            architecture = dnas.select(scores, space, dnas.Budget(bops=(low * high) ** 0.5), time_limit=60.0)
            certificate = architecture.certificate
            assert certificate is not None
            span = sum(max(row) - min(row) for choice in space.choices for row in scores.rows(choice))
            runs.append(
                {
                    "seconds": round(certificate.seconds, 2),
                    "gap_share": round(float(certificate.gap / span), 5),
                    "spent": round(certificate.costs["bops"] / certificate.limits["bops"], 5),
                }
            )
        found[name] = {"filters": sum(c.count for c in space.choices if c.kind == "weight_bits"), "runs": runs}
    return found


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    result = {
        "type": "dnas.ByFilter",
        "version": 1,
        "commit": source_commit(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "steps": {network: steps(network, arguments.rounds) for network in ("resnet8", "resnet20")},
        "selections": {network: selections(network, arguments.seeds) for network in ("resnet8", "resnet20")},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
