import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dnas.cli import configuration_folder
from dnas.run import RunError, RunFolder, differences, digest, identity, is_run_folder, open_run, stored_config
from dnas.space.energy import EnergyConfig
from tests.small import SMALL, dnas


def content(**changes: object) -> DictConfig:
    plain = {
        "stage": "all", "seed": 0, "folder": None, "search_from": None,
        "search": {"epochs": 3, "loosen": 2.0, "start": "uniform", "train": "needed", "optimiser": {"lr": 0.1}},
        "retrain": {"start": "supernet"},
        "engine": {"device": "cpu", "precision": "fp32"}, "report": {"title": ""},
    }  # fmt: skip
    return OmegaConf.create(plain | changes)


def test_opening_writes_nothing(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "runs" / "x", content())
    assert not list(tmp_path.iterdir())
    folder.create()
    assert is_run_folder(folder.path)
    assert stored_config(folder.path) == content()
    assert folder.started_in() == Path.cwd()
    before = {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    folder.create()
    open_run(folder.path, content()).create()
    assert {path: path.stat().st_mtime_ns for path in folder.path.iterdir()} == before


def test_two_commands_that_start_at_once(tmp_path: Path) -> None:
    """Of two configurations for one folder the second to make it is refused; one configuration may be given twice."""
    first, other, again = (open_run(tmp_path / "x", content(seed=seed)) for seed in (0, 1, 0))
    first.create()
    with pytest.raises(RunError, match="seed is 0 there, 1 here"):
        other.create()
    again.create()
    assert stored_config(tmp_path / "x") == content(seed=0)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [".dnas", "config.yaml"]


def test_what_does_not_count(tmp_path: Path) -> None:
    open_run(tmp_path, content()).create()
    open_run(tmp_path, content(stage="report", folder="x", engine={"device": "cuda"}, report={"title": "t"}))
    assert digest(content()) == digest(content(stage="select", report={}, engine={"threads": 3}, hydra={"a": 1}))
    assert digest(content()) != digest(content(seed=1))


def test_a_reduced_precision_counts(tmp_path: Path) -> None:
    open_run(tmp_path, content()).create()
    with pytest.raises(RunError, match=r"engine.precision is None there, 'bf16' here"):
        open_run(tmp_path, content(engine={"precision": "bf16"}))
    assert identity(content(engine={"precision": "bf16", "device": "cpu"}))["engine"] == {"precision": "bf16"}


def test_differing_keys_are_named(tmp_path: Path) -> None:
    open_run(tmp_path, content()).create()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(RunError) as caught:
        open_run(
            tmp_path,
            content(
                seed=1,
                search={"epochs": 3, "loosen": 2.0, "start": "uniform", "train": "needed", "optimiser": {"lr": 0.2}},
            ),
        )
    text = str(caught.value)
    assert "seed is 0 there, 1 here" in text
    assert "search.optimiser.lr is 0.1 there, 0.2 here" in text
    assert "epochs" not in text
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_folder_of_before_a_key_was_there_is_one_that_did_without(tmp_path: Path) -> None:
    open_run(tmp_path, content()).create()
    older = OmegaConf.load(tmp_path / "config.yaml")
    del older["search_from"], older["search"]["loosen"], older["search"]["start"], older["search"]["train"]
    del older["retrain"]["start"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(older))
    stored = stored_config(tmp_path)
    assert (stored.search.loosen, stored.search.start, stored.search.train) == (1.0, "uniform", "always")
    assert stored.retrain.start == "supernet"
    with pytest.raises(
        RunError, match=r"(?s)search.loosen is 1.0 there, 2.0 here.*search.train is 'always' there, 'needed'"
    ):
        open_run(tmp_path, content())
    same = {"epochs": 3, "loosen": 1.0, "start": "uniform", "train": "always", "optimiser": {"lr": 0.1}}
    open_run(tmp_path, content(search=same))


def test_a_users_own_section_without_later_keys_goes_on(tmp_path: Path) -> None:
    """The composed configuration may lack them as the stored one does; both do what was done before there were any."""
    own = content(cost={"functions": {}, "latency": None}, budget={"bops": 0.1}, retrain={"epochs": 1})
    open_run(tmp_path, own).create()
    open_run(tmp_path, own)
    spelt = content(
        cost={"functions": {}, "latency": None, "energy": asdict(EnergyConfig())},
        budget={"bops": 0.1, "energy_pj": None}, retrain={"epochs": 1, "start": "supernet"},
    )  # fmt: skip
    open_run(tmp_path, spelt)
    assert digest(own) == digest(spelt)
    other = content(
        cost={"functions": {}, "latency": None}, budget={"bops": 0.1}, retrain={"epochs": 1, "start": "float"}
    )
    assert digest(other) != digest(own)
    with pytest.raises(RunError, match=r"retrain.start is 'supernet' there, 'float' here"):
        open_run(tmp_path, other)


def test_the_name_of_a_folder_is_what_it_was_before_a_key_was_there() -> None:
    older = content(search={"epochs": 3, "loosen": 1.0, "start": "uniform", "train": "always"})
    before = digest(older)
    del older["search_from"], older["retrain"]["start"]
    older["search"] = {"epochs": 3}
    assert digest(older) == before


def test_differences() -> None:
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [1]}) == []
    assert differences({"a": {"b": 1}}, {"a": {"c": 1}}) == ["a.b is 1 there, None here", "a.c is None there, 1 here"]
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a.b is 1 there, None here"]
    assert differences({"a": {"b": 1}}, {"a": 3}) == ["a is {'b': 1} there, 3 here"]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "config.yaml"])
