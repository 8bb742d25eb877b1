"""A sweep makes one table, one picture and one file of all its runs, also when some of them fail."""

import json
import pickle
from pathlib import Path

import pytest

from dnas.sweep import ParetoCallback
from tests.small import SMALL, dnas

TINY = (*SMALL, "search.epochs=1", "pretrain.epochs=1", "retrain.epochs=1", "report.tensorboard=false")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A sweep over three budgets, one of them out of reach; its folder and exit code."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny = [override for override in TINY if not override.startswith("budget")]
        code = dnas(patch, "-m", *tiny, "budget.bops=0.2,0.0001,0.4", "retrain.baselines=[uniform]")
    return folder, code


def test_one_table_of_all_runs(sweep: tuple[Path, int]) -> None:
    folder, _ = sweep
    (out,) = (folder / "runs").glob("pareto-*")
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert "Uniform" in (out / "pareto.html").read_text()
    (network,) = json.loads((out / "pareto.json").read_text())["networks"]
    groups = [(group["method"], group["budgets"]["bops"]) for group in network["groups"]]
    assert sorted(groups) == [("ours", 0.2), ("ours", 0.4), ("uniform", 0.2), ("uniform", 0.4)]
    for group in network["groups"]:
        assert group["relative"]["bops"] <= group["budgets"]["bops"]
    assert network["float"]["accuracy"] > 0


def test_a_failing_job_is_reported(sweep: tuple[Path, int]) -> None:
    folder, code = sweep
    assert code == 1
    runs = [path for path in (folder / "runs").iterdir() if (path / "config.yaml").exists()]
    assert len(runs) == 2
    assert {path.name for path in folder.iterdir()} == {"runs"}
    assert not list((folder / "runs").glob(".jobs-*"))


def test_a_repeated_sweep_does_nothing(
    sweep: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = sweep
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/*.json") if "pareto" not in str(path)}
    tiny = [override for override in TINY if not override.startswith("budget")]
    assert dnas(monkeypatch, "-m", *tiny, "budget.bops=0.2,0.4", "retrain.baselines=[uniform]") == 0
    assert "finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_failures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dnas(monkeypatch, "-m", *TINY, "space.exclude=[none],[neither]") == 1
    found = capsys.readouterr()
    assert "space.exclude=[none]" in found.out
    assert "'neither' matches no layer" in found.out
    assert "Traceback" not in found.err + found.out


def test_the_callback_travels_to_other_processes() -> None:
    """Launchers of clusters pickle it."""
    callback = ParetoCallback()
    callback.notes = Path("notes")
    assert pickle.loads(pickle.dumps(callback)).notes == Path("notes")
