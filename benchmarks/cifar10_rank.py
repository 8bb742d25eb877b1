"""Do a supernet, its estimator and sensitivities order networks as training does? `python benchmarks/cifar10_rank.py DATA.zip`

Architectures that the Pareto benchmark has trained from float weights: the accuracy after that, that in BINAS' one-shot
supernet without training, the predictions of BINAS' estimator and of the sensitivities of our default search, and the cost.
Kendall's tau over random ones (six epochs), over uniform ones (all pairs of widths at four budgets, one epoch) and those of
one budget, where cost says little; and over those that were trained twice, with two seeds, on as many images: how well one
training agrees with the other. These were selected by measurements, and the best of them differ little. Trains BINAS'
supernet (or takes that of the run folder) and no network. All accuracies are on the 5,000 validation images. Writes
results/cifar10_rank.json.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

import numpy as np
from cifar10_pareto import BUDGETS, setting_of
from pareto_runs import ELSEWHERE, Setting, alone, digest, float_network, processes, search, stamp

from dnas.loaders import regrouped
from dnas.search.effects import fit_effects
from dnas.search.pool import Pool, one_shot_accuracy
from dnas.search.rank import rank_agreement
from dnas.search.scores import Scores
from dnas.space.architecture import Architecture
from quant.files import write_atomically

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cifar10_rank.json"
BUDGET = "w2a2"
"""Whose searches give the predictions."""
PREDICTIONS = ("one_shot", "estimated", "sensitivities", "bops")
BAND = (0.8 * BUDGETS["w3a3"]["bops"], BUDGETS["w3a3"]["bops"])
"""Costs that are looked at by themselves: there are most uniform networks."""
EQUAL = (0.96 * BUDGETS[BUDGET]["bops"], BUDGETS[BUDGET]["bops"])
"""The same of random ones."""


def trained(rows: Sequence[Mapping[str, Any]], network: str) -> list[dict[str, Any]]:
    """Architectures, of each as many images, with the validation accuracies of their trainings from this float network by seed.

    `group`: random, uniform (of one epoch), or selected. One training that serves several rows counts once; what counted
    before it was trained again on another processor does not.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["retrain_seed"] or 0):
        if row.get("start") != "float" or row["float"] != network or row["role"] == ELSEWHERE:
            continue
        group = "random" if row["method"] == "random" else "uniform" if row["role"] == "screen" else "selected"
        key = (group, json.dumps(row["options"], sort_keys=True), row["images_retrain"])
        one = found.setdefault(
            key,
            {
                "group": group, "architecture": row["architecture"], "options": row["options"],
                "images": row["images_retrain"], "trained": {},
            },
        )  # fmt: skip
        one["trained"].setdefault(str(row["retrain_seed"]), row["validation_accuracy"])
    return list(found.values())


def predicted(
    setting: Setting, folders: Mapping[str, Path], networks: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The architectures with their cost, one-shot accuracy and predictions.

    Args:
        setting: where.
        folders: run folders of the searches, `binas` and `ours`.
        networks: as `trained` gives them.
    """
    run = setting.open(folders["binas"])
    supernet = run.supernet(trained=True).eval()
    batches = regrouped(list(run.batches("validation", 500, False).epoch(0)), 1000)
    pool = Pool.from_json((folders["binas"] / "pool.json").read_text(encoding="utf-8"), run.space)
    estimator, names = fit_effects(run.space, pool), [choice.name for choice in run.space.choices]
    sensitivities = Scores.from_json((folders["ours"] / "scores.json").read_text(encoding="utf-8"))
    found = []
    for network in networks:
        architecture = Architecture(run.space, network["options"])
        positions = np.array([architecture.positions()[name] for name in names])
        found.append(
            {
                **network, "bops": float(architecture.cost("bops", relative=True)),
                "one_shot": float(np.mean([one_shot_accuracy(supernet, positions, batch) for batch in batches])),
                "estimated": float(estimator.predict(positions[None])[0]),
                "sensitivities": float(sensitivities.of(run.space, positions[None])[0]),
            }
        )  # fmt: skip
    return found


def scoped(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The architectures of every scope."""
    return {
        "random": [row for row in rows if row["group"] == "random"],
        "uniform": [row for row in rows if row["group"] == "uniform"],
        "equal": [row for row in rows if row["group"] == "random" and EQUAL[0] <= row["bops"] <= EQUAL[1]],
        "band": [row for row in rows if row["group"] == "uniform" and BAND[0] <= row["bops"] <= BAND[1]],
        "twice": [row for row in rows if len(row["trained"]) > 1],
    }


def agreements(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kendall's tau of every prediction with one training of each architecture, and of that with another where there is one.

    None of fewer than three architectures.
    """
    found: dict[str, Any] = {}
    for scope, chosen in scoped(rows).items():
        accuracies = [list(row["trained"].values()) for row in chosen]
        orders: dict[str, list[tuple[float, float]]] = {
            f"{name}, trained": [(row[name], one[0]) for row, one in zip(chosen, accuracies, strict=True)]
            for name in PREDICTIONS
        }
        orders["trained twice"] = [(one[0], one[1]) for one in accuracies if len(one) > 1]
        found[scope] = {
            name: asdict(rank_agreement(*zip(*pairs, strict=True))) if len(pairs) > 2 else None
            for name, pairs in orders.items()
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
    """Searches, with so many processes, judges, and writes the result."""
    float_network(setting, BUDGETS[BUDGET])
    with processes(count) as pool:
        waiting = {name: pool.submit(search, setting, name, BUDGET, BUDGETS[BUDGET], 0) for name in ("binas", "ours")}
        folders = {name: future.result() for name, future in waiting.items()}
    committed = json.loads(setting.result.read_text(encoding="utf-8"))
    networks = trained(committed, digest(setting.runs / "float" / "float.safetensors"))
    rows = predicted(setting, folders, networks)
    found = agreements(rows)
    content = {"type": "dnas.Rank", "version": 2, "agreement": found, "rows": rows, **stamp(0.0)}
    del content["seconds"]
    write_atomically(RESULT, json.dumps(content, indent=1) + "\n")
    for scope, pairs in found.items():
        print(scope, {name: one and (one["n"], round(one["tau"], 2)) for name, one in pairs.items()})


if __name__ == "__main__":
    main()
