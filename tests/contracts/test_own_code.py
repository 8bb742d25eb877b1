"""A user's own code and paths: found from the directory in which a run was started, whatever stage runs where."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from dnas.stages.context import open_folder
from tests.small import SMALL, dnas


def test_a_cost_of_the_users(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a module in the working directory, through select; later stages run in the run folder."""
    (empty / "my_energy.py").write_text(
        "def energy(layer, c_in, c_out, w, a):\n"
        "    return layer.positions * layer.kernel * c_in * c_out * (w + a) / (c_in if layer.depthwise else 1)\n"
    )
    own = ["+cost.functions.energy=my_energy:energy", "+budget.own.energy=0.3", "budget.bops=null"]
    small = [*SMALL, "search.epochs=1", "pretrain.epochs=1", "retrain.epochs=1", "retrain.baselines=[uniform]", *own]
    assert dnas(monkeypatch, "stage=preflight", "folder=run", *small) == 0
    assert dnas(monkeypatch, "stage=search", "folder=run") == 0
    monkeypatch.chdir(empty / "run")
    for name in [name for name in sys.modules if name == "my_energy"]:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(empty))])
    assert dnas(monkeypatch, "stage=select") == 0
    found = open_folder(empty / "run").architecture()
    assert 0 < found.cost("energy", relative=True) <= 0.3
    assert found.certificate is not None
    assert found.certificate.costs["energy"] == found.cost("energy")


def test_relative_paths_hold_in_the_run_folder(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was relative to the directory in which the run was started still is."""
    images = empty / "images"
    for split in ("train", "test"):
        for label in ("a", "b"):
            for index in range(12):
                (images / split / label).mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 20 * index + (100 if label == "a" else 0)).save(
                    images / split / label / f"{index}.png"
                )
    small = [o for o in SMALL if not o.startswith(("data", "pretrain.batch", "search.batch"))]
    small += [
        "data=image_folder",
        "data.path=images",
        "data.cache=null",
        "search.batch_size=4",
        "pretrain.batch_size=4",
    ]
    assert dnas(monkeypatch, "stage=preflight", "folder=run", *small, "data.validation_share=0.3") == 0
    monkeypatch.chdir(empty / "run")
    assert dnas(monkeypatch, "stage=search") == 0
