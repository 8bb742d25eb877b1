"""Does the search pay? `python benchmarks/cifar10_pareto.py /path/to/cifar10.zip` adds what is missing to the rows.

CIFAR-10 (JPEG): 45,000 images for weights and choices, 5,000 for every decision, the 10,000 test images once per row. All
methods start from one float network, get the same recipe and the same number of images: ours those of search and retraining,
baselines that start from float weights as many in training alone. At every budget:

- ours: search, exact selection, retraining from the supernet.
- uniform: pairs of widths at the largest share of filters that fits are trained for one epoch, the best two in
  full with seed 0, the better one of these from the supernet of our search, too, then with every seed from the start that
  was better. The best of a seed's is its baseline. All of this is decided on the validation images.
- random: architectures at 96 to 100 % of the budget; seed 0 tries both starts, the other seeds the better one.
- greedy, scores (not by default): selected by post-training sensitivities, greedily or exactly. score_function: Zur's search.
- variance (not by default): our networks, retrained with further seeds. frontier: those that the scores of the search at
  W2A2's cost select at the other budgets, retrained from its supernet: one search in place of four. binas: one supernet and
  estimator per seed, a selection for every budget.

Everything resumes, from the rows in benchmarks/results/cifar10_pareto.json as well, which gets one per finished training. Runs
of the same images, code and processor give the same rows.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

from pareto_runs import Job, Setting, digest, float_network, search, train, uniform_rules

from quant.files import write_atomically

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cifar10_pareto.json"
BUDGETS = {
    "w2a2": {"bops": 0.06913466}, "3.5%": {"bops": 0.035}, "w3a3": {"bops": 0.14891832}, "w4a4": {"bops": 0.25884621},
}  # fmt: skip
"""Shares of the BOPs of the full network at 8 bits; three are the exact costs of uniform networks."""
FRONTIER_BUDGET = "w2a2"
"""Whose search serves all budgets in the rows of role `frontier`."""
BINAS = ("search=binas", "search.epochs=1", "search.distill=0.9", "search.band=[0.03,0.3]")
"""Settings of the search of method `binas`."""
SCORE_FUNCTION = (
    "search=score_function", "search.epochs=1", "search.distill=0.9", "search.warmup=0.1", "search.scores=logits",
)  # fmt: skip
"""Settings of the search of method `score_function`, as in Zur's thesis, with a leave-one-out baseline."""
FLOAT_EPOCHS = 6
"""Of training from float weights: at least the images of a search and a retraining together."""
RANDOM = 3
"""Random architectures of a seed."""
FINALISTS = 2
"""Uniform networks that seed 0 trains in full after an epoch of all of them."""


def finished(setting: Setting) -> list[dict[str, Any]]:
    """All rows, the float network's first."""
    float_row = setting.runs / "float" / "row.json"
    files = [*([float_row] if float_row.exists() else []), *sorted((setting.runs / "rows").glob("*.json"))]
    return with_roles([{**json.loads(file.read_text(encoding="utf-8")), "key": file.stem} for file in files])


def restore(setting: Setting) -> None:
    """Takes the rows of the result file that the run folder lacks for finished, if they start from the same float network."""
    (setting.runs / "rows").mkdir(parents=True, exist_ok=True)
    here = digest(setting.runs / "float" / "float.safetensors")
    for row in json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else []:
        file = setting.runs / "rows" / f"{row['key']}.json"
        if row["method"] != "float" and (row["model"], row.get("float")) == (setting.model, here) and not file.exists():
            write_atomically(file, json.dumps(row, indent=1))


