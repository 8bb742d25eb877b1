"""What the rows of BINAS' benchmark say: `python benchmarks/binas_verdict.py` writes the verdict and the picture.

From benchmarks/results/binas_cifar10.json alone, by the statistics of the Pareto benchmark.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pareto_verdict import correct, difference, mixed, panel, picture, renamed, summary

from dnas.report.plots import Panel
from quant.files import write_atomically

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "binas_cifar10.json"
LATENCY = RESULTS / "binas_cifar10_latency.json"
VERDICT, PICTURE = RESULTS / "binas_cifar10_verdict.json", RESULTS / "binas_cifar10.png"
METHODS = ("binas", "recentred_once", "uniform", "uniform_longer", "random")
SHOWN = ("binas", "uniform", "random")
"""Of them those in the picture."""
BUDGETS = {
    "5%": {"bops": 0.05}, "12%": {"bops": 0.12},
    "5%, latency 20%": {"bops": 0.05, "latency_us": 0.2}, "12%, latency 30%": {"bops": 0.12, "latency_us": 0.3},
}  # fmt: skip
"""Shares of the full network at 8 bits; without a bound on latency selections at 5 % spend 35 %, at 12 % 69 % of it."""


def verdict(rows: Sequence[dict[str, Any]], table: dict[str, Any] | None = None) -> dict[str, Any]:
    """Means, and paired differences with 95 % intervals, by budget; p-values Holm-corrected over budgets.

    `table`: of latencies; the verdict says how well its sums predict whole networks.
    """
    own, once, counted = (
        renamed(rows, "binas"),
        renamed(rows, "recentred_once"),
        [r for r in rows if r["role"] == "main"],
    )
    content: dict[str, Any] = {"type": "dnas.BinasVerdict", "version": 1, "model": "elastic_mobilenet", "budgets": {}}
    content["float"] = next(r["accuracy"] for r in rows if r["method"] == "float")
    for budget_id, budgets in BUDGETS.items():
        if any(r["budget_id"] == budget_id for r in rows):
            content["budgets"][budget_id] = {
                **budgets, "methods": {m: summary(rows, m, budget_id) for m in METHODS},
                "spent": {
                    name: [r["costs"][name] / limit for r in counted if (r["method"], r["budget_id"]) == ("binas", budget_id)]
                    for name, limit in budgets.items()
                },
                "uniform": sorted({
                    r["architecture"] for r in counted if (r["method"], r["budget_id"]) == ("uniform", budget_id)
                }),
                **{f"binas - {other}": difference(own, other, budget_id) for other in ("uniform", "random")},
                "starts": {
                    method: sorted({r["start"] for r in counted if (r["method"], r["budget_id"]) == (method, budget_id)})
                    for method in METHODS
                },
                "mixed": {
                    other: mixed(rows, ("binas", other), budget_id)
                    for other in ("uniform", "random", "uniform_longer", "recentred_once")
                },
                "validation": difference(own, "uniform", budget_id, "validation_accuracy"),
                "binas - uniform_longer": difference(own, "uniform_longer", budget_id),
                "recentred once": {other: difference(once, other, budget_id) for other in ("uniform", "random")},
            }  # fmt: skip
    kept = ("n", "median_error", "noise", "tau", "tau_interval")
    content["latency"] = table and {name: table["checked"][name] for name in kept}
    for other in ("uniform", "random"):
        correct([budget[f"binas - {other}"] for budget in content["budgets"].values()])
    return content


def panels(found: dict[str, Any]) -> list[Panel]:
    """One for budgets of BOPs alone, one for those that bound latency as well; those without networks are left out."""
    titles = {"CIFAR-10, elastic MobileNet, BOPs": 1, "BOPs and latency": 2}
    groups = {
        title: [name for name in found["budgets"] if len(BUDGETS[name]) == count] for title, count in titles.items()
    }
    return [panel(found, names, title, SHOWN) for title, names in groups.items() if names]


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Writes the verdict and the picture of rows."""
    table = json.loads(LATENCY.read_text(encoding="utf-8")) if LATENCY.exists() else None
    found = verdict(rows, table)
    write_atomically(VERDICT, json.dumps(found, indent=1) + "\n")
    picture(panels(found), PICTURE)


if __name__ == "__main__":
    judge(json.loads(RESULT.read_text(encoding="utf-8")))
