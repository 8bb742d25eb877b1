"""The tables of both READMEs, from the committed results: `python benchmarks/tables.py` rewrites them in place."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables_accuracy
import tables_estimators
import tables_running

HERE = Path(__file__).parent
READMES = HERE.parent / "README.md", HERE / "README.md"
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
    "dnas.BinasRank": tables_estimators.binas_rank,
    "dnas.BinasLatency": tables_running.binas_latency,
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
DETAILS: dict[str, Callable[[dict[str, Any]], str]] = {"dnas.Verdict": tables_accuracy.details}
"""What else a result file tells, by its type."""
HEADLINES: dict[str, Callable[[dict[str, Any]], str]] = {"dnas.Verdict": tables_accuracy.headline}
"""What it comes to, by its type."""


def table(content: dict[str, Any]) -> str:
    """A result file as Markdown."""
    return TABLES[content["type"]](content)


def rewrite(text: str) -> str:
    """A README with every block `<!-- results: NAME -->`, `details` and `headline` filled in from results/NAME.json."""
    kinds = {"results": TABLES, "details": DETAILS, "headline": HEADLINES}

    def fill(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind not in kinds:
            raise ValueError(f"a README asks for {kind!r} of {name}; allowed: {', '.join(kinds)}")
        content = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
        shown = kinds[kind][content["type"]](content)
        return f"<!-- {kind}: {name} -->\n{shown}\n<!-- end -->"

    return re.sub(r"<!-- (\w+): (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for readme in READMES:
        readme.write_text(rewrite(readme.read_text(encoding="utf-8")), encoding="utf-8")
