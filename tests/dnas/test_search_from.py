"""One search, several budgets: `search_from` takes a finished search of the same configuration, or says why not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dnas as library
from dnas.search.budget import Budget
from dnas.search.scores import Scores
from dnas.select.select import select
from dnas.stages.context import open_folder
from tests.small import SMALL, dnas


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose search is finished."""
    folder = tmp_path_factory.mktemp("search_from") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        for stage in ("preflight", "search"):
            assert dnas(patch, f"stage={stage}", "folder=first", *SMALL) == 0
    return folder


def test_a_network_for_another_budget_from_the_same_search(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    wanted = ("budget.bops=0.3", "budget.weight_bits=0.5", "retrain.epochs=2")
    assert dnas(monkeypatch, "folder=second", f"search_from={source}", *SMALL, *wanted) == 0
    assert {path.name: path.stat().st_mtime_ns for path in source.iterdir()} == before
    second = tmp_path / "second"
    for name in ("search.ckpt", "scores.json", "float.safetensors", "float.json"):
        assert (second / name).read_bytes() == (source / name).read_bytes()
    run = open_folder(second)
    budget = Budget(bops=0.3, weight_bits=0.5)
    expected = select(Scores.from_json((source / "scores.json").read_text()), run.space, budget)
    assert run.architecture().options == expected.options
    assert budget.holds(run.architecture())
    report = json.loads((second / "report.json").read_text())
    assert report["rows"][-1]["search_cost"] is None
    assert (report["taken_from"]["folder"], report["taken_from"]["budgets"]) == (str(source), {"bops": 0.2})
    assert not [key for numbers in report["history"]["search"] for key in numbers if key.endswith("_over_budget")]
    assert f"Its search was that of {source} (BOPs ≤ 20 %" in (second / "report.html").read_text().replace(
        "\u202f", " "
    )
    assert (second / "tensorboard" / "search").is_dir()
    assert library.load(second)(torch.zeros(2, *run.shape[0])).shape == (2, run.shape[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed=1",), ["seed is 0 there, 1 here", "budget, cost, measure, retrain"]),
        (("search.batch_size=16",), ["search.batch_size is", "budget, cost, measure, retrain"]),
    ],
)
def test_a_search_of_another_configuration_is_refused_before_anything_is_made(
    source: Path, change: tuple[str, ...], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert dnas(monkeypatch, "folder=second", f"search_from={source}", *SMALL, *change) != 0
    text = " ".join(capsys.readouterr().err.split())
    assert all(word in text for word in [*words, str(source)])
    assert not (tmp_path / "second").exists()


def test_what_holds_no_finished_search_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dnas(monkeypatch, "folder=second", "search_from=nowhere", *SMALL) != 0
    assert "is no run folder of dnas" in " ".join(capsys.readouterr().err.split())
    assert dnas(monkeypatch, "stage=preflight", "folder=first", *SMALL) == 0
    assert dnas(monkeypatch, "folder=second", "search_from=first", *SMALL) != 0
    assert "its search is not finished" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "second").exists()


def test_a_space_of_another_version_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dnas(monkeypatch, "stage=preflight", "folder=second", f"search_from={source}", *SMALL) == 0
    space = tmp_path / "second" / "space.json"
    content = json.loads(space.read_text())
    content["layers"][0]["positions"] += 1
    space.write_text(json.dumps(content))
    assert dnas(monkeypatch, "stage=search", "folder=second") != 0
    assert "space.json differs" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "second" / "scores.json").exists()


def test_files_that_a_source_has_lost_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, "copy")
    (tmp_path / "copy" / "search.ckpt").unlink()
    assert dnas(monkeypatch, "folder=second", "search_from=copy", *SMALL) != 0
    assert "search_from=copy has lost search.ckpt" in " ".join(capsys.readouterr().err.split())


def test_the_same_files_by_other_paths_are_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of runs: the second takes from a copy by a relative path, the third from the second; the first is named."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, "copy")
    assert dnas(monkeypatch, "stage=preflight", "folder=second", "search_from=./copy", *SMALL, "budget.bops=0.3") == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert dnas(monkeypatch, "stage=search", "folder=../second") == 0
    assert dnas(monkeypatch, "stage=preflight", "folder=third", "search_from=../second", *SMALL) == 0
    assert dnas(monkeypatch, "stage=search", "folder=third") == 0
    taken = json.loads((elsewhere / "third" / "search.json").read_text())["taken_from"]
    assert taken["folder"] == str(tmp_path / "copy")
    assert (elsewhere / "third" / "scores.json").read_bytes() == (source / "scores.json").read_bytes()


def test_an_estimator_is_told_for_the_new_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool was drawn in a band of the source's cost: that the new one is another cost does not matter any more."""
    monkeypatch.chdir(tmp_path)
    binas = (
        "search=binas", "search.epochs=1", "search.pool=50", "search.judged=10", "search.pool_images=32",
        "search.band=[0.1,0.4]",
    )  # fmt: skip
    small = [key for key in SMALL if not key.startswith(("budget", "search.epochs", "search.score"))]
    for stage in ("preflight", "search"):
        assert dnas(monkeypatch, f"stage={stage}", "folder=first", *small, *binas, "budget.bops=0.2") == 0
    for stage in ("preflight", "search", "select"):
        wanted = ["search_from=first", "budget.weight_bits=0.5"]
        assert dnas(monkeypatch, f"stage={stage}", "folder=second", *small, *binas, *wanted) == 0
    first, second = (json.loads((tmp_path / name / "estimator.json").read_text()) for name in ("first", "second"))
    assert first["effects"] == second["effects"]
    assert open_folder(tmp_path / "second").architecture().cost("weight_bits", relative=True) <= 0.5


def test_a_search_that_trained_nothing_says_so_where_a_budget_takes_more_than_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = (*SMALL, "search.train=needed")
    for stage in ("preflight", "search"):
        assert dnas(monkeypatch, f"stage={stage}", "folder=first", *given) == 0
    found = json.loads((tmp_path / "first" / "search.json").read_text())
    assert found["epochs"] == 0
    assert "search.epochs=2 (search.train=always trains the supernet" in " ".join(capsys.readouterr().out.split())
    for bops, told in ((0.3, False), (0.07, True)):
        wanted = ("search_from=first", f"budget.bops={bops}", f"folder=for_{bops}")
        for stage in ("preflight", "search", "select"):
            assert dnas(monkeypatch, f"stage={stage}", *given, *wanted) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert ("it trained nothing, because bits alone met its budget" in out) is told
    for stage in ("select", "frontier", "retrain", "export", "report"):
        assert dnas(monkeypatch, f"stage={stage}", "folder=first", *given) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "filters have to go, of which this search, which trained nothing, knows little" in out
    assert json.loads((tmp_path / "first" / "report.json").read_text())["untrained"]
