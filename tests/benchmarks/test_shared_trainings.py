"""One training from float weights serves every method that selects its network: which rows are taken for it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import pareto_runs
from pareto_runs import Job, Setting, digest, train, trained_before, wide

from dnas.retrain import RetrainConfig

KNOWN = {"start": "float", "retrain_seed": 1, "options": {"a.weight_bits": 2, "a.filters": [1, 3]}, "images_retrain": 640,
         "float": "weights"}  # fmt: skip
ROW = {
    **KNOWN, "method": "sensitivities", "role": "main", "accuracy": 71.5, "validation_accuracy": 72.5, "seconds": 3.0,
    "commit": "1234", "arithmetic": pareto_runs.ARITHMETIC, "versions": {}, "processor": "a processor",
    "instructions": "avx2 avx512f",
}  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pareto_runs, "instructions", lambda: "avx2 avx512f amx_int8")
    return tmp_path


def write(folder: Path, name: str, **changes: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(ROW | changes))


def test_a_finished_training_is_taken_with_what_it_measured_and_its_name(rows: Path) -> None:
    write(rows, "theirs")
    assert trained_before(rows, KNOWN) == {
        "accuracy": 71.5, "validation_accuracy": 72.5, "seconds": 3.0, "commit": "1234", "arithmetic": 3, "versions": {},
        "processor": "a processor", "instructions": "avx2 avx512f", "trained_as": "theirs",
    }  # fmt: skip


def test_what_was_taken_itself_names_the_first_one(rows: Path) -> None:
    write(rows, "second", trained_as="first")
    found = trained_before(rows, KNOWN)
    assert found is not None
    assert found["trained_as"] == "first"


@pytest.mark.parametrize(
    "changes",
    [
        {"start": "supernet"}, {"retrain_seed": 2}, {"options": {"a.weight_bits": 3, "a.filters": [1, 3]}},
        {"images_retrain": 641}, {"float": "others"}, {"role": "elsewhere"}, {"role": "screen"}, {"instructions": "avx2"},
        {"instructions": None}, {"arithmetic": 1},
    ],
)  # fmt: skip
def test_another_training_is_not(rows: Path, changes: dict[str, Any]) -> None:
    write(rows, "theirs", **changes)
    assert trained_before(rows, KNOWN) is None


def test_avx512_is_one_word_among_the_instructions() -> None:
    assert wide("avx2 avx512f")
    assert not wide("avx2 avx512_vnni")


@pytest.mark.parametrize(
    ("shared", "start", "trains"), [(True, "float", 0), (False, "float", 1), (True, "supernet", 1)]
)
def test_a_network_is_trained_but_where_a_training_from_float_weights_is_shared(
    shared: bool, start: str, trains: int, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("data", rows, rows / "result.json", "resnet8", "experiment", shared=shared)
    for name in ("float", "rows"):
        (rows / name).mkdir()
    for folder in ("float", "search-ours-w2a2-s1"):
        (rows / folder).mkdir(exist_ok=True)
        for name in ("float.safetensors", "search.ckpt"):
            (rows / folder / name).write_bytes(b"weights")
    options = {"a.weight_bits": 2}
    known = {
        "options": options,
        "images_retrain": 64,
        "float": digest(rows / "float" / "float.safetensors"),
        "start": start,
    }
    write(rows / "rows", "theirs", **known)
    config = SimpleNamespace(retrain=RetrainConfig(epochs=2, batch_size=8), space=SimpleNamespace(calibration_images=1))
    run = MagicMock(config=config)
    run.batches.return_value = [torch.zeros(1)] * 4
    run.folder.read_json.return_value = {"gap": [], "images": 1}
    architecture = MagicMock(options=options)
    architecture.cost.return_value = 0.05
    run.supernet.return_value.with_filters.return_value = architecture
    trained = MagicMock()
    for name, value in {
        "replace": lambda given, **changes: given, "architecture_of": MagicMock(), "summary": lambda _: "W2",
        "accuracies": lambda *_: {"accuracy": 60.0, "validation_accuracy": 61.0}, "retrain": trained,
    }.items():  # fmt: skip
        monkeypatch.setattr(pareto_runs, name, value)
    monkeypatch.setattr(Setting, "open", lambda *_: run)
    job = Job("ours", "main", "w2a2", {"bops": 0.07}, "selected", start, "ours", 1, 1)
    row = train(setting, job)
    assert trained.call_count == trains
    assert (row["method"], row["accuracy"], row.get("trained_as")) == (
        ("ours", 60.0, None) if trains else ("ours", 71.5, "theirs")
    )
    assert row["selected_by"]["commit"] == pareto_runs.COMMIT
    assert train(setting, job) == row  # from its file
