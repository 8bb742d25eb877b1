"""The ablation: one thing changes at a time, every change has its reference, and nothing is trained twice."""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import cifar10_ablation
import pareto_plan
from cifar10_ablation import (
    AGAINST,
    ALWAYS,
    CHANGES,
    DEFAULT,
    FROM_FLOAT,
    SHARED,
    UNCHANGED,
    by_search,
    job,
    run,
    summary,
    variant,
    with_references,
)
from cifar10_pareto import BUDGETS, FRONTIER_BUDGET, UNTRAINED_EPOCHS
from pareto_plan import FLOAT_EPOCHS, Plan
from pareto_runs import Job, Setting
from pareto_verdict import holm
from tables import table

from dnas.config import parse_config
from tests.benchmarks.test_pareto_plan import Now

RESULTS_FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"

IMAGES = {UNCHANGED: 85_376, "one round": 55_424, "gumbel": 316_000, "gumbel soft": 316_000}


def configuration(tmp_path: Path, budget: str, name: str) -> dict[str, Any]:
    """What a change's search and selection are run with, key by key."""
    setting = Setting("data.zip", tmp_path, tmp_path / "rows.json", "resnet8", "cifar10_resnet8")
    found = setting.config(tmp_path, "budget.bops=0.07", *CHANGES[budget][name])
    parse_config(found)
    flat: dict[str, Any] = {}

    def fill(prefix: str, value: Any) -> None:
        if not hasattr(value, "items"):
            flat[prefix] = value
            return
        for key, inner in value.items():
            fill(f"{prefix}.{key}", inner)

    fill("", found)
    return flat


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (budget, name)
        for budget, names in CHANGES.items()
        for name in names
        if name not in (UNCHANGED, UNCHANGED + FROM_FLOAT, "gumbel", "score function", "binas")
    ],
)
def test_one_thing_is_changed(budget: str, name: str, tmp_path: Path) -> None:
    own, other = (configuration(tmp_path, budget, one) for one in (name, AGAINST.get(name, UNCHANGED)))
    assert len([key for key in own.keys() | other.keys() if own.get(key) != other.get(key)]) == 1


def test_other_searches_are_the_jobs_of_the_pareto_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Job] = []

    def train(setting: Setting, job: Job) -> dict[str, Any]:
        planned.append(job)
        return {"method": "", "budget_id": "", "architecture": "", "start": "", "accuracy": 0.0}

    monkeypatch.setattr(pareto_plan, "search", lambda *arguments: None)
    monkeypatch.setattr(pareto_plan, "train", train)
    monkeypatch.setattr(pareto_plan, "write", lambda setting: None)
    setting = Setting("data.zip", tmp_path, tmp_path / "rows.json", "resnet8", "cifar10_resnet8")
    plan = Plan(setting, Now(), BUDGETS, ALWAYS, (0, 1))
    monkeypatch.setattr(pareto_plan, "finished", lambda setting: [])
    monkeypatch.setattr(pareto_plan, "better_start", lambda *arguments: "supernet")
    plan.by_logits("gumbel")
    plan.by_logits("score_function")
    plan.binas(FRONTIER_BUDGET)
    wanted = {job(ALWAYS, name, seed).key for name in ("gumbel", "score function", "binas") for seed in (0, 1)}
    assert wanted == {one.key for one in planned if one.start == "supernet"}
    assert [one.method for one in planned if one.start == "float"] == ["gumbel", "score_function", "binas"]
    planned.clear()
    plan = Plan(setting, Now(), BUDGETS, DEFAULT, (0, 1))
    plan.searched()
    plan.other("within")
    plan.searched(plan.cold("untrained", UNTRAINED_EPOCHS))
    assert planned == [job(DEFAULT, name, seed) for name in SHARED[DEFAULT] for seed in (0, 1)]


@pytest.mark.parametrize("budget", CHANGES)
def test_every_other_change_has_rows_and_searches_of_its_own(budget: str) -> None:
    jobs = [job(budget, name, seed) for name in CHANGES[budget] for seed in (0, 1)]
    assert len({one.key for one in jobs}) == len(jobs)
    floating = [name for name in CHANGES[budget] if name.endswith(FROM_FLOAT)]
    assert floating
    assert len({(one.search, one.search_seed) for one in jobs}) == len(jobs) - 2 * len(floating)
    for name in floating:
        own, other = job(budget, name, 1), job(budget, name.removesuffix(FROM_FLOAT), 1)
        assert CHANGES[budget][name] == CHANGES[budget][name.removesuffix(FROM_FLOAT)]
        assert own == replace(other, role="ablation", start="float", epochs=FLOAT_EPOCHS)


@pytest.mark.parametrize("budget", CHANGES)
def test_changes_that_share_a_search_are_trained_one_after_the_other(budget: str) -> None:
    groups = by_search(budget, list(CHANGES[budget]))
    assert sorted(name for names in groups for name in names) == sorted(CHANGES[budget])
    assert [UNCHANGED, UNCHANGED + FROM_FLOAT] in groups
    assert len({job(budget, names[0], 0).search for names in groups}) == len(groups)


