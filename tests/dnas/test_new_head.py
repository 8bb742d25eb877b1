"""A checkpoint that does not bring all weights, and a model that shares some, from preflight to the search."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dnas.stages.context import open_folder, save_weights
from tests.small import SMALL, dnas


class Twins(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(self.stem(x).relu()).relu()).relu().mean((2, 3)))


def test_a_new_classifier_is_trained_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "pretrain.epochs=1", "search.epochs=1", "data.limit_train=100"]
    assert dnas(monkeypatch, "stage=preflight", "folder=run", *small) == 0
    state = open_folder(tmp_path / "run").model().state_dict()
    moved = {key: value + 0.5 if value.is_floating_point() else value for key, value in state.items()}
    save_file({key: value for key, value in moved.items() if not key.startswith("classifier")}, "w.safetensors")
    small += ["folder=other", "model.checkpoint=w.safetensors", "model.checkpoint_skip=[classifier.*]"]
    assert dnas(monkeypatch, "stage=preflight", *small) == 0
    run = open_folder(tmp_path / "other")
    start = run.model().state_dict()
    for key, value in start.items():
        assert torch.equal(value, state[key] if key.startswith("classifier") else moved[key]), key
    assert dnas(monkeypatch, "stage=search", *small) == 0
    assert len(run.folder.read_json("float.json", "search")["history"]) == 1
    assert not torch.equal(run.float_model().classifier.weight, start["classifier.weight"])


def test_shared_weights_come_back_from_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors keeps them once."""
    monkeypatch.chdir(tmp_path)
    small = [o for o in SMALL if not o.startswith("model")]
    small += ["model=custom", f"model.target={__name__}:Twins", "folder=run", "space.filters=[1.0]"]
    assert dnas(monkeypatch, "stage=preflight", *small) == 0
    run = open_folder(tmp_path / "run")
    model = Twins(10)
    save_weights(tmp_path / "run" / "float.safetensors", model)
    found = run.float_model()
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)
