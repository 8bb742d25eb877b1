"""What the parts of the search are worth: `python benchmarks/cifar10_ablation.py /path/to/cifar10.zip` trains what is missing.

The search of the Pareto benchmark with one thing changed, at the cost of uniform W2A2, retrained by the same recipe; one seed
to screen, more by --seeds. Rows stand among those of the Pareto benchmark with the role `ablation` and the change as `search`;
they are compared on the 5,000 validation images with the unchanged search of the same seed.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

from cifar10_pareto import BUDGETS, HERE, setting_of
from pareto_plan import restore, write
from pareto_runs import Job, Setting, float_network, search, train

BUDGET = "w2a2"
CHANGES: dict[str, tuple[str, ...]] = {
    "one round": ("search.rounds=1",),
    "five rounds": ("search.rounds=5",),
    "mutation 0.1": ("search.mutation=0.1",),
    "mutation 0.5": ("search.mutation=0.5",),
    "512 images per option": ("search.score_images=512",),
    "two epochs": ("search.epochs=2",),
    "no distillation in the search": ("search.distill=0",),
    "float weights untrained": ("search.epochs=0.001", "search.rounds=1"),
    "gumbel": ("search=gumbel", "search.epochs=1", "search.distill=0.9", "search.warmup=0.1"),
    "gumbel soft": (
        "search=gumbel", "relax=gumbel_soft", "search.epochs=1", "search.distill=0.9", "search.warmup=0.1",
    ),
    "score function": (
        "search=score_function", "search.epochs=1", "search.distill=0.9", "search.warmup=0.1", "search.scores=logits",
    ),
    "binas without sandwich": (
        "search=binas", "search.epochs=1", "search.distill=0.9", "search.band=[0.03,0.3]", "search.pool=800",
        "search.sandwich=false",
    ),
}  # fmt: skip
"""Settings of the search by the name of the variant; retraining is the experiment's in all of them."""


def variant(name: str) -> str:
    """The name as it stands in paths."""
    return name.replace(" ", "_").replace(".", "")


def run(setting: Setting, name: str, seed: int) -> dict[str, object]:
    """Searches with the change, trains what it selects, and returns the row."""
    changed = replace(setting, variants={variant(name): CHANGES[name]})
    search(changed, variant(name), BUDGET, BUDGETS[BUDGET], seed)
    job = Job("ours", "ablation", BUDGET, BUDGETS[BUDGET], "selected", "supernet", variant(name), seed, seed)
    return train(setting, job)


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
    float_network(setting, BUDGETS[BUDGET])
    restore(setting)
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        waiting = [pool.submit(run, setting, name, seed) for seed in given.seeds for name in given.changes]
        for finished in as_completed(waiting):
            row = finished.result()
            print(row["search"], row["search_seed"], row["validation_accuracy"], row["accuracy"], flush=True)
            write(setting)


if __name__ == "__main__":
    main()
