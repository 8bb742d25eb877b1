"""Does drawing one option per step cost accuracy? `python benchmarks/cifar10_gradient.py /path/to/cifar10.zip`.

CIFAR-10, ResNet-8: Gumbel searches with the default relaxation (one option drawn per step, straight-through gradients) beside
searches with the exact gradient of the relaxed network (`relax=softmax`: every option in every step, nothing drawn), the same
images and epochs, two budgets, three seeds, one float network per seed. Then the same retraining, and the test set once per
run. Runs are kept in a folder and resume; benchmarks/results/cifar10_gradient.json gets a row per finished run.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

from scipy import stats

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cifar10_gradient.json"
BUDGETS = {"w2a2": 0.0691, "w3a3": 0.149}
MODES = {"default": "gumbel_hard", "exact": "softmax"}
IMAGES = 12_000


def dnas(folder: Path, *arguments: str) -> None:
    """The command, in a run folder; what it says goes into a file beside the folder."""
    command = [sys.executable, "-m", "dnas", "experiment=cifar10_resnet8", f"folder={folder}", "engine.progress=false"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        subprocess.run([*command, *arguments], check=True, cwd=HERE.parent, stdout=log, stderr=log)


def run(data: str, runs: Path, mode: str, budget: str, seed: int) -> dict[str, Any]:
    """One search and retraining; the float network of a seed is trained in that seed's first run."""
    first, folder = runs / f"default-w2a2-{seed}", runs / f"{mode}-{budget}-{seed}"
    arguments = [
        f"data.path={data}", f"data.limit_train={IMAGES}", f"seed={seed}", f"budget.bops={BUDGETS[budget]}",
        "search=gumbel", f"relax={MODES[mode]}", "retrain.baselines=[]", "pretrain.epochs=10", "search.epochs=6",
        "search.score_rounds=1", "search.distill=0.5", "retrain.epochs=4", "retrain.distill=0.5", "retrain.optimiser.lr=0.02",
        "space.filters=[0.25,0.5,0.75,1.0]", "data.choices_share=0.5",
        "export.images=200", "export.qonnx_images=2",
    ]  # fmt: skip
    if folder != first:
        arguments.append(f"model.checkpoint={first / 'float.safetensors'}")
    dnas(folder, *arguments)
    report, search = (json.loads((folder / f"{name}.json").read_text()) for name in ("report", "search"))
    ours = next(row for row in report["rows"] if row["method"] == "ours")
    trained = json.loads((folder / "model.json").read_text())
    float_row = next(row for row in report["rows"] if row["method"] == "float")
    epochs = [numbers["seconds"] for numbers in search["history"]]
    return {
        "gradient": mode, "relax": MODES[mode], "budget_id": budget, "budgets": {"bops": BUDGETS[budget]},
        "costs": {"bops": ours["relative"]["bops"]}, "seed": seed, "accuracy": ours["accuracy"],
        "float_accuracy": float_row["accuracy"], "images_search": search["images"], "images_retrain": trained["images"],
        "seconds_search": round(search["seconds"], 1), "seconds_search_epochs": round(sum(epochs), 1),
        "seconds_retrain": round(trained["seconds"], 1), "commit": report.get("commit"), "versions": report.get("versions"),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, spread and the paired difference, default minus exact, with its 95 % interval."""
    found: dict[str, Any] = {}
    for budget in BUDGETS:
        accuracy = {
            mode: {r["seed"]: r["accuracy"] for r in rows if (r["gradient"], r["budget_id"]) == (mode, budget)}
            for mode in MODES
        }
        seeds = sorted(set(accuracy["default"]) & set(accuracy["exact"]))
        if len(seeds) < 2:
            continue
        differences = [accuracy["default"][s] - accuracy["exact"][s] for s in seeds]
        mean, error = statistics.mean(differences), stats.sem(differences)
        half = float(stats.t.ppf(0.975, len(seeds) - 1) * error)
        found[budget] = {
            mode: {"mean": statistics.mean(v.values()), "sd": statistics.stdev(v.values()), "n": len(v)}
            for mode, v in accuracy.items()
        } | {"default_minus_exact": {"mean": mean, "low": mean - half, "high": mean + half, "n": len(seeds)}}
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_gradient")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; set OMP_NUM_THREADS to match")
    given = parser.parse_args()
    data, runs = str(Path(given.data).resolve()), given.runs.resolve()
    every = list(product(range(given.seeds), BUDGETS, MODES))
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        order = sorted(every, key=lambda key: key[1:] != ("w2a2", "default"))  # these first: they train float networks
        trained: dict[int, Future[dict[str, Any]]] = {}

        def after(seed: int, budget: str, mode: str) -> dict[str, Any]:
            if (budget, mode) != ("w2a2", "default"):
                trained[seed].result()
            return run(data, runs, mode, budget, seed)

        waiting: dict[Future[dict[str, Any]], tuple[int, str, str]] = {}
        for seed, budget, mode in order:
            future = pool.submit(after, seed, budget, mode)
            trained.setdefault(seed, future)
            waiting[future] = (seed, budget, mode)
        for done in as_completed(waiting):
            rows[waiting[done]] = done.result()
            _write([rows[key] for key in every if key in rows])


def _write(rows: list[dict[str, Any]]) -> None:
    content = {"type": "dnas.Gradient", "version": 1, "model": "resnet8", "images": IMAGES, "summary": summary(rows)}
    RESULT.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print({key: rows[-1][key] for key in ("gradient", "budget_id", "seed", "accuracy")}, flush=True)


if __name__ == "__main__":
    main()
