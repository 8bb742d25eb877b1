"""The README's tables of results, from the committed files: `python benchmarks/tables.py` rewrites them in place."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
HEADER = (
    "| network | accuracy % | BOPs, of 8-bit | weight bytes | search, in QAT runs |\n| --- | --- | --- | --- | --- |"
)
LABELS = {"float": "float", "uniform": "best uniform", "random": "random, equal cost", "ours": "**dnas**"}


def _row(found: dict[str, Any]) -> str:
    spread, n = found.get("accuracy_sd"), found.get("n", 1)
    accuracy = f"{found['accuracy']:.2f}" + (f" ± {spread:.2f} ({n})" if spread is not None else " (1)")
    share = found["relative"].get("bops")
    cost = found.get("search_cost")
    return (
        f"| {LABELS[found['method']]} | {accuracy} | {share:.2%} | {found['weight_bytes']:,.0f} | "
        f"{'' if cost is None else f'{cost:.2f}'} |"
    )


def table(content: dict[str, Any]) -> str:
    """A result file as Markdown."""
    if content["type"] == "dnas.Pareto":
        (network,) = content["networks"]
        rows = [network["float"], *sorted(network["groups"], key=lambda g: list(LABELS).index(g["method"]))]
        lines = [_row(row) for row in rows if row]
        for pair in network["paired"]:
            if pair["low"] is not None:
                lines.append(
                    f"| dnas - {pair['minus']}, paired | {pair['mean']:+.2f}, 95 % interval {pair['low']:+.2f} to "
                    f"{pair['high']:+.2f} | | | |"
                )
        return "\n".join([HEADER, *lines])
    return "\n".join([HEADER, *(_row(row) for row in content["rows"])])


def rewrite(text: str) -> str:
    """The README with every `<!-- results: NAME -->` block filled in from benchmarks/results/NAME.json."""

    def fill(match: re.Match[str]) -> str:
        path = HERE / "results" / f"{match.group(1)}.json"
        found = table(json.loads(path.read_text(encoding="utf-8")))
        return f"<!-- results: {match.group(1)} -->\n{found}\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(rewrite(README.read_text(encoding="utf-8")), encoding="utf-8")
