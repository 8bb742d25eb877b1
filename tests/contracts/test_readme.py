"""The READMEs say what the code does: commands compose, tables come from the committed results, what they refer to is there."""

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
    tables, shown = _module("tables"), []
    for path in tables.READMES:
        text = path.read_text(encoding="utf-8")
        assert tables.rewrite(text) == text
        blocks = re.findall(r"^<!-- (\w+: \w+) -->\n[^<].*?\n<!-- end -->$", text, re.MULTILINE | re.DOTALL)
        assert len(blocks) == text.count("<!--") / 2
        shown += blocks
    assert len(shown) == len(set(shown))
    assert len([block for block in shown if block.startswith("results: ")]) == 22
    verdict = "cifar10_pareto_verdict"
    assert {block for block in shown if not block.startswith("results: ")} == {
        f"headline: {verdict}",
        f"details: {verdict}",
    }


@pytest.mark.parametrize("folder", [ROOT, ROOT / "benchmarks"], ids=lambda folder: folder.name)
def test_pictures_pages_and_scripts_exist(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if not link.startswith("http")]
    assert links
    scripts = re.findall(r"`python (benchmarks/\w+\.py)", text)
    assert scripts
    missing = [link for link in links if not (folder / link).exists()] + [s for s in scripts if not (ROOT / s).exists()]
    assert not missing
    headings = {
        re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert not set(re.findall(r"\]\(#([^)]+)\)", text)) - headings


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
