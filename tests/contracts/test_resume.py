"""A run that is killed at any moment ends with the same bits as one that was not."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.small import SMALL, Command

SAME = ("space.json", "scores.json", "architecture.json", "float.safetensors", "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    command = Command(folder, *SMALL, "folder=run")
    assert command.wait() == 0, command.output.read_text()
    return folder / "run"


def assert_same(found: Path, wanted: Path) -> None:
    for name in SAME:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    for path in sorted((wanted / "baselines").glob("*.safetensors")):
        assert (found / "baselines" / path.name).read_bytes() == path.read_bytes(), path.name
    accuracies = [
        [row["accuracy"] for row in json.loads((folder / "report.json").read_text())["rows"]]
        for folder in (found, wanted)
    ]
    assert accuracies[0] == accuracies[1]


def steps(folder: Path) -> dict[str, Counter[tuple[str, int]]]:
    """How often TensorBoard shows each step of each curve and picture, for every folder of events."""
    found = {}
    for path in sorted({path.parent for path in (folder / "tensorboard").rglob("events.*")}):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0})
        events.Reload()
        tags = events.Tags()
        counter = Counter((tag, event.step) for tag in tags["scalars"] for event in events.Scalars(tag))
        counter.update((tag, event.step) for tag in tags["images"] for event in events.Images(tag))
        found[str(path.relative_to(folder))] = counter
    return found


def test_killed_at_writes(tmp_path: Path, whole: Path) -> None:
    """Killed with a file written but not moved into place, again and again; preflight alone writes eight."""
    generator, kills = random.Random(1), 0
    while True:
        command = Command(tmp_path, *SMALL, "folder=run", kill_at_write=generator.randint(9, 12))
        code = command.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, command.output.read_text()
        kills += 1
        assert kills < 20
    assert kills > 2
    assert_same(tmp_path / "run", whole)
    found = steps(tmp_path / "run")
    assert found == steps(whole)
    assert max(count for counter in found.values() for count in counter.values()) == 1
    assert found["tensorboard/search"]["search/loss", 2] == 1


def test_killed_in_training(tmp_path: Path, whole: Path) -> None:
    """Killed while the float network, the supernet and the searched network are trained, and at some random time."""
    generator = random.Random(2)
    for file in ("float.ckpt", "search.ckpt", "model.ckpt", None):
        command = Command(tmp_path, *SMALL, "folder=run")
        end = time.monotonic() + (60 if file else 0.5 + generator.random())
        while time.monotonic() < end and not (file and (tmp_path / "run" / file).exists()):
            time.sleep(0.005)
        assert command.kill() in (-signal.SIGKILL, 0), command.output.read_text()
    command = Command(tmp_path, *SMALL, "folder=run")
    assert command.wait() == 0, command.output.read_text()
    assert_same(tmp_path / "run", whole)


def test_killed_as_the_folder_is_made(tmp_path: Path) -> None:
    """The first file that is moved into place is the configuration."""
    assert Command(tmp_path, *SMALL, "folder=run", kill_at_write=1).wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "config.yaml").exists()
    command = Command(tmp_path, *SMALL, "folder=run", "stage=preflight")
    assert command.wait() == 0, command.output.read_text()
    assert (tmp_path / "run" / "space.json").exists()


def test_other_seeds_differ(tmp_path: Path, whole: Path) -> None:
    command = Command(tmp_path, *SMALL, "folder=run", "seed=1", "retrain.baselines=[]")
    assert command.wait() == 0, command.output.read_text()
    for name in ("scores.json", "float.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() != (whole / name).read_bytes(), name
