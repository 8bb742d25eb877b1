"""The statistics of the Pareto benchmark against closed forms, other libraries and simulation."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from pareto_targets import targets
from pareto_verdict import (
    BRIDGED,
    EARLIER,
    ESTIMATORS,
    RANK,
    TARGETS,
    THESIS,
    between,
    bridges,
    components,
    correct,
    difference,
    holm,
    mixed,
    nested,
    one_search,
    over_budgets,
    panel,
    picture,
    pooled,
    student,
    verdict,
)
from pareto_verdict import ROWS as ROWS_FILE
from table_cells import deviation, interval
from tables import table
from tables_accuracy import details, headline

from tests.benchmarks.comparison import same_figures


def row(method: str, seed: int, accuracy: float, role: str = "main", **others: Any) -> dict[str, Any]:
    return {
        "model": "resnet8", "method": method, "role": role, "budget_id": "w2a2", "budgets": {"bops": 0.07},
        "costs": {"bops": 0.069}, "search_seed": seed, "retrain_seed": seed, "accuracy": accuracy, "architecture": "W2 A2",
        "validation_accuracy": accuracy + 1 + seed * (method == "ours"), "images_search": 1, "images_retrain": 2,
        "start": "supernet", "options": {}, **others,
    }  # fmt: skip


ROWS = [
    {**row("float", 0, 80.0), "budget_id": None},
    *(row("ours", seed, accuracy) for seed, accuracy in enumerate((77.0, 76.5, 77.5))),
    *(row("uniform", seed, accuracy) for seed, accuracy in enumerate((76.0, 76.0, 75.9))),
    *(row("uniform", seed, 79.9, "candidate") for seed in range(3)),
    *(row("random", seed, 60.0 + seed + i) for seed in range(3) for i in range(3)),
]


def test_differences_are_paired_by_seed_and_candidates_do_not_count() -> None:
    found = difference(ROWS, "uniform", "w2a2")
    assert found is not None
    ours, theirs = np.array([77.0, 76.5, 77.5]), np.array([76.0, 76.0, 75.9])
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found["mean"] == pytest.approx((ours - theirs).mean())
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["p"] == pytest.approx(expected.pvalue)


def test_several_networks_of_a_seed_count_by_their_mean() -> None:
    found = difference(ROWS, "random", "w2a2")
    assert found is not None
    assert found["values"] == pytest.approx([77.0 - 61.0, 76.5 - 62.0, 77.5 - 63.0])


def test_one_seed_has_no_interval() -> None:
    assert difference([r for r in ROWS if r["retrain_seed"] == 0], "uniform", "w2a2") is None


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_components_are_those_that_data_were_drawn_from() -> None:
    generator = np.random.default_rng(0)
    search, retraining, inside = [], [], 0
    for _ in range(400):
        groups = 77 + 0.6 * generator.standard_normal((5, 1)) + 0.3 * generator.standard_normal((5, 3))
        found = components(groups.tolist())
        search.append(max(found["search"]["sd"], 0) ** 2)
        retraining.append(found["retraining"]["sd"] ** 2)
        if found["search"]["interval"] is not None:
            low, high = found["search"]["interval"]
            inside += low <= 0.6 <= high
        assert found["p"] == pytest.approx(stats.f_oneway(*groups).pvalue)
    assert np.mean(retraining) == pytest.approx(0.09, rel=0.05)
    assert np.mean(search) == pytest.approx(0.36, rel=0.1)
    assert inside / 400 == pytest.approx(0.95, abs=0.04)


def test_the_verdict_is_json_and_a_picture(tmp_path: Path) -> None:
    found = verdict(
        [*ROWS, row("ours", 0, 76.0, "variance", retrain_seed=5), row("ours", 1, 76.2, "variance", retrain_seed=5)]
    )
    text = json.loads(json.dumps(found))["budgets"]["w2a2"]
    assert text["methods"]["ours"]["n"] == 3
    assert text["methods"]["random"] == {**text["methods"]["random"], "n": 9, "seeds": 3, "mean": 62.0}
    # the third search was retrained once and says nothing of retraining
    assert text["variance"] == components([[77.0, 76.0], [76.5, 76.2]])
    assert nested(ROWS, "w2a2") is None
    picture([panel(found, ["w2a2"], "ResNet-8")], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_retrainings_on_two_processors_are_not_mixed_and_their_difference_is_shown() -> None:
    former = [
        row("ours", seed, accuracy, "elsewhere", processor="former") for seed, accuracy in enumerate((76.8, 76.9, 77.0))
    ]
    more = [row("ours", seed, 76.0 + seed, "variance", retrain_seed=5, processor="former") for seed in range(2)]
    assert nested([*ROWS, *former], "w2a2") is None
    assert nested([*ROWS, *former, *more], "w2a2") == components([[76.8, 76.0], [76.9, 77.0]])
    found = verdict([*ROWS, *former])
    expected = stats.ttest_rel([77.0, 76.5, 77.5], [76.8, 76.9, 77.0])
    pair = found["budgets"]["w2a2"]["elsewhere"]
    assert (pair["mean"], pair["p"]) == (pytest.approx(0.1), pytest.approx(expected.pvalue))
    assert found["budgets"]["w2a2"]["methods"] == verdict(ROWS)["budgets"]["w2a2"]["methods"]
    assert "minus the same on former with AVX-512, paired: **dnas** +0.10, " in details(found)
    former = [{**old, "processor": "AMD EPYC"} for old in former]
    assert "minus the same on AMD EPYC without AVX-512, paired" in details(verdict([*ROWS, *former]))
    assert "minus the same on" not in details(verdict(ROWS))


def test_one_search_is_compared_with_searches_of_their_own_from_one_side() -> None:
    shared = [row("ours", seed, accuracy, "frontier") for seed, accuracy in enumerate((76.8, 76.4, 77.1))]
    found = one_search([*ROWS, *shared], "w2a2")
    assert found is not None
    expected = stats.ttest_rel([76.8, 76.4, 77.1], [77.0 - 0.7, 76.5 - 0.7, 77.5 - 0.7], alternative="greater")
    assert found["mean"] == pytest.approx(-7 / 30)
    assert found["not_worse"] == (expected.pvalue < 0.05)
    assert one_search(ROWS, "w2a2") is None


def test_where_ours_trains_nothing_one_search_is_compared_with_trained_ones_and_so_is_the_gap() -> None:
    gap = [
        {"network": "relaxed", "accuracy": 70.0, "relative": {"bops": 0.09}},
        {"network": "selected", "accuracy": 68.5, "relative": {"bops": 0.07}},
    ]
    own = [{**one, "method": "trained", "gap": gap} for one in ROWS if one["method"] == "ours"]
    less = (0.1, 0.3, 0.2)
    shared = [{**one, "role": "frontier", "accuracy": one["accuracy"] - by} for one, by in zip(own, less, strict=True)]
    wide = [{**gap[0], "accuracy": 90.0}, gap[1]]
    ours = [row("ours", seed, 79.0 + seed**2, start="float", gap=wide) for seed in range(3)]
    others = [one for one in ROWS if one["method"] != "ours"]
    found = verdict([*others, *own, *shared, *ours])["budgets"]["w2a2"]
    assert found["one search"]["mean"] == pytest.approx(-0.2)
    networks = {"relaxed": {"accuracy": 70.0, "bops": 0.09}, "selected": {"accuracy": 68.5, "bops": 0.07}}
    for one in networks.values():
        one["bops"] = pytest.approx(one["bops"])
    assert found["gaps"]["trained"] == {"mean": 1.5, "least": 1.5, "most": 1.5, "n": 3, "networks": networks}
    assert found["gaps"]["ours"]["mean"] == 21.5
    assert found["methods"]["ours"]["mean"] == pytest.approx(79 + 5 / 3)
    assert found["methods"]["trained"]["mean"] == pytest.approx(77.0)


def test_one_search_over_all_budgets_is_the_mean_seed_by_seed() -> None:
    first, second = (
        {"values": values, "seeds": seeds}
        for values, seeds in (([-0.2, -0.1, -0.4], [0, 1, 2]), ([9.0, 0.3, -0.5, 0.0], [5, 0, 1, 2]))
    )
    found = over_budgets([first, None, second])
    assert found is not None
    means = [0.05, -0.3, -0.2]
    expected = stats.ttest_1samp(means, -0.7, alternative="greater")
    assert found["values"] == pytest.approx(means)
    assert found["not_worse"] == (expected.pvalue < 0.05)
    assert over_budgets([first, None]) is None


def test_the_pooled_spread_is_that_of_one_way_groups() -> None:
    found = pooled(ROWS, ["w2a2"], ("ours", "uniform"))
    assert found is not None
    groups = [np.array([77.0, 76.5, 77.5]), np.array([76.0, 76.0, 75.9])]
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    assert (found["freedom"], found["sd"]) == (4, pytest.approx((within / 4) ** 0.5))
    interval = stats.ttest_ind(*groups).confidence_interval(0.95)  # equal variances, as many of each
    assert found["half"] == pytest.approx((interval.high - interval.low) / 2)


def test_between_random_architectures_is_what_retraining_leaves() -> None:
    values = [60.0, 66.0, 70.0, 71.0]
    found = between(values, 2.0)
    assert found is not None
    assert found["sd"] == pytest.approx((np.var(values, ddof=1) - 4.0) ** 0.5)
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        drawn = between((3.0 * generator.standard_normal(5) + 0.5 * generator.standard_normal(5)).tolist(), 0.5)
        assert drawn is not None
        inside += drawn["interval"][0] <= 3.0 <= drawn["interval"][1]
    assert inside / 500 == pytest.approx(0.95, abs=0.03)
    assert between(values, 100.0) == {"sd": 0.0, "interval": [0.0, 0.0], "n": 4}
    assert between([60.0], 1.0) is None


def test_targets_are_met_where_the_numbers_say_so() -> None:
    runs = [{"score function": {"sd": sd}, "score function, leave-one-out": {"sd": 1.0}} for sd in (20.0, 12.0)]
    found = {row["figure"]: row for row in targets(verdict(ROWS), {"runs": runs})["rows"]}
    own = found["dnas - best uniform, 7.00%"]
    assert (own["target"], own["met"]) == ("interval above 0, mean at least +1.5", False)  # +1.03
    better = [{**one, "accuracy": one["accuracy"] + 3 * (one["method"] == "ours")} for one in ROWS]
    assert targets(verdict(better), {"runs": runs})["rows"][0]["met"]
    assert found["leave-one-out cuts the score function's deviation"]["met"]
    runs[0]["score function"]["sd"] = 9.0
    (last,) = [row for row in targets(verdict(ROWS), {"runs": runs})["rows"] if row["figure"].startswith("leave")]
    assert (last["met"], last["found"]) == (False, "9, 12 times")
    assert found["budget spent by dnas"]["met"]
    over = [{**one, "costs": {"bops": 0.0701}} if one["method"] == "ours" else one for one in ROWS]
    assert not {r["figure"]: r for r in targets(verdict(over), {"runs": runs})["rows"]}["budget spent by dnas"]["met"]
    few = verdict([{**one, "model": "resnet20", "accuracy": 89.0} for one in ROWS])
    rows = targets(verdict(ROWS), {"runs": runs}, few)["rows"]
    assert (rows[-1]["figure"], rows[-1]["found"], rows[-1]["met"]) == ("ResNet-20 at 7.00%, %", "89.00 (3)", True)


def test_the_committed_verdicts_are_those_of_the_committed_rows() -> None:
    def read(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    for file in (ROWS_FILE, EARLIER):
        same_figures(verdict(read(file)), read(file.with_name(f"{file.stem}_verdict.json")))
    same_figures(bridges(read(ROWS_FILE)), read(BRIDGED))
    others = [read(file) if file.exists() else None for file in (ESTIMATORS, THESIS, RANK)]
    assert targets(read(ROWS_FILE.with_name("cifar10_pareto_verdict.json")), *others) == read(TARGETS)


def test_the_difference_on_validation_images_stands_beside_that_on_test_images() -> None:
    found = verdict(ROWS)["budgets"]["w2a2"]
    test, validation = found["differences"]["ours - uniform"], found["validation"]
    assert validation["values"] == pytest.approx([test["values"][seed] + seed for seed in range(3)])


def at(rows: list[dict[str, Any]], budget_id: str, bops: float, shift: float) -> list[dict[str, Any]]:
    """The rows at another budget, ours by so much better."""
    own = [row for row in rows if row["budget_id"]]
    return [
        {
            **row, "budget_id": budget_id, "budgets": {"bops": bops}, "costs": {"bops": bops},
            "accuracy": row["accuracy"] + shift * (row["method"] in ("ours", "binas")),
        }
        for row in own
    ]  # fmt: skip


BINAS = [row("binas", seed, accuracy) for seed, accuracy in enumerate((76.4, 76.3, 76.1))]


def test_every_family_of_differences_is_corrected() -> None:
    """By hand: Holm doubles the smaller of two p-values and leaves the larger one, unless it would fall below."""
    every = [*ROWS, *BINAS]
    found = verdict([*every, *at(every, "small", 0.03, 1.0)])["budgets"]
    for pair in (
        lambda b: b["differences"]["ours - uniform"],
        lambda b: b["differences"]["ours - random"],
        lambda b: b["binas - uniform"],
        lambda b: b["binas - random"],
    ):
        small, large = sorted((pair(content) for content in found.values()), key=lambda one: one["p"])
        assert small["p_holm"] == pytest.approx(min(1, 2 * small["p"]))
        assert large["p_holm"] == pytest.approx(max(large["p"], small["p_holm"]))
    (bridged,) = bridges(every)["budgets"]
    for kind in ("minus uniform", "ours minus it"):
        compared = [one[kind] for one in bridged["rows"] if one[kind]]
        assert [pair["p_holm"] for pair in compared] == pytest.approx(holm([pair["p"] for pair in compared]))
        assert len(compared) == 3


def test_where_only_ours_and_its_baselines_were_trained_nothing_is_bridged() -> None:
    assert bridges(ROWS)["budgets"] == []
    every = [*ROWS, *BINAS]
    wide = at(every, "wide", 0.2, 0.0)
    assert [one["budget"] for one in bridges([*wide, *every])["budgets"]] == ["w2a2", "wide"]
    (own,) = bridges([*every, *at(ROWS, "wide", 0.2, 0.0)])["budgets"]
    binas = next(one for one in own["rows"] if one["method"] == "binas")
    ours = [one for one in ROWS if one["method"] == "ours"][: len(BINAS)]
    expected = [r["accuracy"] - b["accuracy"] for r, b in zip(ours, BINAS, strict=True)]
    assert binas["ours minus it"]["values"] == pytest.approx(expected)


def test_the_tables_show_what_the_rows_tell() -> None:
    variance = [row("ours", seed, 76.0 + seed, "variance", retrain_seed=100 + seed) for seed in range(2)]
    shared = [row("ours", seed, accuracy, "frontier") for seed, accuracy in enumerate((76.8, 76.4, 77.1))]
    assert details(verdict(ROWS)) == ""
    found = verdict([*ROWS, *variance, *shared])
    full = details(found)
    assert "between searches" in full
    assert "(2 searches, 2 retrainings of each)" in full
    assert (
        "One search for all budgets minus one per budget, all of them trained, paired: -0.23, -0.61 to +0.15 at" in full
    )
    assert "to +0.15 at 7.00% (not worse by 0.7" in full
    shown = table(found)
    assert "p of dnas - uniform" in shown
    heads, own, *_ = (line for line in shown.splitlines() if line.startswith("| ") and "---" not in line)
    cells = dict(zip(heads.split(" | "), own.split(" | "), strict=True))
    assert cells["dnas - uniform, paired"].startswith("+1.03")
    assert cells["the same on validation images"].startswith("+2.03")


def test_the_headline_says_where_something_is_won_and_where_not() -> None:
    """At one budget the difference is larger than chance; at the other, of rows as they are, it is not."""
    tight = [{**one, "accuracy": 77.0 + 0.1 * one["retrain_seed"]} if one["method"] == "ours" else one for one in ROWS]
    start = "ResNet-8 on CIFAR-10, test accuracy minus that of the best uniform network of equal cost, 3 seeds: "
    wide = at(ROWS, "wide", 0.2, 0.0)
    assert headline(verdict([*tight, *wide])) == (
        f"{start}+1.13 points at 7.0%; no difference is shown at 20.0% of the 8-bit BOPs."
    )
    assert headline(verdict([ROWS[0], *wide])) == f"{start}no difference is shown at 20.0% of the 8-bit BOPs."
    lost = [{**one, "accuracy": one["accuracy"] - 3.0} if one["method"] == "ours" else one for one in tight]
    assert headline(verdict(lost)) == f"{start}-1.87 points at 7.0% of the 8-bit BOPs."
    alone = [one for one in ROWS if one["method"] != "uniform"]
    assert "nothing was compared" in headline(verdict(alone))
    wider = verdict(tight) | {"pooled": {"sd": 1.0, "least": 0.1, "most": 1.5, "half": 1.14}}
    assert "+1.13 points at 7.0% (less than an interval by the pooled spread asks for) of" in headline(wider)


def test_images_of_search_and_training_are_shown() -> None:
    rows = [*ROWS, *({**one, "images_search": 860_000, "images_retrain": 180_000} for one in BINAS)]
    lines = table(bridges(rows)).splitlines()
    (binas,) = (line for line in lines if "one for all budgets" in line)
    assert binas.endswith("| 860,000 | 1,040,000 |")


def test_the_cheapest_network_that_reaches_mlperf_tinys_accuracy_is_named() -> None:
    assert "None of dnas' networks reaches MLPerf Tiny's 85 %, nor does the float one." in table(verdict(ROWS))
    better = [{**one, "accuracy": one["accuracy"] + 9} for one in ROWS]
    dearer = [{**one, "budget_id": "w3a3", "budgets": {"bops": 0.15}} for one in better if one["method"] == "ours"]
    assert "MLPerf Tiny's 85 % is reached at 7.00%." in table(verdict([*dearer, *better]))


def test_differences_that_are_all_the_same_have_no_interval_and_stay_out_of_a_correction() -> None:
    equal, found = student([0.0] * 5), [student([0.1, 0.2, 0.4]), student([1.0, 1.1, 1.3])]
    assert (equal["mean"], equal["low"], equal["p"]) == (0.0, None, None)
    correct([found[0], equal, found[1]])
    assert "p_holm" not in equal
    assert [pair["p_holm"] for pair in found] == holm([pair["p"] for pair in found])


def test_pairs_that_are_one_training_are_counted_and_said() -> None:
    rows = [
        {
            "method": method, "budget_id": "w2a2", "role": "main", "retrain_seed": seed, "accuracy": 70.0 + seed * later,
            "key": f"{method}{seed}", **({"trained_as": f"ours{seed}"} if later and seed < shared else {}),
        }
        for shared in (2,)
        for later, method in enumerate(("ours", "scores"))
        for seed in range(3)
    ]  # fmt: skip
    found = difference(rows, "scores", "w2a2")
    assert found is not None
    assert (found["same"], found["seeds"]) == (2, [0, 1, 2])
    assert interval(found).endswith("(2 of 3 the same training)")
    assert interval({**found, "same": 3}) == "the same trainings"


def test_processors_with_and_without_avx512_are_told_apart() -> None:
    rows = [
        {"method": method, "budget_id": "w2a2", "role": "main", **made}
        for method, made in (
            ("ours", {"processor": "Intel", "instructions": "avx2 avx512f"}), ("scores", {"instructions": "avx2"}),
            ("random", {}), ("greedy", {"processor": "AMD EPYC"}),
        )
    ]  # fmt: skip
    assert [mixed(rows, ("ours", other), "w2a2") for other in ("ours", "random", "scores", "greedy")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_rows_of_another_arithmetic_are_told_apart_and_are_no_retrainings() -> None:
    rows = [row(r["method"], r["retrain_seed"], r["accuracy"], arithmetic=2) for r in ROWS if r["method"] != "random"]
    assert table(verdict(rows)).count("(!)") == 0
    later = [{**r, "arithmetic": 1} if r["method"] == "uniform" else r for r in rows]
    assert (mixed(rows, ("ours", "uniform"), "w2a2"), mixed(later, ("ours", "uniform"), "w2a2")) == (False, True)
    assert table(verdict(later)).count("(!)") == 3  # the difference on test and on validation images, and what it means
    more = [row("ours", seed, 76.0, "variance", retrain_seed=5, arithmetic=1) for seed in range(2)]
    assert nested([*rows, *more], "w2a2") is None


def test_searches_closer_than_retrainings_allow_have_no_interval() -> None:
    groups = [[70.0, 72.0, 74.0], [70.1, 72.0, 73.9], [70.0, 72.0, 74.0]]
    found = components(groups)
    assert found["search"] == {"sd": 0.0, "interval": None}
    assert found["p"] == pytest.approx(stats.f_oneway(*groups).pvalue)
    assert stats.f_oneway(*groups).statistic < stats.f.ppf(0.025, 2, 6)
    assert deviation(found["search"]) == "0.00 (no interval)"
