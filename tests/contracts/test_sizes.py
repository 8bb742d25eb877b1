"""What keeps the code readable: short modules, few public names, a docstring and types on each."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import dnas

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("dnas", "quant") for path in (ROOT / folder).rglob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def public(tree: ast.AST) -> Iterator[tuple[ast.ClassDef | Definition, ast.AST]]:
    """Public classes and functions at the top of a module and in its public classes, with what holds them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | Definition) and not node.name.startswith("_"):
            yield node, tree
            if isinstance(node, ast.ClassDef):
                yield from public(node)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450


def test_few_public_names_and_all_described() -> None:
    assert len(dnas.__all__) <= 25
    assert sorted(dnas.__all__) == dnas.__all__
    for name in dnas.__all__:
        assert inspect.getdoc(getattr(dnas, name)), name


@pytest.mark.parametrize("path", FILES, ids=short)
def test_public_definitions_are_described_and_typed(path: Path) -> None:
    for node, holder in public(ast.parse(path.read_text())):
        where = f"{short(path)}:{node.lineno} {node.name}"
        inherits = isinstance(holder, ast.ClassDef) and holder.bases
        if not isinstance(node, ast.ClassDef):
            assert node.returns is not None, f"{where} has no return annotation"
        if not inherits:
            assert ast.get_docstring(node), f"{where} has no docstring"
