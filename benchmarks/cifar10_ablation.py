"""What the parts of the search are worth: `python benchmarks/cifar10_ablation.py /path/to/cifar10.zip` trains what is missing.

The search with one thing changed, the same retraining: the default at 3.5 %, where it trains its supernet, and
`search.train=always` at uniform W2A2's cost, where the default trains nothing. One seed to screen, more by --seeds. "From
float" are the same selections, trained from float weights as baselines are, for 6 epochs; what "nothing trained" selects is
trained from there for 5, and differs from the unchanged run in that, too. Every change is compared, seed by seed on the 5,000
validation images, with a run that is unchanged or, where it changes another one, with that; p-values are Holm-corrected over
the changes at a budget, and a difference between rows of other code or another processor says so. Rows stand among those of the
Pareto benchmark with the role `ablation` and the change as `search`; other searches that the Pareto benchmark trains, and the
default, are its rows. Resumes; writes results/cifar10_ablation.json.
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

from cifar10_pareto import BUDGETS, HERE, UNTRAINED_EPOCHS, VARIANTS, setting_of
from pareto_plan import FLOAT_EPOCHS, finished, restore, write
from pareto_runs import Job, Setting, alone, float_network, processes, search, train
from pareto_verdict import correct, student

from quant.files import write_atomically

RESULT = HERE / "results" / "cifar10_ablation.json"
DEFAULT, ALWAYS = "3.5%", "w2a2"
"""Budgets: where the default trains, and where it has to be told."""
UNCHANGED = "unchanged"
EARLIER = "-revision2"
"""Ends the key of a row of an earlier revision of the arithmetic that has a successor."""
FROM_FLOAT = " from float"
"""Ends the name of a change whose selection is trained from float weights instead, with the epochs that baselines get."""
ROUNDS: dict[str, tuple[str, ...]] = {
    UNCHANGED: (),
    "one round": ("search.rounds=1",),
    "five rounds": ("search.rounds=5",),
    "mutation 0.1": ("search.mutation=0.1",),
    "mutation 0.4": ("search.mutation=0.4",),
    "512 images per option": ("search.score_images=512",),
    "two epochs": ("search.epochs=2",),
    "no distillation in the search": ("search.distill=0",),
    "sensitivities first": ("search.start=sensitivities",),
}
"""What each change of rounds sets."""
SEARCHES: dict[str, tuple[str, ...]] = {
    "gumbel": VARIANTS["gumbel"],
    "gumbel soft": (*VARIANTS["gumbel"], "relax.mode=gumbel_soft"),
    "score function": VARIANTS["score_function"],
    "binas": VARIANTS["binas"],
    "binas without sandwich": (*VARIANTS["binas"], "search.sandwich=false"),
}
"""Other searches, as the Pareto benchmark sets them, and changes of these."""
ALTERED: dict[str, dict[str, tuple[str, ...]]] = {
    DEFAULT: {**ROUNDS, "around the budget itself": VARIANTS["within"], "nothing trained": VARIANTS["untrained"]},
    ALWAYS: {**ROUNDS, "one step per round": ("search.epochs=0.001",), **SEARCHES},
}
"""What each change sets, by budget; one step per round leaves float weights, in effect."""
ALSO_FROM_FLOAT = {DEFAULT: (UNCHANGED,), ALWAYS: (UNCHANGED, "one step per round", "sensitivities first")}
"""Changes whose selections are trained from float weights, too."""
CHANGES = {
    budget: {
        name: ("search.train=always", *settings) if budget == ALWAYS else settings for name, settings in own.items()
    }
    for budget, own in ALTERED.items()
}
"""Settings of the search by budget and change; retraining is the Pareto benchmark's in all of them."""
for _budget, _names in ALSO_FROM_FLOAT.items():
    CHANGES[_budget] |= {name + FROM_FLOAT: CHANGES[_budget][name] for name in _names}
AGAINST = {
    "gumbel soft": "gumbel", "binas without sandwich": "binas", "one step per round from float": "unchanged from float",
    "sensitivities first from float": "unchanged from float",
}  # fmt: skip
"""What a change is compared with, if not with the unchanged search."""
SHARED = {
    DEFAULT: {UNCHANGED: "ours", "around the budget itself": "within", "nothing trained": "untrained"},
    ALWAYS: {"gumbel": "gumbel", "score function": "score_function", "binas": "binas"},
}
"""Methods of the Pareto benchmark, by budget: the same jobs, so that either benchmark finds the rows of the other."""


def variant(budget: str, name: str) -> str:
    """The name as it stands in paths."""
    return SHARED[budget].get(name, name.replace(" ", "_").replace(".", ""))