def test_folders_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("words")
    with pytest.raises(RunError, match="nothing was changed"):
        open_run(tmp_path, content())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "words")]


def test_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("words")
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "x", content())


def test_a_creation_that_was_killed(tmp_path: Path) -> None:
    """Wherever it was killed, the same command creates the folder; but results without a configuration are no such case."""
    (tmp_path / "mark").mkdir()
    (tmp_path / "mark" / ".dnas").write_text("run fol")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".dnas").touch()
    (tmp_path / "half" / ".config.yaml.abcd1234").write_text("see")
    for name in ("mark", "half"):
        open_run(tmp_path / name, content()).create()
        assert stored_config(tmp_path / name) == content()
    (tmp_path / "half" / "config.yaml").unlink()
    (tmp_path / "half" / "scores.json").write_text("{}")
    with pytest.raises(RunError, match=r"scores.json.*nothing was changed"):
        open_run(tmp_path / "half", content())


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\x00"])
def test_a_damaged_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / ".dnas").touch()
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"(?s)config.yaml is damaged.*use another folder"):
        open_run(tmp_path, content())


def test_where_a_run_was_started(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.started_in() is None
    (tmp_path / ".dnas").write_text("run folder of dnas\n")  # as earlier versions wrote it
    assert folder.started_in() is None
    (tmp_path / ".dnas").write_text(f"run folder of dnas\n{tmp_path / 'gone'}\n")
    assert folder.started_in() is None
    (tmp_path / ".dnas").write_text(f"run folder of dnas\n{tmp_path}\n")
    assert folder.started_in() == tmp_path


def test_stages_are_recorded_when_they_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.stages() == []
    with folder.stage("one"):
        assert not folder.finished("one")
    with pytest.raises(KeyError), folder.stage("two"):
        raise KeyError
    assert folder.finished("one")
    assert not folder.finished("two")
    (record,) = json.loads((tmp_path / "stages.json").read_text())
    assert record["seconds"] >= 0
    assert record["peak_memory_mb"] > 1


def test_missing_files_name_their_stage(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"scores.json is missing; run stage=search in this folder first"):
        RunFolder(tmp_path).read_json("scores.json", "search")


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    open_run(tmp_path / "x", content()).create()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "x" / "config.yaml").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_run_of_a_users_own_section_is_stored_as_it_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the section lacks is what was done before there was such a key, at once and when the run goes on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "search").mkdir(parents=True)
    own = OmegaConf.load(configuration_folder() / "search" / "gumbel.yaml")
    del own["loosen"]
    (tmp_path / "own" / "search" / "mine.yaml").write_text("# own\n" + OmegaConf.to_yaml(own))
    given = [one for one in SMALL if not one.startswith("search.")]
    for _ in range(2):
        assert dnas(monkeypatch, "--config-dir", "own", "search=mine", "stage=preflight", "folder=run", *given) == 0
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").search.loosen == 1.0
