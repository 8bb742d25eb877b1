"""The seed thesis' own network: `python benchmarks/cifar10_resnet20.py /path/to/cifar10.zip` adds what is missing to the rows.

ResNet-20 on CIFAR-10 (JPEG) at the exact cost of its uniform W2A2, for which the thesis' code reached 80.1 %: our default, and
uniform W2A2 from the same float network by the same recipe, which sees no fewer images in training than ours in search and
training. Of all uniform networks of this cost that is the one that won in ResNet-8's benchmark; the others are not tried here.
45,000 images train weights, the float network's in bf16; the 10,000 test images are read once per row. Resumes; writes
results/cifar10_resnet20.json and its verdict.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

from pareto_plan import Plan, restore
from pareto_runs import Setting, alone, float_network, processes
from pareto_verdict import judged

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cifar10_resnet20.json"
BUDGETS = {"w2a2": {"bops": 0.0645322845}}
FLOAT_EPOCHS = 50
"""Of the float network; the experiment's 100 take hours on one core."""
EPOCHS, UNIFORM_EPOCHS = 8, 11
"""Of training after a search, and without one: what our search measures costs images of three epochs at most."""
UNIFORM = "uniform 2 2 1"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_resnet20")
    parser.add_argument("--methods", nargs="+", default=["ours", "uniform"], choices=["ours", "uniform"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    with alone(given.runs / "lock", RESULT.with_suffix(".lock")):
        run(given)


def run(given: argparse.Namespace) -> None:
    """Trains what is missing."""
    epochs = (f"pretrain.epochs={FLOAT_EPOCHS}", f"retrain.epochs={EPOCHS}")
    data, runs = str(Path(given.data).resolve()), given.runs.resolve()
    setting = Setting(data, runs, RESULT, "resnet20", "cifar10_resnet20", epochs)
    float_network(setting, BUDGETS["w2a2"], "bf16")
    restore(setting)
    with processes(given.jobs) as pool:
        plan = Plan(setting, pool, BUDGETS, "w2a2", given.seeds, untrained=EPOCHS)
        base = replace(plan.floating, method="uniform", role="main", architecture=UNIFORM, epochs=UNIFORM_EPOCHS)
        jobs = {
            "ours": [replace(plan.ours, search_seed=seed, retrain_seed=seed) for seed in given.seeds],
            "uniform": [replace(base, retrain_seed=seed) for seed in given.seeds],
        }
        plan.trained([job for method in given.methods for job in jobs[method]])
    judged(RESULT)


if __name__ == "__main__":
    main()