def job(budget: str, name: str, seed: int) -> Job:
    """The network of a change."""
    searched = variant(budget, name.removesuffix(FROM_FLOAT))
    own = Job("ours", "ablation", budget, BUDGETS[budget], "selected", "supernet", searched, seed, seed)
    if name.endswith(FROM_FLOAT):
        return replace(own, start="float", epochs=FLOAT_EPOCHS)
    if name not in SHARED[budget]:
        return own
    found = replace(own, method=SHARED[budget][name], role="main")
    if name == "binas":
        return replace(found, architecture="reselected", search_budget=budget)
    return replace(found, start="float", epochs=UNTRAINED_EPOCHS) if name == "nothing trained" else found


def run(setting: Setting, budget: str, name: str, seed: int) -> dict[str, Any]:
    """Searches with the change and trains what it selects, unless its row is there; its row."""
    wanted = job(budget, name, seed)
    if not (setting.runs / "rows" / f"{wanted.key}.json").exists():
        searched = wanted.search or ""
        changed = replace(setting, variants={searched: CHANGES[budget][name]})
        search(changed, searched, budget, BUDGETS[budget], seed)
    return train(setting, wanted)


def of_search(setting: Setting, budget: str, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The rows of changes that share a search, one after the other: it is in one folder."""
    return [run(setting, budget, name, seed) for name in names]


def by_search(budget: str, names: Sequence[str]) -> list[list[str]]:
    """Changes that share a search, together."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        found.setdefault(job(budget, name, 0).search, []).append(name)
    return list(found.values())


def with_references(names: Sequence[str]) -> list[str]:
    """The changes, each after what it is compared with."""
    return list(dict.fromkeys(one for name in names for one in (UNCHANGED, AGAINST.get(name, UNCHANGED), name)))


def of_change(rows: Sequence[dict[str, Any]], budget: str, name: str) -> dict[int, dict[str, Any]]:
    """The rows of a change by seed; of the unchanged search those that the changes were trained beside, where they are kept."""
    by_key = {row["key"]: row for row in rows}
    found = {}
    for seed in sorted({row["search_seed"] for row in rows if row["search_seed"] is not None}):
        key = job(budget, name, seed).key
        if row := by_key.get(f"{key}{EARLIER}") or by_key.get(key):
            found[seed] = row
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By budget: validation accuracy and images of the search of every change, and its differences from its reference."""
    budgets = {name: {"bops": BUDGETS[name]["bops"], "changes": changes(rows, name)} for name in CHANGES}
    used = [row for name in CHANGES for change in CHANGES[name] for row in of_change(rows, name, change).values()]
    commits = sorted({row["commit"] for row in used})
    return {"type": "dnas.Ablation", "version": 1, "commits": commits, "budgets": budgets}


def changes(rows: Sequence[dict[str, Any]], budget: str) -> dict[str, Any]:
    """Of one budget; p-values are corrected over its changes."""
    found: dict[str, Any] = {}
    for name in CHANGES[budget]:
        own, against = of_change(rows, budget, name), AGAINST.get(name, UNCHANGED)
        if not own:
            continue
        others = of_change(rows, budget, against) if name != UNCHANGED else {}
        values = {seed: own[seed]["validation_accuracy"] for seed in sorted(own)}
        pairs = [value - others[seed]["validation_accuracy"] for seed, value in values.items() if seed in others]
        found[name] = {
            "mean": statistics.mean(values.values()), "sd": statistics.stdev(values.values()) if len(values) > 1 else None,
            "n": len(values), "seeds": list(values), "images_search": statistics.mean(r["images_search"] for r in own.values()),
            "against": against if others else None, "difference": student(pairs) if pairs else None,
            "mixed": any(_made(own[seed]) != _made(others[seed]) for seed in own if seed in others),
        }  # fmt: skip
    correct([change["difference"] for change in found.values()])
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
    parser.add_argument("--budget", default=DEFAULT, choices=list(CHANGES))
    parser.add_argument("--changes", nargs="+", help="all of the budget's, where none is named")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    given.changes = given.changes or list(CHANGES[given.budget])
    if unknown := [name for name in given.changes if name not in CHANGES[given.budget]]:
        parser.error(f"--changes: {', '.join(unknown)} is none at {given.budget}: {', '.join(CHANGES[given.budget])}")
    setting = setting_of(given.data, given.runs)
    with alone(given.runs / "lock", RESULT.with_suffix(".lock"), setting.result.with_suffix(".lock")):
        run_all(setting, given)


def run_all(setting: Setting, given: argparse.Namespace) -> None:
    """Trains what is missing."""
    float_network(setting, BUDGETS[ALWAYS])  # the folder is the Pareto benchmark's
    restore(setting)
    groups = by_search(given.budget, with_references(given.changes))
    with processes(given.jobs) as pool:
        waiting = [
            pool.submit(of_search, setting, given.budget, names, seed) for seed in given.seeds for names in groups
        ]
        for done in as_completed(waiting):
            for row in done.result():
                found = (row["search"], row["start"], row["search_seed"], row["validation_accuracy"], row["accuracy"])
                print(*found, flush=True)
            write(setting)
            write_atomically(RESULT, json.dumps(summary(finished(setting)), indent=1) + "\n")


if __name__ == "__main__":
    main()
