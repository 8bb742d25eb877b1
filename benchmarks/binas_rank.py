"""Does BINAS' estimator order networks of its own space as training does? `python benchmarks/binas_rank.py RUN_FOLDER...`

The networks of results/binas_cifar10.json: accuracy after training, on the 5,000 validation images; and what every run of
`dnas experiment=binas_cifar10` given here says of them without training: the prediction of its estimator, the accuracy in its
supernet, and the cost. What a run itself has selected is left out of its ranks: it was selected for its prediction. By where
training started, as that decides the number of epochs; those of the smallest budget also by themselves, where cost says little.
The ceiling is what another training of the same networks would reach: their accuracies, twice with normal noise as large as the
spread between trainings of one network with several seeds. Trains nothing; writes results/binas_rank.json.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from binas_verdict import BUDGETS, RESULT
from pareto_runs import stamp
from rich.console import Console
from scipy import stats

from dnas.engine import Engine, EngineConfig
from dnas.loaders import regrouped
from dnas.search.effects import fit_effects
from dnas.search.pool import Pool, one_shot_accuracy
from dnas.search.rank import rank_agreement
from dnas.searcher import POOL_FILE
from dnas.space.architecture import Architecture
from dnas.stages.context import Run, open_folder
from quant.files import write_atomically

RANK = RESULT.with_name("binas_rank.json")
PREDICTIONS = ("estimated", "one_shot", "bops")
SMALLEST = BUDGETS["5%"]["bops"]
NOISY = 1000
"""Pairs of trainings that the ceiling is drawn from."""


def networks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every network that was trained, by start, with the validation accuracies of its trainings by seed.

    `selected`: by the searches of these seeds. From float weights those that were trained as long as most are taken.
    """
    lengths = [row["images_retrain"] for row in rows if row.get("start") == "float"]
    usual = max(set(lengths), key=lengths.count)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["retrain_seed"]):
        if row["method"] == "float" or (row["start"] == "float" and row["images_retrain"] != usual):
            continue
        start = row["start"] if row["start"] == "float" else f"supernet {row['supernet']}"  # weights of its own
        one = found.setdefault(
            (start, json.dumps(row["options"], sort_keys=True)),
            {"start": row["start"], "method": row["method"], "options": row["options"], "trained": {}, "selected": []},
        )
        one["trained"].setdefault(str(row["retrain_seed"]), row["validation_accuracy"])
        if row["method"] not in ("uniform", "random") and row["search_seed"] not in one["selected"]:
            one["selected"].append(row["search_seed"])
    return list(found.values())


def shortened(trained: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Without the options, which the rows have."""
    return [{name: value for name, value in one.items() if name != "options"} for one in trained]


def spread(trained: Sequence[Mapping[str, Any]]) -> float:
    """Standard deviation between trainings of one network, of those that have several seeds."""
    several = [list(one["trained"].values()) for one in trained if len(one["trained"]) > 1]
    squares = sum(float(np.var(values)) * len(values) for values in several)
    return float(np.sqrt(squares / sum(len(values) - 1 for values in several)))


def predicted(run: Run, trained: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """What a run says of every network."""
    supernet = run.supernet(trained=True).eval()
    batches = regrouped(list(run.batches("validation", 500, False).epoch(0)), 1000)
    estimator = fit_effects(run.space, Pool.from_json(run.folder.read(POOL_FILE, "search"), run.space))
    found = []
    for network in trained:
        architecture = Architecture(run.space, network["options"])
        positions = np.array([architecture.positions()[choice.name] for choice in run.space.choices])
        found.append({
            "estimated": float(estimator.predict(positions[None])[0]),
            "one_shot": float(np.mean([one_shot_accuracy(supernet, positions, batch) for batch in batches])),
            "bops": float(architecture.cost("bops", relative=True)),
        })  # fmt: skip
    return found


def scoped(
    trained: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, float]], seed: int
) -> dict[str, list[tuple[float, Mapping[str, float]]]]:
    """Accuracy after training and predictions of the networks of every scope, but for what this seed's run selected."""
    found: dict[str, list[tuple[float, Mapping[str, float]]]] = defaultdict(list)
    for network, one in zip(trained, said, strict=True):
        if seed in network["selected"]:
            continue
        pair = (next(iter(network["trained"].values())), one)
        found[network["start"]].append(pair)
        if one["bops"] <= SMALLEST:
            found[f"{network['start']}, smallest"].append(pair)
    return dict(found)


def ceiling(accuracies: Sequence[float], deviation: float) -> float:
    """Mean Kendall's tau between two trainings, each as noisy as given."""
    generator = np.random.default_rng(0)
    one, other = np.asarray(accuracies) + deviation * generator.standard_normal((2, NOISY, len(accuracies)))
    return float(np.mean([stats.kendalltau(a, b).statistic for a, b in zip(one, other, strict=True)]))


def agreements(
    trained: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, float]], seed: int, deviation: float
) -> dict[str, Any]:
    """Kendall's tau of every prediction of a run with training, by scope, and the ceiling."""
    found: dict[str, Any] = {}
    for scope, pairs in scoped(trained, said, seed).items():
        accuracies = [accuracy for accuracy, _ in pairs]
        if len(pairs) > 2:
            found[scope] = {
                name: asdict(rank_agreement([one[name] for _, one in pairs], accuracies)) for name in PREDICTIONS
            }
            found[scope]["ceiling"] = ceiling(accuracies, deviation)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    quiet = Console(quiet=True)
    runs = [open_folder(folder, Engine(EngineConfig(), quiet), quiet) for folder in parser.parse_args().runs]
    trained = networks(json.loads(RESULT.read_text(encoding="utf-8")))
    deviation, found = spread(trained), []
    for run in runs:
        said, seed = predicted(run, trained), run.config.seed
        found.append({"seed": seed, "agreement": agreements(trained, said, seed, deviation), "networks": said})
    content = {
        "type": "dnas.BinasRank", "version": 1, "smallest": SMALLEST, "spread": deviation, "networks": shortened(trained),
        "runs": found, **stamp(0.0),
    }  # fmt: skip
    del content["seconds"]
    write_atomically(RANK, json.dumps(content, indent=1) + "\n")
    for one in found:
        for scope, pairs in one["agreement"].items():
            print(one["seed"], scope, pairs["bops"]["n"], {name: round(pairs[name]["tau"], 2) for name in PREDICTIONS})


if __name__ == "__main__":
    main()
