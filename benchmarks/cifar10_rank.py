"""Do a supernet and its estimator order networks as training does? `python benchmarks/cifar10_rank.py /path/to/cifar10.zip`

Random architectures of ResNet-8's space, over all costs and, others, within the band of cost that uniform W2A2 ends, are
trained for an epoch from the float weights of the Pareto benchmark, twice; beside their accuracies stand those in BINAS'
one-shot supernet without training, the estimator's predictions, and their costs. An order is compared with that of every
single training, and the taus are averaged, so that it stands beside the agreement of one training with the other: a
prediction as noisy as a training reaches that much, a better one more. All accuracies are on the 5,000 validation images.
Resumes; writes results/cifar10_rank.json.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

import numpy as np
from cifar10_pareto import BUDGETS, setting_of
from pareto_runs import Job, Setting, alone, digest, float_network, processes, sampled, search, stamp, train
from scipy import stats

from dnas.loaders import regrouped
from dnas.search.effects import fit_effects
from dnas.search.pool import Pool, one_shot_accuracy
from dnas.search.rank import BOOTSTRAPS

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cifar10_rank.json"
BUDGET = "w2a2"
BANDS = {"all": (0.03, 0.3, range(30)), "band": (0.0622, 0.06913466, range(1000, 1016))}
"""Shares of the BOPs at 8 bits, and numbers of the architectures that are drawn between them: each its own draw."""
SEEDS = (0, 1)
"""Of training."""


def jobs() -> list[Job]:
    """Every architecture with every seed."""
    return [
        Job(
            "rank", "rank", name, BUDGETS[BUDGET], f"sampled {number} {low} {high}", "float", None, None, seed, epochs=1
        )
        for seed in SEEDS
        for name, (low, high, numbers) in BANDS.items()
        for number in numbers
    ]


def judged(setting: Setting, folder: Path) -> list[dict[str, Any]]:
    """One-shot accuracy and prediction of every architecture, in the order of the first seed's jobs."""
    run = setting.open(folder)
    supernet = run.supernet(trained=True).eval()
    batches = regrouped(list(run.batches("validation", 500, False).epoch(0)), 1000)
    pool = Pool.from_json((folder / "pool.json").read_text(encoding="utf-8"), run.space)
    estimator, names = fit_effects(run.space, pool), [choice.name for choice in run.space.choices]
    found = []
    for job in jobs():
        if job.retrain_seed == SEEDS[0]:
            _, number, low, high = job.architecture.split()
            architecture = sampled(run.space, int(number), float(low), float(high))
            positions = np.array([architecture.positions()[name] for name in names])
            found.append(
                {
                    "band": job.budget_id, "architecture": job.architecture, "bops": architecture.cost("bops", relative=True),
                    "one_shot": float(np.mean([one_shot_accuracy(supernet, positions, batch) for batch in batches])),
                    "estimated": float(estimator.predict(positions[None])[0]),
                }
            )  # fmt: skip
    return found


def agreement(predicted: Sequence[float], orders: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Kendall's tau of one order with each of several, averaged; what is all equal agrees with none (0).

    Args:
        predicted: a number for every architecture.
        orders: such numbers of every single training.

    Returns:
        n, tau and its 95 % interval, by a bootstrap over architectures: all orders of a draw are of the same ones.
    """
    first, others = np.asarray(predicted, dtype=float), np.asarray(orders, dtype=float)

    def tau(rows: Any) -> float:
        return float(np.mean([np.nan_to_num(stats.kendalltau(first[rows], one[rows]).statistic) for one in others]))

    generator, count = np.random.default_rng(0), len(first)
    draws = [tau(generator.integers(0, count, count)) for _ in range(BOOTSTRAPS)]
    return {"n": count, "tau": tau(slice(None)), "tau_interval": [float(v) for v in np.percentile(draws, (2.5, 97.5))]}


def agreements(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kendall's tau of every pair of orders with its interval, over all costs and within the band."""
    found: dict[str, Any] = {}
    for scope in BANDS:
        chosen = [row for row in rows if row["band"] == scope]
        orders = {name: [row[name] for row in chosen] for name in ("one_shot", "estimated", "bops")}
        trained = [[row["trained"][turn] for row in chosen] for turn in range(len(SEEDS))]
        found[scope] = {
            "one-shot, trained": agreement(orders["one_shot"], trained),
            "estimated, trained": agreement(orders["estimated"], trained),
            "cost, trained": agreement(orders["bops"], trained),
            "estimated, one-shot": agreement(orders["estimated"], [orders["one_shot"]]),
            "trained twice": agreement(trained[0], trained[1:]),
        }
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_pareto")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    with alone(given.runs / "lock", RESULT.with_suffix(".lock")):
        run(setting_of(given.data, given.runs), given.jobs)


def run(setting: Setting, count: int) -> None:
    """Trains what is missing, with so many processes, and writes the result."""
    float_network(setting, BUDGETS[BUDGET])
    here = digest(setting.runs / "float" / "float.safetensors")
    with processes(count) as pool:
        searched = pool.submit(search, setting, "binas", BUDGET, BUDGETS[BUDGET], 0)
        waiting = [pool.submit(train, setting, job, "rank_rows") for job in jobs()]
        rows = judged(setting, searched.result())
        found_rows = [future.result() for future in waiting]
    if any(row["float"] != here for row in found_rows):
        raise RuntimeError(
            f"{setting.runs / 'rank_rows'} holds rows of another float network; remove them, or give another --runs"
        )
    trained = [row["validation_accuracy"] for row in found_rows]
    for i, row in enumerate(rows):
        row["trained"] = [trained[i + turn * len(rows)] for turn in range(len(SEEDS))]
    found = agreements(rows)
    content = {"type": "dnas.Rank", "version": 1, "agreement": found, "rows": rows, **stamp(0.0)}
    del content["seconds"]
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for scope, pairs in found.items():
        print(
            scope, {name: (round(p["tau"], 2), [round(v, 2) for v in p["tau_interval"]]) for name, p in pairs.items()}
        )


if __name__ == "__main__":
    main()
