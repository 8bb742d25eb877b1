"""BINAS on its own space: `python benchmarks/binas_cifar10.py /path/to/cifar10.zip` adds what is missing to the rows.

The elastic MobileNet for CIFAR-10: bits, expansion, kernel, squeeze-and-excitation, depth. One supernet and one estimator per
seed serve four budgets, two of which bound BOPs and measured latency together; each network is selected in seconds. All
networks of a budget get the same recipe: BINAS'; uniform ones (every pair of widths with every kernel, depth and branches, at
the largest share of filters that fits: the best three in seed 0's supernet without training are trained, the best of them with
every seed); and random ones at 96 to 100 % of the tightest budget. Every method starts from the trained supernet (4 epochs) or
from float weights (6 epochs), whichever gave seed 0's networks at 5 % of the BOPs the better validation accuracy.

Not by default: uniform_longer, the best uniform network from float weights with a budget's share of the images of BINAS'
search added to its training; recentred_once, BINAS with a pool half as large that is recentred once in place of five times,
from its supernet. Resumes; writes results/binas_cifar10.json, its verdict and picture.
"""

import argparse
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

import numpy as np
from binas_verdict import BUDGETS, LATENCY, METHODS, RESULT, judge
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

from dnas.loaders import regrouped
from dnas.search.pool import one_shot_accuracy
from quant.files import write_atomically

VARIANTS = {"binas": (), "recentred_once": ("search.pool=1000", "search.rounds=1", "search.mutation=0.25")}
"""Settings of searches, by method; the second is how the default was."""
SHARED = "5%, latency 20%"
"""Whose search serves all budgets; its run folders have the table of latencies."""
FLOAT_EPOCHS = 25
"""Of the float network; the experiment's 10 leave it still learning."""
LONGER_EPOCHS = 16
"""Of uniform networks that are trained longer: 6, and a fourth of the images of BINAS' search, 39 epochs' worth."""
DECIDED = "5%"
"""Budget whose rows decide which start a method takes."""
SUPERNET_EPOCHS = 4
"""Of retraining from a supernet; from float weights it is that of the Pareto benchmark, and of the experiment."""
SCREENED, IMAGES = 3, 2000
"""Uniform networks that are trained, and validation images that rank the others in the supernet."""


def prepare(data: str, runs: Path) -> Setting:
    """The float network, and the latency of every layer: that of the results, or measured now."""
    setting = Setting(
        str(Path(data).resolve()), runs.resolve(), RESULT, "elastic_mobilenet", "binas_cifar10",
        (
            "export.fold_batch_norm=true", f"pretrain.epochs={FLOAT_EPOCHS}", "retrain.start=supernet",
            f"retrain.epochs={SUPERNET_EPOCHS}",
        ), VARIANTS, "never", DECIDED,
    )  # fmt: skip
    if not LATENCY.exists():
        setting.stages(setting.runs / "latency", ("preflight",), *caps(BUDGETS[SHARED]))
        write_atomically(LATENCY, (setting.runs / "latency" / "latency.json").read_bytes())
    measured = replace(
        setting, overrides=(*setting.overrides, f"cost.latency={quoted(LATENCY)}", "cost.any_machine=true")
    )
    float_network(measured, BUDGETS[SHARED])
    return measured


def screened(plan: Plan, rules: Sequence[str]) -> list[str]:
    """Those of the rules whose networks seed 0's supernet found promising, where all of these are trained; else none."""
    job = replace(plan.floating, method="uniform")
    trained = {row["key"] for row in finished(plan.setting)}
    found = [rule for rule in rules if replace(job, architecture=rule).key in trained]
    return found if len(found) == SCREENED else []


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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent.parent / "runs" / "binas_cifar10")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=["binas", "uniform", "random"], choices=METHODS)
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
        plans = [Plan(setting, pool, BUDGETS, name, given.seeds, "binas", SHARED, searches) for name in given.budgets]
        known = {plan.budget_id: screened(plan, uniform_rules(setting, BUDGETS[plan.budget_id])) for plan in plans}
        ranking = {"uniform", "uniform_longer"} & set(given.methods) and not all(known.values())
        searches.wait([("binas", SHARED, 0)] if ranking else [])
        alone = threading.Lock()  # one supernet at a time ranks networks in this process

        def uniform(plan: Plan) -> str:
            with alone:
                rules = known[plan.budget_id] or promising(setting, plan.budget_id)
            return plan.uniform(rules, screened=True)

        methods: dict[str, Callable[[Plan], Any]] = {
            "binas": lambda plan: plan.binas(SHARED),
            "recentred_once": lambda plan: plan.reselected("recentred_once", "main", "recentred_once", SHARED),
            "uniform": uniform,
            "uniform_longer": lambda plan: plan.longer("uniform_longer", uniform(plan), LONGER_EPOCHS),
            "random": lambda plan: plan.random(given.random),
        }
        first = [plan for plan in plans if plan.budget_id == DECIDED]
        wanted = [m for m in given.methods if m != "uniform" or "uniform_longer" not in given.methods]  # which has both
        for some in (first, [plan for plan in plans if plan not in first]):
            for _ in side_by_side(pool, [partial(methods[method], plan) for method in wanted for plan in some]):
                judge(finished(setting))


if __name__ == "__main__":
    main()
