"""What a user meets at the command line: stages one at a time, errors that name the key and the fix, nothing overwritten."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import dnas as library
from dnas.cli import configuration_folder, is_message
from dnas.engine import Engine, EngineConfig
from dnas.run import RunFolder
from dnas.stages.context import open_folder
from dnas.stages.export import export
from quant.verify import VerificationError
from tests.small import SMALL, dnas

STAGES = ("preflight", "search", "select", "frontier", "retrain", "export", "report")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made one stage at a time; its folder."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert dnas(patch, "stage=preflight", "folder=run", *SMALL) == 0
        assert dnas(patch, "stage=search", "folder=run", *SMALL) == 0
        assert dnas(patch, "stage=select", "folder=run") == 0
        patch.chdir(folder / "run")
        for stage in STAGES[3:]:
            assert dnas(patch, f"stage={stage}") == 0
    return folder / "run"


def content(folder: Path) -> dict[str, str]:
    """Hashes of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- stages


def test_stages_leave_their_files(run: Path) -> None:
    files = {path.name for path in run.iterdir()}
    assert files >= {
        "config.yaml", "space.json", "preflight.json", "float.safetensors", "search.ckpt", "scores.json", "select.json",
        "architecture.json", "model.safetensors", "baselines", "model.qcdq.onnx", "model.qonnx.onnx", "verify.json",
        "report.json", "report.html", "tensorboard",
    }  # fmt: skip
    assert [record["stage"] for record in json.loads((run / "stages.json").read_text())] == list(STAGES)
    report = json.loads((run / "report.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["float", "uniform", "random", "ours"]
    assert all(row["within_budget"] for row in report["rows"][1:])
    assert report["rows"][-1]["relative"]["bops"] <= 0.2
    assert not [path for path in run.rglob(".*") if path.name != ".dnas"]


def test_exported_files_are_readable_by_others(run: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.glob("model.*")}
    assert set(modes.values()) == {0o666 & ~mask}, modes


def test_batch_normalisation_is_folded_on_request(run: Path, empty: Path) -> None:
    shutil.copytree(run, "copy")
    copied = open_folder(empty / "copy")
    copied.config = replace(copied.config, export=replace(copied.config.export, fold_batch_norm=True))
    export(copied)
    before, after = (json.loads((folder / "verify.json").read_text()) for folder in (run, empty / "copy"))
    assert not [layer for layer in before["layers"]["qcdq"] if "batch_norm" in layer]
    assert [layer for layer in after["layers"]["qcdq"] if "batch_norm" in layer]
    assert after["costs"] == before["costs"]
    assert after["packed"] == before["packed"]


def test_a_finished_run_is_left_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    before = content(run)
    assert dnas(monkeypatch, "folder=run", *SMALL) == 0
    assert "finished before" in capsys.readouterr().out
    assert dnas(monkeypatch, "folder=run") == 0
    assert content(run) == before


def test_other_options_of_a_finished_stage(
    run: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export is done again; a selection that later stages rest on is refused."""
    shutil.copytree(run, "copy")
    before = content(empty / "copy")
    assert dnas(monkeypatch, "folder=copy", "stage=select", "select.solver=highs") == 1
    assert "select.solver is 'auto' there, 'highs' here" in " ".join(capsys.readouterr().err.split())
    assert content(empty / "copy") == before
    assert dnas(monkeypatch, "folder=copy", "stage=export", "export.fold_batch_norm=true") == 0
    assert "again, with other options (export.fold_batch_norm" in capsys.readouterr().out
    verified = json.loads((empty / "copy" / "verify.json").read_text())
    assert [layer for layer in verified["layers"]["qcdq"] if "batch_norm" in layer]
    assert dnas(monkeypatch, "folder=copy", "stage=export", "export.fold_batch_norm=true") == 0
    assert "finished before" in capsys.readouterr().out


def test_files_are_replaced_by_verified_ones_alone(
    run: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a file that is not verified nor a mixture of two exports is ever taken for what verify.json tells of."""
    shutil.copytree(run, "copy")
    before = content(empty / "copy")
    again = ("folder=copy", "stage=export", "export.fold_batch_norm=true")

    def fail(*arguments: Any, **options: Any) -> None:
        raise VerificationError("no")

    with monkeypatch.context() as patch:
        patch.setattr("dnas.stages.export.verify", fail)
        assert dnas(monkeypatch, *again) == 1
        assert content(empty / "copy") == before
    with monkeypatch.context() as patch:
        patch.setattr("dnas.stages.export.write_atomically", fail)  # killed between the files
        assert dnas(monkeypatch, *again) == 1
        assert not RunFolder(empty / "copy").finished("export")
    capsys.readouterr()
    assert dnas(monkeypatch, *again) == 0
    assert "finished before" not in capsys.readouterr().out
    assert content(empty / "copy")["model.qcdq.onnx"] != before["model.qcdq.onnx"]


def test_a_selection_that_a_training_has_begun_with_stays(
    run: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed between its own network and the baselines: another selection would be exported with its weights."""
    shutil.copytree(run, "copy")
    stages = Path("copy/stages.json")
    records = json.loads(stages.read_text())
    stages.write_text(json.dumps([r for r in records if r["stage"] not in ("retrain", "export", "report")]))
    before = content(empty / "copy")
    assert dnas(monkeypatch, "folder=copy", "stage=all", "select.solver=highs") == 1
    assert "retrain rest on it; nothing was changed" in " ".join(capsys.readouterr().err.split())
    assert content(empty / "copy") == before
    architecture = json.loads(Path("copy/architecture.json").read_text())
    name = next(name for name, option in architecture["options"].items() if "weight_bits" in name and option != 4)
    architecture["options"][name] = 4
    Path("copy/architecture.json").write_text(json.dumps(architecture))
    assert dnas(monkeypatch, "folder=copy", "stage=retrain") == 1
    assert "is of another network than architecture.json" in " ".join(capsys.readouterr().err.split())


def test_a_data_set_that_changed_is_refused(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Splits are drawn anew from what lies there: images that trained the network could be tested on."""
    generator = np.random.default_rng(0)

    def add(numbers: range) -> None:
        for label in ("ant", "bee"):
            for number in numbers:
                path = empty / "set" / "train" / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)

    add(range(40))
    own = ("data=image_folder", "data.path=set", "data.cache=null", "data.limit_train=null")
    others = [setting for setting in SMALL if not setting.startswith("data")]
    assert dnas(monkeypatch, "folder=run", *others, *own, "stage=preflight") == 0
    assert dnas(monkeypatch, "folder=run", "stage=preflight") == 0
    add(range(40, 60))
    assert dnas(monkeypatch, "folder=run", "stage=search") == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "the images or labels of weights, choices, validation, test are not those that the run began with" in error
    assert not (empty / "run" / "float.safetensors").exists()


def test_a_value_that_hydra_cannot_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert dnas(monkeypatch, "data=image_folder", "data.path=dünn (1)/a.zip", "budget.bops=0.1") == 1
    assert "data.path='dünn (1)/a.zip'" in " ".join(capsys.readouterr().err.split())


def test_single_keys_are_compared_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    assert dnas(monkeypatch, "folder=run", "retrain.epochs=3") == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "retrain.epochs is 2 there, 3 here; nothing was changed" in error
    assert dnas(monkeypatch, "folder=run", "retrain.epochs=2") == 0


def test_another_configuration_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    before = content(run)
    assert dnas(monkeypatch, "folder=run", *SMALL, "search.epochs=3") == 1
    error = capsys.readouterr().err
    assert "search.epochs is 2 there, 3 here" in error
    assert "seed" not in error
    assert dnas(monkeypatch, "folder=run", *SMALL, "engine.precision=bf16") == 1
    assert "engine.precision" in capsys.readouterr().err
    assert content(run) == before


def test_keys_that_change_nothing_may_differ(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    before = content(run)
    assert (
        dnas(monkeypatch, "folder=run", "stage=report", "engine.device=cpu", "++engine.threads=1", "report.title=x")
        == 0
    )
    assert dnas(monkeypatch, "folder=run", *SMALL, "engine.threads=1") == 0
    assert content(run) == before


def test_other_folders_are_untouched(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "mine").mkdir()
    (empty / "mine" / "thesis.tex").write_text("words")
    (empty / "file").write_text("words")
    before = content(empty)
    for name in ("mine", "file"):
        assert dnas(monkeypatch, f"folder={name}", *SMALL) == 1
        assert "nothing was changed" in capsys.readouterr().err
    assert content(empty) == before


def test_a_damaged_configuration(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "run").mkdir()
    (empty / "run" / ".dnas").touch()
    (empty / "run" / "config.yaml").write_text("seed: [")
    assert dnas(monkeypatch, "folder=run", "stage=select") == 1
    assert "damaged" in capsys.readouterr().err


def test_stages_need_earlier_ones(
    run: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in STAGES[1:]:
        assert dnas(monkeypatch, f"stage={stage}", "folder=none", *SMALL) == 1
        assert "stage=preflight" in capsys.readouterr().err
    assert not list(empty.iterdir())
    shutil.copytree(run, "copy")
    for name in ("stages.json", "model.safetensors", "architecture.json"):
        (empty / "copy" / name).unlink()
    assert dnas(monkeypatch, "stage=retrain", "folder=copy") == 1
    assert "run stage=select in this folder first" in capsys.readouterr().err
    (empty / "copy" / "architecture.json").write_bytes((run / "architecture.json").read_bytes())
    assert dnas(monkeypatch, "stage=export", "folder=copy") == 1
    assert "run stage=retrain in this folder first" in capsys.readouterr().err


def test_a_reduced_precision_is_kept_by_later_stages(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [*SMALL, "engine.precision=bf16", "search.epochs=1", "pretrain.epochs=1"]
    assert dnas(monkeypatch, "stage=preflight", "folder=run", *small) == 0
    assert dnas(monkeypatch, "stage=search", "folder=run", "engine.threads=1") == 0
    assert open_folder(empty / "run").engine.config.precision == "bf16"


# --- loading


def test_load_equals_the_exported_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From anywhere, and without the data."""
    images = open_folder(run).images("test", 64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dnas.stages.context.load_data", lambda *_: pytest.fail("loading a model reads no data"))
    model = library.load(run)
    assert model.architecture.cost("bops") <= 0.2 * model.architecture.cost("bops") / model.architecture.cost(
        "bops", True
    )
    with torch.no_grad():
        wanted = model(images).numpy()
    session = onnxruntime.InferenceSession(str(run / "model.qcdq.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert abs(found - wanted).max() <= 1e-5 * max(abs(wanted).max(), 1)
    assert (found.argmax(1) == wanted.argmax(1)).all()


def test_load_does_not_need_the_machine_that_trained(run: Path, tmp_path: Path) -> None:
    """Nor its GPU, nor its processes."""
    shutil.copytree(run, tmp_path / "copy")
    stored = (tmp_path / "copy" / "config.yaml").read_text()
    changed = stored.replace("device: auto", "device: cuda").replace("processes: 1", "processes: 2")
    assert changed.count("device: cuda") == changed.count("processes: 2") == 1
    (tmp_path / "copy" / "config.yaml").write_text(changed)
    model = library.load(tmp_path / "copy")
    for name, value in library.load(run).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_load_names_what_is_missing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not a run folder"):
        library.load(tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="stage=retrain"):
        library.load(tmp_path / "copy")


# --- errors


WRONG = {
    "budget.bop=0.05": ["budget.bop ", "budget.bops", "conf/budget"],
    "+search.foo=1": ["search.foo", "conf/search", "epochs"],
    "serach.epochs=1": ["serach.epochs", "search.epochs"],
    "foo=1": ["foo", "conf/config.yaml", "seed"],
    "model=resnet9": ["conf/model/resnet9.yaml", "resnet8"],
    "search.epochs=abc": ["search.epochs", "'abc'", "float"],
    "relax.mode=hard": ["relax.mode", "gumbel_hard"],
    "budget.bops=-1": ["budget.bops is -1", "share"],
    "budget.bops=0.0001": ["budget.bops=0.0001", "smallest", "raise the budget"],
    "budget.bops=null": ["no budget is set", "budget.bops=0.05"],
    "+budget.own.energy=0.3": ["budget.own.energy", "cost.functions.energy"],
    "+cost.functions.energy=nowhere:energy": ["cost.functions.energy", "imported"],
    "stage=train": ["stage=train", "preflight"],
    "space.weight_bits=[1,2]": ["space.weight_bits", "2 to 8"],
    "space.weight_bits=[]": ["space.weight_bits"],
    "space.filters=[0.5,2]": ["space.filters", "up to 1"],
    "space.exclude=[nothing.*]": ["space.exclude", "nothing.*", "stem.0"],
    "target.weight_bits=[3]": ["target", "weight_bits"],
    "data=cifar10": ["data.path", "must be given"],
    "data=image_folder data.path=nowhere": ["data.path", "nowhere"],
    "data.validation_share=2": ["data.validation_share"],
    "model.target=nowhere:Net": ["model.target", "nowhere"],
    "model.checkpoint=nowhere.pth": ["model.checkpoint", "nowhere.pth"],
    "model=null": ["model"],
    "pretrain.optimiser.lr=0": ["pretrain.optimiser", "lr > 0"],
    "engine.device=tpu": ["engine.device", "cuda"],
    "folder=[1]": ["folder"],
}


@pytest.mark.parametrize("override", WRONG)
def test_errors_name_the_key_and_the_fix(
    override: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert dnas(monkeypatch, *SMALL, *override.split()) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "error" in error
    for part in WRONG[override]:
        assert part in error, error
    assert not list(empty.iterdir()), "something was written"


def test_no_cuda(empty: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dnas(monkeypatch, *SMALL, "engine.device=cuda") == 1
    error = capfd.readouterr().err
    assert "engine.device=cpu" in error
    assert "Traceback" not in error
    assert not list(empty.iterdir())


def test_only_own_errors_are_shortened() -> None:
    """A fault keeps its traceback; what this package says to its user needs none."""

    def raised(action: object) -> Exception:
        try:
            action()  # type: ignore[operator]
        except Exception as error:
            return error
        raise AssertionError

    assert is_message(raised(lambda: EngineConfig(device="tpu")))
    assert is_message(raised(lambda: Engine(EngineConfig(device="cuda:99")))) or torch.cuda.device_count() > 99
    assert not is_message(raised(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert not is_message(raised(lambda: {}["key"]))


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--help"], ["--info", "defaults"]], ids=" ".join)
def test_options_of_hydra(
    option: list[str], empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dnas(monkeypatch, *option) == 0
    assert "budget" in capsys.readouterr().out
    assert not list(empty.iterdir())


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """In a process of its own: `python -m dnas`, exit code, and error output."""
    command = [sys.executable, "-m", "dnas", "space.weight_bits=[1,2]", "budget.bops=0.1"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 1
    assert "space.weight_bits" in found.stderr
    assert "Traceback" not in found.stderr + found.stdout
    assert not list(tmp_path.iterdir())


def test_configuration_folder() -> None:
    assert (configuration_folder() / "config.yaml").exists()
