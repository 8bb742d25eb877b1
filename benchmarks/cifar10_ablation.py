"""What the parts of the search are worth: `python benchmarks/cifar10_ablation.py /path/to/cifar10.zip` trains what is missing.

The search that trains (`search.train=always`) with one thing changed, at uniform W2A2's cost, the same retraining; one seed
to screen, more by --seeds; "from float" are the same selections, trained from float weights as the baselines are. Every change
is compared, seed by seed on the 5,000 validation images, with a run that is unchanged or, where it changes another one, with
that; p-values are Holm-corrected over the changes, and a difference between rows of other code or another processor says so.
Rows stand among those of the Pareto benchmark with the role `ablation` and the change as `search`; other searches that the
Pareto benchmark trains are its rows. Resumes; writes results/cifar10_ablation.json.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

from cifar10_pareto import BUDGETS, HERE, VARIANTS, setting_of
from pareto_plan import FLOAT_EPOCHS, finished, restore, write
from pareto_runs import Job, Setting, alone, float_network, processes, search, train
from pareto_verdict import correct, student

from quant.files import write_atomically

RESULT = HERE / "results" / "cifar10_ablation.json"
BUDGET = "w2a2"
UNCHANGED = "unchanged"
ALTERED: dict[str, tuple[str, ...]] = {
    UNCHANGED: (),
    "one round": ("search.rounds=1",),
    "five rounds": ("search.rounds=5",),
    "mutation 0.1": ("search.mutation=0.1",),
    "mutation 0.5": ("search.mutation=0.5",),
    "512 images per option": ("search.score_images=512",),
    "two epochs": ("search.epochs=2",),
    "no distillation in the search": ("search.distill=0",),
    "one step per round": ("search.epochs=0.001",),  # float weights, in effect
    "sensitivities first": ("search.start=sensitivities",),
    "gumbel": VARIANTS["gumbel"],
    "gumbel soft": (*VARIANTS["gumbel"], "relax.mode=gumbel_soft"),
    "score function": VARIANTS["score_function"],
    "binas": VARIANTS["binas"],
    "binas without sandwich": (*VARIANTS["binas"], "search.sandwich=false"),
}
"""What each change sets, beside that the search trains."""
FROM_FLOAT = " from float"
"""Ends the name of a change whose selection is trained from float weights instead, with the epochs that baselines get."""
CHANGES = {name: ("search.train=always", *settings) for name, settings in ALTERED.items()}
CHANGES |= {name + FROM_FLOAT: CHANGES[name] for name in (UNCHANGED, "one step per round", "sensitivities first")}
"""Settings of the search by the name of the change; retraining is the Pareto benchmark's in all of them."""
AGAINST = {
    "gumbel soft": "gumbel", "binas without sandwich": "binas", "one step per round from float": "unchanged from float",
    "sensitivities first from float": "unchanged from float",
}  # fmt: skip
"""What a change is compared with, if not with the unchanged search."""
SHARED = {"gumbel": "gumbel", "score function": "score_function", "binas": "binas"}
"""Methods of the Pareto benchmark: the same jobs, so that either benchmark finds the rows of the other."""


def variant(name: str) -> str:
    """The name as it stands in paths."""
    return SHARED.get(name, name.replace(" ", "_").replace(".", ""))


def job(name: str, seed: int) -> Job:
    """The network of a change."""
    searched = variant(name.removesuffix(FROM_FLOAT))
    own = Job("ours", "ablation", BUDGET, BUDGETS[BUDGET], "selected", "supernet", searched, seed, seed)
    if name.endswith(FROM_FLOAT):
        return replace(own, start="float", epochs=FLOAT_EPOCHS)
    if name not in SHARED:
        return own
    found = replace(own, method=SHARED[name], role="main")
    return replace(found, architecture="reselected", search_budget=BUDGET) if name == "binas" else found


def run(setting: Setting, name: str, seed: int) -> dict[str, Any]:
    """Searches with the change and trains what it selects, unless its row is there; its row."""
    wanted = job(name, seed)
    if not (setting.runs / "rows" / f"{wanted.key}.json").exists():
        searched = wanted.search or ""
        changed = replace(setting, variants={searched: CHANGES[name]})
        search(changed, searched, BUDGET, BUDGETS[BUDGET], seed)
    return train(setting, wanted)


def of_search(setting: Setting, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The rows of changes that share a search, one after the other: it is in one folder."""
    return [run(setting, name, seed) for name in names]


def by_search(names: Sequence[str]) -> list[list[str]]:
    """Changes that share a search, together."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        found.setdefault(job(name, 0).search, []).append(name)
    return list(found.values())


def with_references(names: Sequence[str]) -> list[str]:
    """The changes, each after what it is compared with."""
    return list(dict.fromkeys(one for name in names for one in (UNCHANGED, AGAINST.get(name, UNCHANGED), name)))


def of_change(rows: Sequence[dict[str, Any]], name: str) -> dict[int, dict[str, Any]]:
    """The rows of a change by seed."""
    own = [row for row in rows if row["search_seed"] is not None]
    return {row["search_seed"]: row for row in own if row["key"] == job(name, row["search_seed"]).key}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Validation accuracy and images of the search of every change, and its differences from what it is compared with."""
    found: dict[str, Any] = {"type": "dnas.Ablation", "version": 1, "budget": BUDGET, "commits": [], "changes": {}}
    for name in CHANGES:
        own, against = of_change(rows, name), AGAINST.get(name, UNCHANGED)
        if not own:
            continue
        others = of_change(rows, against) if name != UNCHANGED else {}
        values = {seed: own[seed]["validation_accuracy"] for seed in sorted(own)}
        pairs = [value - others[seed]["validation_accuracy"] for seed, value in values.items() if seed in others]
        found["changes"][name] = {
            "mean": statistics.mean(values.values()), "sd": statistics.stdev(values.values()) if len(values) > 1 else None,
            "n": len(values), "seeds": list(values), "images_search": statistics.mean(r["images_search"] for r in own.values()),
            "against": against if others else None, "difference": student(pairs) if pairs else None,
            "mixed": any(_made(own[seed]) != _made(others[seed]) for seed in own if seed in others),
        }  # fmt: skip
        found["commits"] = sorted({*found["commits"], *(row["commit"] for row in own.values())})
    correct([change["difference"] for change in found["changes"].values()])
    return found


def _made(row: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be the same on both sides of a difference."""
    return row["commit"], row.get("processor")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_pareto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    setting = setting_of(given.data, given.runs)
    with alone(given.runs / "lock", RESULT.with_suffix(".lock"), setting.result.with_suffix(".lock")):
        run_all(setting, given)


def run_all(setting: Setting, given: argparse.Namespace) -> None:
    """Trains what is missing."""
    float_network(setting, BUDGETS[BUDGET])
    restore(setting)
    groups = by_search(with_references(given.changes))
    with processes(given.jobs) as pool:
        waiting = [pool.submit(of_search, setting, names, seed) for seed in given.seeds for names in groups]
        for done in as_completed(waiting):
            for row in done.result():
                found = (row["search"], row["start"], row["search_seed"], row["validation_accuracy"], row["accuracy"])
                print(*found, flush=True)
            write(setting)
            write_atomically(RESULT, json.dumps(summary(finished(setting)), indent=1) + "\n")


if __name__ == "__main__":
    main()
