"""Nothing that a user names is unpickled: files of others may carry code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("dnas", "quant", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted name and node of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def problems(text: str) -> list[str]:
    """What in a module's text could unpickle."""
    found = []
    tree = ast.parse(text)
    for name, node in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        module, _, function = name.rpartition(".")
        if module.split(".")[-1] in LOADERS and function in ("load", "loads", "Unpickler", "open"):
            found.append(f"{name} in line {node.lineno}")
        if module == "torch" and function == "load" and given.get("weights_only") != "True":
            found.append(f"torch.load without weights_only=True in line {node.lineno}")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"allow_pickle in line {node.lineno}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {*LOADERS, "torch", "torch.serialization"}:
            names = {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}
            found += [f"from {node.module} import {name}" for name in sorted(names)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    assert not problems(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(p)", "import torch\ntorch.load(p, weights_only=False)", "import pickle\npickle.load(f)",
        "import numpy as np\nnp.load(p, allow_pickle=True)", "from torch import load", "import joblib\njoblib.load(p)",
    ],
)  # fmt: skip
def test_the_test_finds_it(text: str) -> None:
    assert problems(text)
