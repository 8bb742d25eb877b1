"""The README says what the code does: its commands compose, its tables come from the committed results."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dnas.cli import configuration_folder
from dnas.config import STAGES, check_overrides
from dnas.space.cost import COSTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.append(str(ROOT / "benchmarks"))


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_come_from_the_committed_results() -> None:
    assert _module("tables").rewrite(README) == README
    assert README.count("<!-- results:") == 20


COMMANDS = sorted(set(re.findall(r"^dnas .*?(?=\s+#|$)", README, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_known_keys(command: str) -> None:
    check_overrides(shlex.split(command)[1:], configuration_folder())


def test_stages_and_costs_are_named() -> None:
    assert len(COMMANDS) >= 5
    for name in (*STAGES, *COSTS):
        assert f"`{name}`" in README


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
