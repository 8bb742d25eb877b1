"""One training from float weights serves every method that selects its network: which rows are taken for it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import pareto_runs
from pareto_runs import trained_before, wide

KNOWN = {"start": "float", "retrain_seed": 1, "options": {"a.weight_bits": 2, "a.filters": [1, 3]}, "images_retrain": 640,
         "float": "weights"}  # fmt: skip
ROW = {
    **KNOWN, "method": "sensitivities", "role": "main", "accuracy": 71.5, "validation_accuracy": 72.5, "seconds": 3.0,
    "commit": "1234", "versions": {}, "processor": "a processor", "instructions": "avx2 avx512f",
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
        "accuracy": 71.5, "validation_accuracy": 72.5, "seconds": 3.0, "commit": "1234", "versions": {},
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
        {"instructions": None},
    ],
)  # fmt: skip
def test_another_training_is_not(rows: Path, changes: dict[str, Any]) -> None:
    write(rows, "theirs", **changes)
    assert trained_before(rows, KNOWN) is None


def test_avx512_is_one_word_among_the_instructions() -> None:
    assert wide("avx2 avx512f")
    assert not wide("avx2 avx512_vnni")
