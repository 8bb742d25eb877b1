"""BINAS on its own space: `python benchmarks/binas_cifar10.py /path/to/cifar10.zip` adds what is missing to the rows.

The elastic MobileNet for CIFAR-10: bits, expansion, kernel, squeeze-and-excitation, depth. One supernet and one estimator per
seed serve four budgets, two of which bound BOPs and measured latency together; each network is selected in seconds. All
networks of a budget get the same recipe: BINAS' from its supernet; uniform ones (every pair of widths with every kernel, depth
and branches, at the largest share of filters that fits: the best three in seed 0's supernet without training are trained,
the best of them with every seed, from the better start) and random ones at 96 to 100 % of the tightest budget. Rows with the
role `earlier` are of an estimator whose pool was recentred once, and do not count. Resumes; writes results/binas_cifar10.json,
its verdict and picture.
"""

import argparse
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

import numpy as np
from pareto_plan import RANDOM, Plan, Searches, finished, restore, side_by_side
from pareto_runs import (
    Setting,
    alone,
    architecture_of,
    caps,
    float_network,
    processes,
    quoted,
    search_folder,
    uniform_rules,
)  # fmt: skip
from pareto_verdict import correct, difference, panel, picture, renamed, summary

from dnas.loaders import regrouped
from dnas.report.plots import Panel
from dnas.search.pool import one_shot_accuracy
from quant.files import write_atomically

RESULTS = Path(__file__).parent / "results"
RESULT, LATENCY = RESULTS / "binas_cifar10.json", RESULTS / "binas_cifar10_latency.json"
VERDICT, PICTURE = RESULTS / "binas_cifar10_verdict.json", RESULTS / "binas_cifar10.png"
BUDGETS = {
    "5%": {"bops": 0.05}, "12%": {"bops": 0.12},
    "5%, latency 20%": {"bops": 0.05, "latency_us": 0.2}, "12%, latency 30%": {"bops": 0.12, "latency_us": 0.3},
}  # fmt: skip
"""Shares of the full network at 8 bits; without a bound on latency selections at 5 % spend 35 %, at 12 % 69 % of it."""
SHARED = "5%, latency 20%"
"""Whose search serves all budgets; its run folders have the table of latencies."""
FLOAT_EPOCHS = 25
"""Of the float network; the experiment's 10 leave it still learning."""
SCREENED, IMAGES = 3, 2000
"""Uniform networks that are trained, and validation images that rank the others in the supernet."""


def prepare(data: str, runs: Path) -> Setting:
    """The float network, and the latency of every layer: that of the results, or measured now."""
    setting = Setting(
        str(Path(data).resolve()), runs.resolve(), RESULT, "elastic_mobilenet", "binas_cifar10",
        ("export.fold_batch_norm=true", f"pretrain.epochs={FLOAT_EPOCHS}"), {"binas": ()}, "never",
    )  # fmt: skip
    if not LATENCY.exists():
        setting.stages(setting.runs / "latency", ("preflight",), *caps(BUDGETS[SHARED]))
        write_atomically(LATENCY, (setting.runs / "latency" / "latency.json").read_bytes())
    measured = replace(
        setting, overrides=(*setting.overrides, f"cost.latency={quoted(LATENCY)}", "cost.any_machine=true")
    )
    float_network(measured, BUDGETS[SHARED])
    return measured


def promising(setting: Setting, budget_id: str) -> list[str]:
    """The uniform networks that do best in the supernet of seed 0, batch norms re-estimated, without training."""
    run = setting.open(search_folder(setting, "binas", SHARED, 0))
    supernet = run.supernet(trained=True).eval()
    batches = regrouped(list(run.batches("validation", 500, False).epoch(0)), 1000)[: IMAGES // 1000]
    names, found = [choice.name for choice in run.space.choices], {}
    for rule in uniform_rules(setting, BUDGETS[budget_id]):
        positions = architecture_of(run, rule, BUDGETS[budget_id], 0, supernet).positions()
        row = np.array([positions[name] for name in names])
        found[rule] = float(np.mean([one_shot_accuracy(supernet, row, batch) for batch in batches]))
    return sorted(found, key=lambda rule: -found[rule])[:SCREENED]


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means, and paired differences with 95 % intervals, by budget; p-values Holm-corrected over budgets."""
    own = renamed(rows, "binas")
    content: dict[str, Any] = {"type": "dnas.BinasVerdict", "version": 1, "model": "elastic_mobilenet", "budgets": {}}
    content["float"] = next(r["accuracy"] for r in rows if r["method"] == "float")
    for budget_id, budgets in BUDGETS.items():
        if any(r["budget_id"] == budget_id for r in rows):
            content["budgets"][budget_id] = {
                **budgets, "methods": {m: summary(rows, m, budget_id) for m in ("binas", "uniform", "random")},
                "spent": {
                    name: [r["costs"][name] / limit for r in rows if (r["method"], r["budget_id"]) == ("binas", budget_id)]
                    for name, limit in budgets.items()
                },
                "uniform": sorted({
                    r["architecture"] for r in rows
                    if (r["method"], r["budget_id"], r["role"]) == ("uniform", budget_id, "main")
                }),
                **{f"binas - {other}": difference(own, other, budget_id) for other in ("uniform", "random")},
                "validation": difference(own, "uniform", budget_id, "validation_accuracy"),
            }  # fmt: skip
    for other in ("uniform", "random"):
        correct([budget[f"binas - {other}"] for budget in content["budgets"].values()])
    return content


def panels(found: dict[str, Any]) -> list[Panel]:
    """One for budgets of BOPs alone, one for those that bound latency as well; those without networks are left out."""
    titles = {"CIFAR-10, elastic MobileNet, BOPs": 1, "BOPs and latency": 2}
    groups = {
        title: [name for name in found["budgets"] if len(BUDGETS[name]) == count] for title, count in titles.items()
    }
    return [panel(found, names, title) for title, names in groups.items() if names]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent.parent / "runs" / "binas_cifar10")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=["binas", "uniform", "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--random", type=int, default=1, help=f"random architectures of a seed, at most {RANDOM}")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    with alone(given.runs / "lock", RESULT.with_suffix(".lock")):
        run(given)


def run(given: argparse.Namespace) -> None:
    """Trains what is missing."""
    setting = prepare(given.data, given.runs)
    restore(setting)
    with processes(given.jobs) as pool:
        searches = Searches(setting, pool, BUDGETS)
        searches.wait(
            ("binas", SHARED, seed) for seed in sorted({0, *given.seeds})
        )  # that of seed 0 ranks uniform networks
        alone = threading.Lock()  # one supernet at a time ranks networks in this process

        def uniform(plan: Plan) -> None:
            with alone:
                rules = promising(setting, plan.budget_id)
            plan.uniform(rules, screened=True)

        methods: dict[str, Callable[[Plan], None]] = {
            "binas": lambda plan: plan.reselected("binas", "main", "binas", SHARED),
            "uniform": uniform,
            "random": lambda plan: plan.random(given.random),
        }
        plans = [Plan(setting, pool, BUDGETS, name, given.seeds, "binas", SHARED, searches) for name in given.budgets]
        for _ in side_by_side(pool, [partial(methods[method], plan) for method in given.methods for plan in plans]):
            found = verdict(finished(setting))
            write_atomically(VERDICT, json.dumps(found, indent=1) + "\n")
            picture(panels(found), PICTURE)


if __name__ == "__main__":
    main()