def with_roles(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the uniform rows of a cell the best on validation is `main`; of random ones those of the better start."""
    found = [dict(row) for row in rows]
    for row in found:
        if row["method"] == "uniform" and row["role"] != "screen":
            cell = [r for r in found if _cell(r) == _cell(row) and r["role"] != "screen"]
            best = max(cell, key=lambda r: (r["validation_accuracy"], r["architecture"], r["start"]))
            row["role"] = "main" if row is best else "candidate"
        if row["method"] == "random":
            row["role"] = "main" if row["start"] == better_start(found, "random", row["budget_id"]) else "candidate"
    return found


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["budget_id"], row["retrain_seed"]


def better_start(rows: Sequence[dict[str, Any]], method: str, budget_id: str) -> str:
    """Which start gives networks of a method the higher mean validation accuracy at seed 0."""
    means = {}
    for start in ("float", "supernet"):
        values = [
            r["validation_accuracy"]
            for r in rows
            if (*_cell(r), r.get("start")) == (method, budget_id, 0, start) and r["role"] != "screen"
        ]  # fmt: skip
        means[start] = statistics.mean(values) if values else 0.0
    return max(means, key=lambda start: means[start])


class Plan:
    """What is trained at one budget, in the order in which it is known."""

    def __init__(self, setting: Setting, pool: Executor, budget_id: str, seeds: Sequence[int]) -> None:
        self.setting, self.pool, self.budget_id, self.seeds = setting, pool, budget_id, seeds
        budgets = BUDGETS[budget_id]
        self.ours = Job("ours", "main", budget_id, budgets, "selected", "supernet", "ours", 0, 0)
        self.floating = Job("float", "candidate", budget_id, budgets, "", "float", None, None, 0, FLOAT_EPOCHS)

    def trained(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The rows of jobs, trained side by side; the result file grows with every one."""
        waiting = {self.pool.submit(train, self.setting, job): job for job in jobs}
        for done in as_completed(waiting):
            row = done.result()
            print(
                row["method"], row["budget_id"], row["architecture"], row["start"], f"{row['accuracy']:.2f}", flush=True
            )
            write(self.setting)
        return [future.result() for future in waiting]

    def searched(self, method: str = "ours", overrides: Sequence[str] = ()) -> None:
        """Our networks, or those of the search with other settings."""
        setting = replace(self.setting, overrides=tuple(overrides))
        searches = [
            self.pool.submit(search, setting, method, self.budget_id, BUDGETS[self.budget_id], seed)
            for seed in self.seeds
        ]
        for done in searches:
            done.result()
        job = replace(self.ours, method=method, search=method)
        self.trained([replace(job, search_seed=seed, retrain_seed=seed) for seed in self.seeds])

    def sensitivity(self, method: str, rule: str) -> None:
        """Networks selected by post-training sensitivities, from float weights."""
        job = replace(self.floating, method=method, role="main", architecture=f"sensitivity {rule}")
        self.trained([replace(job, retrain_seed=seed) for seed in self.seeds])

    def uniform(self) -> None:
        """Every uniform network for an epoch, the best in full and from both starts, that one with every seed."""
        rules, base = uniform_rules(self.setting, BUDGETS[self.budget_id]), replace(self.floating, method="uniform")
        for job, count in ((replace(base, epochs=1, role="screen"), FINALISTS), (base, 1)):
            rows = self.trained([replace(job, architecture=rule) for rule in rules])
            found = {rule: row["validation_accuracy"] for rule, row in zip(rules, rows, strict=True)}
            rules = sorted(rules, key=lambda rule: -found[rule])[:count]
        self._both_starts("uniform", lambda seed: [rules[0]])

    def random(self, count: int) -> None:
        """As many random architectures per seed."""
        self._both_starts("random", lambda seed: [f"random {RANDOM * seed + i}" for i in range(count)])

    def variance(self) -> None:
        """Our networks, retrained with further seeds."""
        jobs = [replace(self.ours, search_seed=seed, role="variance") for seed in self.seeds]
        self.trained([replace(job, retrain_seed=100 * turn + job.search_seed) for turn in (1, 2) for job in jobs])

    def frontier(self) -> None:
        """What one search for another budget selects at this one."""
        if self.budget_id != FRONTIER_BUDGET:
            shared = replace(self.ours, role="frontier", architecture="reselected", search_budget=FRONTIER_BUDGET)
            self.trained([replace(shared, search_seed=seed, retrain_seed=seed) for seed in self.seeds])

    def binas(self) -> None:
        """What BINAS' estimator selects at this budget; its supernet serves all budgets."""
        changed = replace(self.setting, overrides=BINAS)
        waiting = [
            self.pool.submit(search, changed, "binas", FRONTIER_BUDGET, BUDGETS[FRONTIER_BUDGET], seed)
            for seed in self.seeds
        ]
        for done in waiting:
            done.result()
        shared = replace(self.ours, method="binas", architecture="reselected", search="binas")
        shared = replace(shared, search_budget=FRONTIER_BUDGET)
        self.trained([replace(shared, search_seed=seed, retrain_seed=seed) for seed in self.seeds])

    def _both_starts(self, method: str, rules: Callable[[int], list[str]]) -> None:
        """Trains the architectures of seed 0 from both starts, those of the other seeds from the better one."""
        starts = {"float": self.floating, "supernet": replace(self.ours, role="candidate")}

        def jobs(seed: int, start: str) -> list[Job]:
            base = replace(starts[start], method=method, retrain_seed=seed)
            base = replace(base, search_seed=seed) if start == "supernet" else base
            return [replace(base, architecture=rule) for rule in rules(seed)]

        self.trained([job for start in starts for job in jobs(0, start)])
        start = better_start(finished(self.setting), method, self.budget_id)
        self.trained([job for seed in self.seeds if seed for job in jobs(seed, start)])


def write(setting: Setting) -> None:
    """The result file, from all finished rows."""
    RESULT.write_text(json.dumps(finished(setting), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_pareto")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=["ours", "uniform", "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--random", type=int, default=RANDOM, help="random architectures of a seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    setting = Setting(str(Path(given.data).resolve()), given.runs.resolve(), "resnet8", "cifar10_resnet8")
    float_network(setting, BUDGETS["w2a2"])
    restore(setting)
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        plans = [Plan(setting, pool, budget, given.seeds) for budget in given.budgets]
        for method in given.methods:
            for plan in plans:
                if method == "random":
                    plan.random(given.random)
                else:
                    {
                        "ours": plan.searched,
                        "score_function": lambda plan=plan: plan.searched("score_function", SCORE_FUNCTION),
                        "greedy": lambda plan=plan: plan.sensitivity("greedy", "greedy"),
                        "scores": lambda plan=plan: plan.sensitivity("scores", "exact"),
                        "uniform": plan.uniform,
                        "variance": plan.variance,
                        "frontier": plan.frontier,
                        "binas": plan.binas,
                    }[method]()


if __name__ == "__main__":
    main()
