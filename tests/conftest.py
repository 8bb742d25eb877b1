"""What every test may use."""

import sys
from pathlib import Path

import pytest
import torch

# with the root in front, the folders tests/dnas and tests/quant cannot be taken for the packages of these names
sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator; tests draw from it and never from torch's global state."""
    return torch.Generator().manual_seed(20240607)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Layers initialise themselves from torch's global generator: every test starts it from the same state."""
    torch.manual_seed(7)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
