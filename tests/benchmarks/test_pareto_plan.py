"""The benchmark's plan with trainings that only say how good they are: what is trained, from where, and which rows count."""

import json
import sys
from argparse import Namespace
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import pareto_plan
from cifar10_pareto import again
from pareto_baselines import greedy
from pareto_plan import (
    BOTH_STARTS,
    FLOAT_EPOCHS,
    Plan,
    Searches,
    better_start,
    finished,
    restore,
    side_by_side,
    with_roles,
)
from pareto_runs import ARITHMETIC, Job, Setting, alone, digest
from pareto_verdict import components, nested

import dnas
from dnas.search.scores import Scores
from quant.files import write_atomically
from tests.networks import Residual, example

BUDGETS = {"small": {"bops": 0.05}, "large": {"bops": 0.2}}


class Now(Executor):
    """Runs everything at once, in this process."""

    def submit(self, call: Any, /, *args: Any, **more: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*args, **more))
        return done


class Benchmark:
    """Notes every search and training; accuracies follow from the rule and the start."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.setting = Setting("data", folder / "runs", folder / "rows.json", "model", "experiment")
        (folder / "runs" / "float").mkdir(parents=True)
        (folder / "runs" / "rows").mkdir()
        (folder / "runs" / "float" / "float.safetensors").write_bytes(b"weights")
        self.searches: list[tuple[str, str, int]] = []
        self.trained: list[Job] = []
        self.machine = "one"
        monkeypatch.setattr(pareto_plan, "search", self.search)
        monkeypatch.setattr(pareto_plan, "train", self.train)

    def search(self, setting: Setting, variant: str, budget_id: str, budgets: Any, seed: int) -> None:
        assert budgets == BUDGETS[budget_id]
        self.searches.append((variant, budget_id, seed))

    def train(self, setting: Setting, job: Job) -> dict[str, Any]:
        file = setting.runs / "rows" / f"{job.key}.json"
        if file.exists():
            return dict(json.loads(file.read_text()))
        if job.search:
            assert (job.search, job.search_budget or job.budget_id, job.search_seed) in self.searches
        self.trained.append(job)
        value = 50.0 + len(job.architecture) + 3.0 * (job.start == "supernet") + (job.epochs or 4)
        row = {
            "model": setting.model, "method": job.method, "role": job.role, "budget_id": job.budget_id,
            "architecture": job.architecture, "start": job.start, "retrain_seed": job.retrain_seed, "accuracy": value,
            "search": job.search, "search_seed": job.search_seed, "options": {"layer": job.search_seed},
            "search_budget": job.search_budget, "supernet": f"{self.machine} {job.search_seed}", "validation_accuracy": value,
            "float": digest(setting.runs / "float" / "float.safetensors"), "commit": "", "seconds": 1.0,
        }  # fmt: skip
        write_atomically(file, json.dumps(row))
        return row

    def plan(self, budget_id: str, seeds: tuple[int, ...] = (0, 1, 2), **more: Any) -> Plan:
        return Plan(self.setting, Now(), BUDGETS, budget_id, seeds, **more)


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    return Benchmark(tmp_path, monkeypatch)


def test_plans_side_by_side_share_their_searches_and_leave_no_row_out(benchmark: Benchmark) -> None:
    with ThreadPoolExecutor(2) as pool:
        searches = Searches(benchmark.setting, pool, BUDGETS)
        plans = [
            Plan(benchmark.setting, pool, BUDGETS, name, (0, 1), shared="small", searches=searches)
            for name in ("small", "large")
        ]
        tasks = [partial(plan.reselected, "ours", "main", "ours", "small") for plan in plans]
        tasks += [partial(plan.random, 2) for plan in plans]
        assert list(side_by_side(pool, tasks)) == [None] * 4
    assert sorted(benchmark.searches) == [("ours", "small", 0), ("ours", "small", 1)]
    rows = json.loads(benchmark.setting.result.read_text())
    assert {row["key"] for row in rows} == {job.key for job in benchmark.trained}
    assert len(rows) == 2 * (2 + 4 + 2)


def test_a_failing_search_fails_the_plans_that_wait_for_it(benchmark: Benchmark) -> None:
    with ThreadPoolExecutor(1) as pool:
        searches = Searches(benchmark.setting, pool, BUDGETS)
        searches.submitted["ours", "small", 0] = pool.submit(int, "no number")
        plan = Plan(benchmark.setting, pool, BUDGETS, "small", (0,), searches=searches)
        with pytest.raises(ValueError, match="no number"):
            list(side_by_side(pool, [plan.searched]))
    assert benchmark.trained == []


def test_uniform_networks_are_screened_then_trained_from_the_better_start(benchmark: Benchmark) -> None:
    benchmark.plan("small").uniform(["bb", "a", "cccc", "ddd"])
    assert [job.architecture for job in benchmark.trained if job.role == "screen"] == ["bb", "a", "cccc", "ddd"]
    in_full = [(j.architecture, j.start, j.retrain_seed) for j in benchmark.trained if j.role != "screen"]
    assert in_full == [
        ("cccc", "float", 0), ("ddd", "float", 0), ("cccc", "supernet", 0), ("cccc", "supernet", 1), ("cccc", "supernet", 2),
    ]  # fmt: skip
    assert benchmark.searches == [("ours", "small", seed) for seed in (0, 1, 2)]
    rows = [row for row in finished(benchmark.setting) if row["role"] == "main"]
    assert [(row["architecture"], row["start"]) for row in rows] == [("cccc", "supernet")] * 3


def test_uniform_networks_of_every_seed_may_start_from_both(benchmark: Benchmark) -> None:
    benchmark.plan("small").uniform(["a", "cccc"], both=True)
    in_full = {(j.architecture, j.start, j.retrain_seed) for j in benchmark.trained if j.role != "screen"}
    assert in_full == {
        ("a", "float", 0),
        *(("cccc", start, seed) for start in ("float", "supernet") for seed in (0, 1, 2)),
    }
    rows = [row for row in finished(benchmark.setting) if row["role"] == "main"]
    assert sorted(row["retrain_seed"] for row in rows) == [0, 1, 2]


def test_starts_are_compared_by_networks_that_had_both() -> None:
    """The second finalist, which starts from float weights alone, says nothing of the start."""

    def row(architecture: str, start: str, value: float) -> dict[str, Any]:
        names = {"method": "uniform", "budget_id": "small", "retrain_seed": 0, "role": "candidate"}
        return {**names, "architecture": architecture, "start": start, "validation_accuracy": value}

    rows = [row("best", "float", 78.8), row("second", "float", 76.3), row("best", "supernet", 78.0)]
    assert better_start(rows, "uniform", "small") == "float"
    assert better_start([*rows, row("second", "supernet", 77.9)], "uniform", "small") == "supernet"
    assert better_start(rows[:2], "uniform", "small") is None


def test_starts_are_compared_within_one_revision_of_the_arithmetic(benchmark: Benchmark) -> None:
    """A newer row from float weights says nothing beside an older one from a supernet: both are asked for."""
    plan = benchmark.plan("small")
    plan.uniform(["bb"])
    file = next((benchmark.setting.runs / "rows").glob("*-supernet-*-r0-*.json"))
    older = {**json.loads(file.read_text()), "arithmetic": ARITHMETIC - 1, "validation_accuracy": 100.0}
    file.write_text(json.dumps(older))
    for other in (benchmark.setting.runs / "rows").glob("*-float-*"):
        other.write_text(json.dumps({**json.loads(other.read_text()), "arithmetic": ARITHMETIC}))
    assert better_start(finished(benchmark.setting), "uniform", "small") is None
    with pytest.raises(RuntimeError, match="different arithmetic; remove the older ones"):
        plan.uniform(["bb"], screened=True)


def test_a_search_gives_the_architecture_from_either_start(benchmark: Benchmark) -> None:
    benchmark.plan("small").binas("large")
    found = [(job.start, job.search_seed, job.retrain_seed, job.epochs) for job in benchmark.trained]
    assert found == [
        ("float", 0, 0, FLOAT_EPOCHS), ("supernet", 0, 0, None), ("supernet", 1, 1, None), ("supernet", 2, 2, None),
    ]  # fmt: skip
    assert {(job.search, job.search_budget, job.architecture) for job in benchmark.trained} == {
        ("binas", "large", "reselected")
    }
    assert sorted(benchmark.searches) == [("binas", "large", seed) for seed in (0, 1, 2)]
    rows = {(row["start"], row["retrain_seed"]): row["role"] for row in finished(benchmark.setting)}
    assert rows.pop(("float", 0)) == "candidate"
    assert set(rows.values()) == {"main"}


def test_searches_by_logits_start_from_both_and_rows_without_float_ones_count(benchmark: Benchmark) -> None:
    benchmark.plan("small", (0,)).by_logits("gumbel")
    assert [(job.start, job.architecture, job.search_budget) for job in benchmark.trained] == [
        ("float", "selected", None), ("supernet", "selected", None),
    ]  # fmt: skip
    rows = finished(benchmark.setting)
    assert sorted(row["role"] for row in rows) == ["candidate", "main"]
    earlier = [row for row in rows if row["start"] == "supernet"]  # of before both were tried
    assert [row["role"] for row in with_roles(earlier)] == ["main"]


def test_one_budget_decides_where_the_networks_of_all_start(benchmark: Benchmark) -> None:
    benchmark.setting = replace(benchmark.setting, decided="small")
    benchmark.plan("large", (0, 1)).random(1)  # nothing is decided so far
    assert [job.start for job in benchmark.trained] == ["float", "supernet", "supernet"]
    benchmark.plan("small", (0, 1)).binas("small")
    before = len(benchmark.trained)
    benchmark.plan("large", (0, 1)).binas("small")
    assert [(job.start, job.retrain_seed) for job in benchmark.trained[before:]] == [("supernet", 0), ("supernet", 1)]
    rows = [row for row in finished(benchmark.setting) if (row["method"], row["budget_id"]) == ("binas", "large")]
    assert [row["role"] for row in rows] == ["main", "main"]


def test_what_another_budget_decides_holds_for_rows_that_were_there_before() -> None:
    """Networks of seed 0 that did better from the other start at this budget count no more, uniform ones neither."""

    def row(method: str, budget_id: str, start: str, seed: int, value: float) -> dict[str, Any]:
        names = {"method": method, "budget_id": budget_id, "retrain_seed": seed, "role": "candidate"}
        return {**names, "architecture": "one", "start": start, "validation_accuracy": value}

    for method in ("uniform", *BOTH_STARTS):
        rows = [row(method, "large", "float", 0, 80.0), row(method, "large", "supernet", 0, 79.0)]
        assert [one["role"] for one in with_roles(rows, "small")] == ["main", "candidate"]
        rows += [row(method, "small", "float", 0, 60.0), row(method, "small", "supernet", 0, 61.0)]
        rows += [row(method, "large", "supernet", 1, 79.5)]
        found = {
            (one["budget_id"], one["start"], one["retrain_seed"]): one["role"] for one in with_roles(rows, "small")
        }
        assert [key for key, role in found.items() if role == "main"] == [
            ("large", "supernet", 0), ("small", "supernet", 0), ("large", "supernet", 1),
        ]  # fmt: skip


def test_the_best_uniform_network_is_trained_longer(benchmark: Benchmark) -> None:
    plan = benchmark.plan("small", (0, 1))
    plan.longer("uniform_longer", plan.uniform(["a", "bb", "ccc"]), 13)
    longer = [job for job in benchmark.trained if job.method == "uniform_longer"]
    assert [(job.architecture, job.start, job.retrain_seed, job.epochs) for job in longer] == [
        ("ccc", "float", 0, 13), ("ccc", "float", 1, 13),
    ]  # fmt: skip


def test_nothing_that_is_there_is_searched_or_trained_again(benchmark: Benchmark) -> None:
    benchmark.plan("small", (0,)).searched()
    benchmark.plan("small", (0, 1)).searched()
    assert benchmark.searches == [("ours", "small", 0), ("ours", "small", 1)]
    assert [job.retrain_seed for job in benchmark.trained] == [0, 1]


def test_one_search_serves_other_budgets(benchmark: Benchmark) -> None:
    benchmark.plan("large", supernet="binas", shared="small").random(2)
    assert set(benchmark.searches) == {("binas", "small", seed) for seed in (0, 1, 2)}
    benchmark.plan("large").reselected("binas", "main", "binas", "small")
    assert len(benchmark.searches) == 6
    assert all(job.budgets == BUDGETS["large"] for job in benchmark.trained)


def test_a_search_is_retrained_three_times_in_all_from_the_same_supernet(benchmark: Benchmark) -> None:
    """The row that counts is one of the three, unless another machine searched for it."""
    benchmark.plan("small", (0,)).searched()
    benchmark.machine = "other"
    benchmark.plan("small", (1,)).searched()
    benchmark.plan("small", (0, 1)).variance()
    assert sorted(job.retrain_seed for job in benchmark.trained if job.search_seed == 0) == [0, 100, 200, 300]
    assert sorted(job.retrain_seed for job in benchmark.trained if job.search_seed == 1) == [1, 101, 201]
    values = {0: [50, 61, 62, 63], 1: [70, 71, 72]}
    rows = [row for row in finished(benchmark.setting) if row["method"] == "ours"]
    for row in rows:
        row["accuracy"] = values[row["search_seed"]][row["retrain_seed"] // 100]
    assert nested(rows, "small") == components([values[0][1:], values[1]])


def test_where_our_search_trains_nothing_networks_start_from_float_weights(benchmark: Benchmark) -> None:
    """Baselines may start from the supernet of a search that trains; retrainings are of one architecture."""
    plan = benchmark.plan("small", (0, 1), supernet="trained", untrained=5)
    plan.searched()
    plan.random(1)
    assert [(j.method, j.start, j.search, j.epochs) for j in benchmark.trained] == [
        ("ours", "float", "ours", 5), ("ours", "float", "ours", 5), ("random", "float", None, FLOAT_EPOCHS),
        ("random", "supernet", "trained", None), ("random", "supernet", "trained", None),
    ]  # fmt: skip
    benchmark.machine = "other"
    plan.variance()
    again = [job for job in benchmark.trained if job.role == "variance"]
    assert [(job.start, job.search, job.epochs, job.retrain_seed) for job in again] == [
        ("float", "ours", 5, seed) for seed in (100, 101, 200, 201)
    ]  # fmt: skip
    values = {0: [50.0, 61.0, 62.0], 1: [70.0, 71.0, 72.0]}
    rows = [row for row in finished(benchmark.setting) if row["method"] == "ours"]
    for row in rows:
        row["accuracy"] = values[row["search_seed"]][row["retrain_seed"] // 100]
    assert nested(rows, "small") == components([values[0], values[1]])


def test_rows_of_another_float_network_are_left_alone(benchmark: Benchmark) -> None:
    benchmark.plan("small", (0,)).searched()
    rows = json.loads(benchmark.setting.result.read_text())
    for file in (benchmark.setting.runs / "rows").iterdir():
        file.unlink()
    benchmark.setting.result.write_text(json.dumps([*rows, {**rows[0], "key": "other", "float": "another"}]))
    restore(benchmark.setting)
    assert [file.stem for file in (benchmark.setting.runs / "rows").iterdir()] == [rows[0]["key"]]


def test_rows_that_are_to_be_trained_again_are_left_alone(benchmark: Benchmark) -> None:
    plan = benchmark.plan("small", (0,))
    plan.uniform(["a", "bb"])
    plan.searched()
    plan.variance()
    plan.trained([replace(plan.cold("ours", 6), role="ablation")])
    benchmark.plan("large", (0,)).searched()
    rows = json.loads(benchmark.setting.result.read_text())
    for file in (benchmark.setting.runs / "rows").iterdir():
        file.unlink()
    given = Namespace(fresh=True, methods=["ours", "uniform"], budgets=["small"], seeds=[0])
    restore(benchmark.setting, lambda row: again(row, given))
    kept = {file.stem for file in (benchmark.setting.runs / "rows").iterdir()}
    left = [row for row in rows if row["key"] not in kept]
    assert {(r["method"], r["role"]) for r in left} == {
        ("ours", "main"), ("ours", "variance"), ("ours", "ablation"), ("uniform", "main"), ("uniform", "candidate"),
    }  # fmt: skip
    assert {(r["role"], r["budget_id"]) for r in rows if r["key"] in kept} == {("screen", "small"), ("main", "large")}


def test_what_counted_on_another_processor_stands_beside_what_is_trained_again(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = benchmark.plan("small", (0,))
    plan.uniform(["a", "bb"])
    plan.searched(plan.cold("ours", 5))
    rows = [{**row, "processor": "the former one"} for row in json.loads(benchmark.setting.result.read_text())]
    given = Namespace(fresh=True, methods=["ours", "uniform"], budgets=["small"], seeds=[0])
    monkeypatch.setattr(pareto_plan, "processor", lambda: "the former one")
    for expected in (set(), {"ours", "uniform"}):
        for file in (benchmark.setting.runs / "rows").iterdir():
            file.unlink()
        benchmark.setting.result.write_text(json.dumps(rows))
        restore(benchmark.setting, lambda row: again(row, given))
        kept = [row for row in finished(benchmark.setting) if row["role"] != "screen"]
        assert {(row["method"], row["role"]) for row in kept} == {(method, "elsewhere") for method in expected}
        monkeypatch.setattr(pareto_plan, "processor", lambda: "another one")
    plan.uniform(["a", "bb"])
    plan.searched(plan.cold("ours", 5))
    after = json.loads(benchmark.setting.result.read_text())
    for method in ("ours", "uniform"):
        (before,) = [row for row in rows if (row["method"], row["role"]) == (method, "main")]
        (counts,) = [row for row in after if (row["method"], row["role"]) == (method, "main")]
        (former,) = [row for row in after if (row["method"], row["role"]) == (method, "elsewhere")]
        assert counts["key"] == before["key"]
        assert {**former, "role": "main", "key": before["key"]} == before


def test_a_new_training_of_what_has_no_search_leaves_searches_and_other_seeds_alone(benchmark: Benchmark) -> None:
    plan = benchmark.plan("small", (0, 1))
    plan.searched()
    plan.uniform(["a", "bb"])
    plan.variance()
    benchmark.plan("large", (0,), shared="small").reselected("ours", "frontier", "ours", "small")
    rows = json.loads(benchmark.setting.result.read_text())
    for method, seeds, expected in (
        ("uniform", [1], {("uniform", "main", 1)}),
        ("variance", [1], {("ours", "variance", 1)}),
        ("frontier", [0], {("ours", "frontier", 0)}),
    ):
        given = Namespace(fresh=True, methods=[method], budgets=["small", "large"], seeds=seeds)
        found = {
            (r["method"], r["role"], r["search_seed"] if method == "variance" else r["retrain_seed"])
            for r in rows
            if again(r, given)
        }
        assert found == expected
        for file in (benchmark.setting.runs / "rows").iterdir():
            file.unlink()
        restore(benchmark.setting, lambda row, given=given: again(row, given))
        kept = {file.stem for file in (benchmark.setting.runs / "rows").iterdir()}
        assert kept == {row["key"] for row in rows if not again(row, given)}


def test_two_trainings_of_one_network_are_not_mixed(benchmark: Benchmark) -> None:
    benchmark.plan("small", (0,)).searched()
    rows = json.loads(benchmark.setting.result.read_text())
    benchmark.setting.result.write_text(json.dumps([{**rows[0], "accuracy": 1.0}]))
    with pytest.raises(RuntimeError, match="two trainings of one network"):
        restore(benchmark.setting)
    assert json.loads(benchmark.setting.result.read_text())[0]["accuracy"] == 1.0


def test_rows_of_another_float_network_in_the_run_folder_do_not_count(benchmark: Benchmark) -> None:
    benchmark.plan("small", (0,)).searched()
    (benchmark.setting.runs / "float" / "float.safetensors").write_bytes(b"others")
    assert finished(benchmark.setting) == []


def test_no_two_commands_write_the_same_folder(tmp_path: Path) -> None:
    with alone(tmp_path / "runs" / "lock"):
        with pytest.raises(RuntimeError, match="another benchmark uses"), alone(tmp_path / "runs" / "lock"):
            pass
        with alone(tmp_path / "others" / "lock"):
            pass
    with alone(tmp_path / "runs" / "lock"):
        pass


def test_the_greedy_baseline_takes_the_cheapest_loss_per_cost() -> None:
    """One choice whose options lose nothing is lowered all the way before others lose anything."""
    model = Residual().eval()
    space = dnas.build_space(model, example(Residual()), (2, 4, 8), (8,), (1.0,))
    free = next(choice.name for choice in space.searched())
    scores = Scores(
        {
            c.name: tuple(0.0 if c.name == free else float(i) for i in range(len(c.options))) if c.searched else (0.0,)
            for c in space.choices
        },
        "measured",
    )

    run: Any = SimpleNamespace(space=space, functions={})
    cheap = dnas.Architecture(space, {c.name: c.options[0 if c.name == free else -1] for c in space.choices})
    just = float(cheap.cost("bops", relative=True))
    assert greedy(scores, run, dnas.Budget(bops=just)).options == cheap.options
    found = greedy(scores, run, dnas.Budget(bops=0.6 * just))
    assert found.options[free] == 2
    assert float(found.cost("bops", relative=True)) <= 0.6 * just


def test_of_uniform_rows_those_of_the_latest_arithmetic_are_judged() -> None:
    rows = [
        {
            "method": "uniform", "role": "candidate", "budget_id": "small", "retrain_seed": seed, "start": start,
            "validation_accuracy": accuracy, "architecture": "a", **revision,
        }
        for seed, start, accuracy, revision in (
            (0, "supernet", 80.0, {}), (0, "float", 79.0, {"arithmetic": 2}), (0, "float", 78.0, {"arithmetic": 2}),
            (1, "supernet", 80.0, {}), (1, "float", 79.0, {}),
        )
    ]  # fmt: skip
    assert [row["role"] for row in with_roles(rows)] == ["candidate", "main", "candidate", "main", "candidate"]