def test_a_change_comes_with_what_it_is_compared_with() -> None:
    assert with_references(["gumbel soft", "one round"]) == [UNCHANGED, "gumbel", "gumbel soft", "one round"]
    for names in CHANGES.values():
        assert sorted(with_references(list(names))) == sorted(names)


def test_a_row_that_is_there_is_not_searched_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[str, tuple[str, ...]]] = []

    def search(setting: Setting, name: str, *others: Any) -> None:
        searched.append((name, setting.variants[name]))

    def train(setting: Setting, wanted: Job) -> dict[str, Any]:
        (setting.runs / "rows" / f"{wanted.key}.json").write_text("{}")
        return {}

    monkeypatch.setattr(cifar10_ablation, "search", search)
    monkeypatch.setattr(cifar10_ablation, "train", train)
    (tmp_path / "rows").mkdir()
    setting = Setting("data.zip", tmp_path, tmp_path / "rows.json", "resnet8", "cifar10_resnet8")
    for _ in range(2):
        run(setting, ALWAYS, "mutation 0.1", 0)
    assert searched == [("mutation_01", ("search.train=always", "search.mutation=0.1"))]


def row(name: str, seed: int, accuracy: float, commit: str = "a") -> dict[str, Any]:
    own = job(ALWAYS, name, seed)
    return {
        "key": own.key, "search": variant(ALWAYS, name), "search_seed": seed, "retrain_seed": seed,
        "validation_accuracy": accuracy, "accuracy": 0.0, "images_search": IMAGES[name], "commit": commit,
    }  # fmt: skip


ROWS = [
    {"key": "float", "search_seed": None},
    *(row(UNCHANGED, seed, accuracy) for seed, accuracy in enumerate((79.2, 80.1, 79.0))),
    *(row("one round", seed, accuracy) for seed, accuracy in enumerate((78.8, 79.9, 78.1))),
    row("gumbel", 1, 78.5),
    *(row("gumbel soft", seed, accuracy) for seed, accuracy in enumerate((78.0, 78.2))),
]


def test_differences_are_paired_by_seed_with_what_a_change_is_compared_with() -> None:
    found = summary(ROWS)["budgets"][ALWAYS]["changes"]
    assert list(found) == [UNCHANGED, "one round", "gumbel", "gumbel soft"]
    assert found[UNCHANGED]["difference"] is None
    expected = stats.ttest_rel([78.8, 79.9, 78.1], [79.2, 80.1, 79.0]).confidence_interval(0.95)
    pair = found["one round"]["difference"]
    assert pair["mean"] == pytest.approx(statistics.mean([-0.4, -0.2, -0.9]))
    assert (pair["low"], pair["high"]) == pytest.approx((expected.low, expected.high))
    assert (found["gumbel"]["against"], found["gumbel"]["difference"]["values"]) == (UNCHANGED, [pytest.approx(-1.6)])
    soft = found["gumbel soft"]
    assert (soft["against"], soft["n"]) == ("gumbel", 2)
    assert (soft["difference"]["values"], soft["difference"]["low"]) == ([pytest.approx(-0.3)], None)
    assert soft["images_search"] == 316_000


def test_the_summary_does_not_depend_on_the_order_of_rows_and_is_a_table() -> None:
    found = summary(ROWS)
    assert json.dumps(summary(ROWS[::-1])) == json.dumps(found)
    text = table(found)
    assert "| 6.91% | unchanged | 79.43 ± 0.59 (3) |  |  |  | 85,376 |" in text
    assert "| 6.91% | gumbel soft | 78.10 ± 0.14 (2) | gumbel | -0.30 |  | 316,000 |" in text
    assert "(!)" not in text
    unpaired = table(summary([*ROWS, row("one round", 3, 79.0, "b")]))
    assert "(!)" not in unpaired  # the other side has no fourth seed
    mixed = table(summary([*ROWS, row("one round", 3, 79.0, "b"), row(UNCHANGED, 3, 79.0, "a")]))
    assert [line.count("(!)") for line in mixed.splitlines() if line.startswith("| 6.91% | one round")] == [1]
    assert "(!): rows of other code or another processor." in mixed


def test_differences_are_corrected_for_their_number() -> None:
    rows = [*ROWS, row("gumbel", 0, 78.9), row("gumbel", 2, 77.3)]
    changes = summary(rows)["budgets"][ALWAYS]["changes"].values()
    pairs = [found["difference"] for found in changes if found["difference"] and found["difference"]["p"] is not None]
    assert len(pairs) == 3
    assert [pair["p_holm"] for pair in pairs] == holm([pair["p"] for pair in pairs])
    assert min(pair["p_holm"] for pair in pairs) == pytest.approx(3 * min(pair["p"] for pair in pairs))


def test_the_committed_table_is_of_the_committed_rows() -> None:
    """Differences are between rows of one revision of the arithmetic, whatever was trained anew since."""
    rows = json.loads((RESULTS_FOLDER / "cifar10_pareto.json").read_text(encoding="utf-8"))
    assert json.loads((RESULTS_FOLDER / "cifar10_ablation.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(summary(rows))
    )
