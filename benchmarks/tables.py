"""The README's tables of results, from the committed files: `python benchmarks/tables.py` rewrites them in place."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables_accuracy
import tables_estimators
import tables_running

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "dnas.Pareto": tables_accuracy.demo,
    "dnas.Verdict": tables_accuracy.verdict,
    "dnas.BinasVerdict": tables_accuracy.binas,
    "dnas.Bridges": tables_accuracy.bridges,
    "dnas.Targets": tables_accuracy.targets,
    "dnas.Ablation": tables_accuracy.ablation,
    "dnas.ThesisGrid": tables_accuracy.thesis_grid,
    "dnas.Estimators": tables_estimators.estimators,
    "dnas.Rank": tables_estimators.rank,
    "dnas.BinasFindings": tables_estimators.binas_findings,
    "dnas.Depthwise": tables_estimators.depthwise,
    "dnas.Overhead": tables_running.overhead,
    "dnas.Gradient": tables_running.gradient,
    "dnas.Coverage": tables_running.coverage,
    "dnas.Conversion": tables_running.conversion,
    "dnas.ByFilter": tables_running.by_filter,
    "dnas.RandomNetworks": tables_running.random_networks,
    "dnas.Latency": tables_running.latency,
    "dnas.Solvers": tables_running.solvers,
}
"""How a result file is shown, by its type."""


def table(content: dict[str, Any]) -> str:
    """A result file as Markdown."""
    return TABLES[content["type"]](content)


def rewrite(text: str) -> str:
    """The README with every `<!-- results: NAME -->` block filled in from benchmarks/results/NAME.json."""

    def fill(match: re.Match[str]) -> str:
        path = HERE / "results" / f"{match.group(1)}.json"
        found = table(json.loads(path.read_text(encoding="utf-8")))
        return f"<!-- results: {match.group(1)} -->\n{found}\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(rewrite(README.read_text(encoding="utf-8")), encoding="utf-8")
