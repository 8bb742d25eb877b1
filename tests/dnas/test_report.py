import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from dnas.pictures import (
    Picture,
    percent,
)
from dnas.report.html import headline, render, write_html
from dnas.report.pareto import collect, paired, pareto_table, pooled, write_pareto
from dnas.report.rows import best_row, seconds_text, stand_in
from quant.files import write_atomically

EVIL = "<script>alert('x')</script> & \"more\""
VOID = {"meta", "br", "img", "link", "hr", "input", "path", "use", "rect"}


class Reader(HTMLParser):
    """Text by tag, attributes, identifiers; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", self.texts["body"][0])


def row(method: str, accuracy: float, share: float = 0.049, **more: Any) -> dict[str, Any]:
    return {
        "method": method,
        "architecture": f"{method} text",
        "accuracy": accuracy,
        "validation_accuracy": accuracy - 1,
        "costs": {"bops": share * 8e8, "weight_bits": 98_760.0},
        "relative": {"bops": share, "weight_bits": 0.25},
        "weight_bytes": 12_345,
        "search_cost": 1.4 if method == "ours" else None,
        "seconds": 75.0,
        "within_budget": share <= 0.05,
    } | more


def report(seed: int = 0, ours: float = 96.4, uniform: float = 96.0, **more: Any) -> dict[str, Any]:
    names = ["stem", "stage.0.conv", "head"]
    layers = [
        {"name": n, "kind": "Conv2d", "weight_bits": b, "act_bits": 8, "in": 8, "in_full": 16, "out": 12,
         "out_full": 16, "macs": 1000, "bops": 8000 * b} for n, b in zip(names, (2, 4, 8), strict=True)
    ]  # fmt: skip
    content = {
        "type": "dnas.Report", "version": 1, "name": "my run", "model": "resnet8", "data": "digits", "seed": seed,
        "budgets": {"bops": 0.05}, "limits": {"bops": 4e7}, "reference": {"bops": 8e8, "weight_bits": 395_040.0},
        "convention": "bops: MACs * w * a, every layer counted",
        "rows": [row("float", 97.1, 16.0, weight_bytes=99), row("uniform", uniform), row("ours", ours, 0.0499)],
        "layers": layers,
        "scores": {"method": "measured", "values": {"stem.weight_bits": [-0.3, -0.1, 0.0], "absent": [0.0]}},
        "choices": {"stem.weight_bits": {"kind": "weight_bits", "options": [2, 4, 8], "chosen": 4}},
        "gap": [{"network": "relaxed", "relative": {"bops": 0.051}, "accuracy": 91.25}],
        "certificate": {"value": 1.5, "bound": 1.5, "gap": 0.0, "method": "highs", "seconds": 0.1,
                        "costs": {"bops": 3.99e7}, "limits": {"bops": 4e7}},
        "fixed": [{"name": "head.filters", "reason": "an output of the network"}],
        "verify": {"runtimes": {"qcdq": {"images": 64, "ties": 2}}, "file_bytes": {"qcdq": 34_567}},
        "stages": [{"stage": "search", "seconds": 3725.0, "peak_memory_mb": 512.0}],
        "config": "seed: 0\n", "versions": {"torch": "2.13"}, "machine": "x86_64", "commit": None,
        "files": ["model.qcdq.onnx"],
    }  # fmt: skip
    return content | more


def words_of(content: dict[str, Any]) -> str:
    found = headline(content)
    assert found is not None
    return " ".join(Reader(f"<body>{found}</body>").text().split())


@pytest.mark.parametrize("untrained", [False, True])
def test_a_search_that_trained_no_weights_says_so(untrained: bool) -> None:
    page = render(report(history={"search": [{"accuracy": 50.0}]}, untrained=untrained))
    assert ("No weights were trained here" in Reader(page).text()) is untrained


def test_page_holds_every_part_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    write_html(
        report(history={"search": [{"loss": 1.0, "bops_expected_over_budget": 2.0}]}), tmp_path / "a/report.html"
    )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["report.html"]
    text = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.open or reader.open == []
    assert reader.texts["h2"] == [
        "Results", "Accuracy against cost", "Training", "Layers", "Scores", "Discretisation gap",
        "Certificate of the selection", "Export", "What is not searched, and why", "Stages", "Configuration",
        "Versions and machine",
    ]  # fmt: skip
    body = reader.text()
    for expected in (
        "ours text", "96.40", "4.99 %", "1.40", "12\u202f345 B", "1 min 15 s", "91.25", "5.10 %", "the best-scored one",
        "39\u202f900\u202f000", "head.filters", "an output of the network", "34\u202f567", "1 h 2 min", "512 MB",
        "seed: 0", "2.13", "model.qcdq.onnx", "every layer counted", "stage.0.conv", "12 / 16",
    ):  # fmt: skip
        assert expected in body, expected
    assert not {"script", "link", "iframe", "img"} & set(reader.tags)
    for tag, key, value in reader.attributes:
        if key in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (tag, key, value)
    ids = [value for _, key, value in reader.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "var(--ink, " in text


@pytest.mark.parametrize("missing", [key for key in report() if key not in ("type", "version")])
def test_missing_part_is_left_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("layers_picture", "draw_scores", "pareto_picture"):
        monkeypatch.setattr(f"dnas.report.html.{name}", lambda *_: Picture(Figure((1, 1)), "drawn"))
    content = report()
    del content[missing]
    assert Reader(render(content)).texts["h1"]
    assert Reader(render(content | {missing: None})).texts["h1"]


def test_almost_empty_report() -> None:
    assert "h2" not in Reader(render({"type": "dnas.Report", "version": 1})).texts


def test_everything_is_escaped() -> None:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return EVIL if isinstance(value, str) and key not in ("method", "kind", "type") else value

    content = poison(report())
    content["rows"].append(row(EVIL, 90.0))
    content["scores"]["method"] = EVIL
    content["choices"] = {EVIL: content["choices"]["stem.weight_bits"]}
    content["scores"]["values"] = {EVIL: [0.0, 1.0, 2.0]}
    content["verify"] = {EVIL: {EVIL: {EVIL: 1}}, "backend": EVIL}
    content["versions"] = {EVIL: EVIL}
    text = render(content)
    reader = Reader(text)
    assert "script" not in reader.tags
    assert "<script" not in text
    assert EVIL in reader.texts["h1"][0]
    assert EVIL in reader.text()


def test_headline_says_plainly_who_won() -> None:
    won = words_of(report())
    assert "reaches 96.40 % test accuracy with BOPs of 39.9 M (4.99 %), within the budget (BOPs ≤ 5 %)." in won
    assert "0.70 points below the float network (97.10 %)" in won
    assert "It beats the best uniform network by 0.40 points (96.00 % at 4.90 %)." in won
    assert "One seed" in won
    assert "loses" not in won
    lost = words_of(report(uniform=96.5))
    assert "It loses to the best uniform network by 0.10 points" in lost
    assert 'class="headline lost"' in str(headline(report(uniform=96.5)))
    assert 'class="headline lost"' not in str(headline(report()))
    assert "It equals the best uniform network" in words_of(report(uniform=96.4))
    over = report(rows=[row("ours", 96.4, 0.06)])
    assert "OVER the budget" in words_of(over)
    assert 'class="headline lost"' in str(headline(over))


def test_headline_and_table_with_several_seeds() -> None:
    rows = [row("uniform", 96.0, seeds=3, accuracy_sd=0.4), row("ours", 96.4, seeds=3, accuracy_sd=0.3)]
    text = words_of(report(rows=rows))
    assert "96.40 % ± 0.30 (n = 3)" in text
    assert "less than two standard errors" in text  # 2 sqrt(0.25 / 3) = 0.58 > 0.4
    assert "One seed" not in text
    assert "96.00 ± 0.40 (n = 3)" in Reader(render(report(rows=rows))).texts["td"]
    rows[0]["accuracy"] = 95.0
    assert "standard errors" not in words_of(report(rows=rows))


def test_the_test_set_does_not_pick_a_row() -> None:
    high_test = row("uniform", 99.0, validation_accuracy=90.0)
    high_validation = row("uniform", 95.0, validation_accuracy=96.0)
    over = row("uniform", 99.5, 0.08, validation_accuracy=99.0)
    assert best_row([high_test, over, high_validation]) == high_validation
    assert best_row([over]) == over
    assert best_row([]) is None
    unknown = [row("uniform", 99.0, share, validation_accuracy=None) for share in (0.02, 0.04)]
    assert best_row(unknown) == unknown[1]
    draws = stand_in([row("random", a, s) for a, s in ((94.0, 0.04), (95.0, 0.05))], "random")
    assert draws is not None
    assert (draws["accuracy"], draws["draws"]) == (94.5, 2)
    assert draws["relative"]["bops"] == pytest.approx(0.045)
    assert stand_in([row("random", 94.0)], "ours") is None


def folders_of(root: Path, reports: list[dict[str, Any]]) -> list[Path]:
    found = []
    for index, content in enumerate(reports):
        found.append(root / f"run{index}")
        found[-1].mkdir()
        (found[-1] / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return found


def test_pooled_equals_the_statistics_of_all_seeds() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(95, 1, n) for n in (1, 4, 1, 7)]
    rows = [
        {"accuracy": p.mean(), "seeds": len(p), "accuracy_sd": p.std(ddof=1) if len(p) > 1 else None} for p in parts
    ]
    mean, sd, n = pooled(rows)
    everything = np.concatenate(parts)
    assert n == 13
    assert mean == pytest.approx(everything.mean())
    assert sd == pytest.approx(everything.std(ddof=1))
    assert pooled([{"accuracy": 90.0}]) == (90.0, None, 1)


def test_paired_interval_equals_scipys() -> None:
    ours, other = [96.1, 96.9, 95.7, 96.6], [95.9, 96.0, 95.9, 96.1]
    found = paired(
        {"bops": 0.05}, "uniform", {s: {"accuracy": a} for s, a in enumerate(ours)},
        {s: {"accuracy": a} for s, a in enumerate([*other, 1.0])},
    )  # fmt: skip
    test = stats.ttest_rel(ours, other)
    interval = test.confidence_interval(0.95)
    assert found["n"] == 4
    assert found["mean"] == pytest.approx(np.mean(np.subtract(ours, other)))
    assert (found["low"], found["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    two = paired({}, "uniform", {0: {"accuracy": 1.0}, 1: {"accuracy": 3.0}}, {s: {"accuracy": 0.0} for s in (0, 1)})
    half = math.tan(math.pi / 2 * 0.95)  # Student's t with one degree of freedom is Cauchy's; sd / sqrt(2) is 1
    assert (two["low"], two["high"]) == (pytest.approx(2 - half), pytest.approx(2 + half))
    one = paired({}, "uniform", {0: {"accuracy": 1.0}}, {0: {"accuracy": 0.0}})
    assert (one["mean"], one["sd"], one["low"], one["high"]) == (1.0, None, None, None)


def test_collect_groups_pairs_and_names_what_is_left_out(tmp_path: Path) -> None:
    reports = [report(seed, 96.0 + seed, 95.5 + 0.8 * seed) for seed in range(3)]
    wide = [report(seed, 97.0 + seed, budgets={"bops": 0.1}, limits={"bops": 8e7}) for seed in range(2)]
    folders = folders_of(tmp_path, [*reports, *wide, report(0, 10.0), report(0, model="other")])
    for name, text in (("broken", "{"), ("foreign", '{"type": "other", "version": 1}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    missing = [tmp_path / name for name in ("empty", "broken", "foreign", "list", "nowhere")]
    found = collect([*folders, *missing])
    assert json.loads(json.dumps(found)) == found
    assert [entry["folder"] for entry in found["unfinished"]] == [str(path) for path in missing]
    assert found["unfinished"][0]["reason"] == "no report.json"
    assert {(e["method"], e["seed"]) for e in found["repeated"]} == {("ours", 0), ("uniform", 0)}
    assert [network["model"] for network in found["networks"]] == ["other", "resnet8"]
    network = found["networks"][1]
    assert (network["float"]["n"], network["float"]["accuracy_sd"]) == (3, pytest.approx(0, abs=1e-9))
    assert network["limits"] == {"bops": [0.05, 0.1]}
    groups = {(g["budgets"]["bops"], g["method"]): g for g in network["groups"]}
    assert list(groups) == [(0.05, "ours"), (0.05, "uniform"), (0.1, "ours"), (0.1, "uniform")]
    ours = groups[0.05, "ours"]
    assert (ours["accuracy"], ours["accuracy_sd"], ours["n"], ours["seeds"]) == (97.0, 1.0, 3, [0, 1, 2])
    assert ours["search_cost"] == pytest.approx(1.4)
    assert groups[0.1, "ours"]["n"] == 2
    assert network["paired"][0]["differences"] == pytest.approx([0.5, 0.7, 0.9])
    assert [pair["n"] for pair in network["paired"]] == [3, 2]


def test_runs_of_other_recipes_are_other_networks(tmp_path: Path) -> None:
    """Not another seed of one, nor left out as a repetition."""

    def recipe(seed: int, epochs: int, budget: float = 0.05) -> str:
        return f"seed: {seed}\nbudget: {{bops: {budget}}}\nretrain: {{epochs: {epochs}}}\nengine: {{threads: {seed}}}\n"

    reports = [report(seed, accuracy, config=recipe(seed, epochs))
               for seed, epochs, accuracy in ((0, 2, 60.0), (0, 12, 80.0), (1, 12, 81.0))]  # fmt: skip
    reports.append(report(1, 70.0, budgets={"bops": 0.1}, config=recipe(1, 12, 0.1)))
    found = collect(folders_of(tmp_path, reports))
    assert found["repeated"] == []
    shown = {
        str(network["differs"]): {
            (g["budgets"]["bops"], g["method"]): (g["accuracy"], g["seeds"]) for g in network["groups"]
        }
        for network in found["networks"]
    }
    assert shown["{'retrain.epochs': 2}"][0.05, "ours"] == (60.0, [0])
    assert shown["{'retrain.epochs': 12}"][0.05, "ours"] == (80.5, [0, 1])
    assert shown["{'retrain.epochs': 12}"][0.1, "ours"] == (70.0, [1])
    write_pareto([tmp_path / f"run{i}" for i in range(4)], tmp_path / "out")
    assert ", retrain.epochs=2" in Reader((tmp_path / "out/pareto.html").read_text(encoding="utf-8")).text()


def test_write_pareto_and_table(tmp_path: Path) -> None:
    folders = folders_of(tmp_path, [report(seed, 96.0 + seed, 95.5 + 0.8 * seed) for seed in range(3)])
    (tmp_path / "crashed[1]").mkdir()
    write_pareto([*folders, tmp_path / "crashed[1]"], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pareto.html", "pareto.json", "pareto.png"]
    assert (tmp_path / "out/pareto.png").read_bytes().startswith(b"\x89PNG")
    collected = json.loads((tmp_path / "out/pareto.json").read_text(encoding="utf-8"))
    body = Reader((tmp_path / "out/pareto.html").read_text(encoding="utf-8")).text()
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(pareto_table(collected))
    console.file.close()
    table = console.export_text()
    for text in (body, table):
        assert "97.00 ± 1.00 (n = 3)" in text
        assert "39.9 M (4.99 %)" in text
        assert "crashed[1]" in text
        assert text.count("Float") - text.count("Float: 97.10 %") == 1
        assert "+0.70 points (n = 3, 95 % interval" in text
    assert "12\u202f345 B" in table


def test_write_pareto_without_any_finished_run(tmp_path: Path) -> None:
    write_pareto([tmp_path / "nowhere"], tmp_path / "out")
    assert "nowhere" in Reader((tmp_path / "out/pareto.html").read_text(encoding="utf-8")).text()
    assert pareto_table(collect([])).row_count == 0


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_in_words() -> None:
    assert [percent(v) for v in (1.0, 0.0499, 0.123, 1e-5, 0.0)] == ["100 %", "4.99 %", "12.3 %", "< 0.01 %", "0 %"]
    assert [seconds_text(v) for v in (None, 1.234, 250, 7500)] == ["\u2013", "1.23 s", "4 min 10 s", "2 h 5 min"]
