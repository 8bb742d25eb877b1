"""Nothing imports a later stage."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "space": {"space"},
    "search": {"space", "search", "engine", "recipe", "board", "loaders", "checkpoint"},
    "select": {"space", "search", "select"},
    "realise": {"space", "search", "realise"},
}
"""For every stage the parts of `dnas` that it may import."""
LATER = {"search": {"select", "realise", "retrain", "report", "cli", "stages"}}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, also inside of functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parts(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("dnas.")}


@pytest.mark.parametrize("path", modules("quant"), ids=dotted)
def test_quant_knows_nothing_of_searching(path: Path) -> None:
    assert not {name for name in imported(path) if name.split(".")[0] == "dnas"}


@pytest.mark.parametrize("stage", ["space", "select", "realise"])
def test_stages_import_only_earlier_ones(stage: str) -> None:
    files = [ROOT / "dnas" / f"{stage}.py"] if stage == "realise" else modules(f"dnas/{stage}")
    for path in files:
        assert parts(path) <= ALLOWED[stage], path


def test_search_imports_no_later_stage() -> None:
    for path in modules("dnas/search"):
        assert not parts(path) & LATER["search"], path


@pytest.mark.parametrize("path", modules("dnas/report"), ids=dotted)
def test_only_the_top_imports_the_report(path: Path) -> None:
    top = {"cli", "stages", "report", "sweep", "searcher", "retrain"}
    for other in modules("dnas"):
        if other.relative_to(ROOT / "dnas").with_suffix("").parts[0] not in top:
            assert "report" not in parts(other), other


def test_no_cycles() -> None:
    files = {dotted(path): path for folder in ("dnas", "quant") for path in modules(folder)}
    graph = {name: (imported(path) & files.keys()) - {name} for name, path in files.items()}
    # a package's own __init__ re-exports its parts; importing a part is not importing all of them
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name] - packages:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
