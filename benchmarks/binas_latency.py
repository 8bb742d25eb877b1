"""Are networks as fast as the latency table promised? `python benchmarks/binas_latency.py RUN_FOLDER` times them whole.

The networks of results/binas_cifar10.json that count, exported as for deployment and timed in onnxruntime beside the full one
at 8 bits, every one in turn; and what the table promised of them: the sum over its layers that the selection had to keep within
the budget. RUN_FOLDER, of `dnas experiment=binas_cifar10`, gives the space and the images. All of it twice: how far a network
is from itself. Writes results/binas_latency.json.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from binas_verdict import BUDGETS, LATENCY, RESULT, SHOWN
from pareto_runs import stamp
from rich.console import Console

from dnas.engine import Engine, EngineConfig
from dnas.search.rank import rank_agreement
from dnas.select.reference import dearest_architecture
from dnas.space.architecture import Architecture
from dnas.space.latency import LatencyTable, MeasureConfig, machine, microseconds, runner
from dnas.stages.context import Run, open_folder
from dnas.stages.measure import exported_file
from quant.files import write_atomically

TIMED = RESULT.with_name("binas_latency.json")
CONFIG = MeasureConfig(seconds=0.1)


def networks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every network that counts for a budget, once, however often it was trained."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["role"] == "main" and row["method"] in SHOWN:
            own = {"method": row["method"], "budget_id": row["budget_id"], "options": row["options"]}
            found.setdefault(json.dumps(own, sort_keys=True), own)
    return list(found.values())


def timed(run: Run, chosen: Sequence[Mapping[str, Any]], table: LatencyTable) -> list[dict[str, Any]]:
    """Shares of the full network's latency: what the table promises, and what the whole network takes, timed twice."""
    supernet = run.supernet(trained=True).eval()
    images, _ = next(iter(run.batches("validation", 2, False).epoch(0)))
    functions = {**run.functions, "latency_us": table.cost()}
    architectures = [Architecture(run.space, one["options"], functions=functions) for one in chosen]
    files = [
        exported_file(supernet, architecture, images[:1], CONFIG.precision)
        for architecture in (*architectures, dearest_architecture(run.space))
    ]
    runs = [runner(file, CONFIG.threads, CONFIG.batch) for file in files]
    first, second = (np.array(microseconds(runs, CONFIG.rounds, CONFIG.seconds)) for _ in range(2))
    found = []
    for one, architecture, times in zip(chosen, architectures, zip(first, second, strict=True), strict=False):
        shares = [time / full for time, full in zip(times, (first[-1], second[-1]), strict=True)]
        found.append({
            "method": one["method"], "budget_id": one["budget_id"],
            "promised": float(architecture.cost("latency_us", relative=True)), "measured": [float(s) for s in shares],
        })  # fmt: skip
    return found


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By budget and method the means; over all networks how far promises are off, in shares of the time that was measured."""
    measured = np.mean([one["measured"] for one in found], axis=1)
    promised = np.array([one["promised"] for one in found])
    twice = np.array([one["measured"] for one in found])
    content: dict[str, Any] = {
        "n": len(found), "ranks": asdict(rank_agreement(promised, measured)),
        "median_error": float(np.median(np.abs(promised - measured) / measured)),
        "noise": float(np.median(np.abs(twice[:, 0] - twice[:, 1]) / measured)), "budgets": {},
    }  # fmt: skip
    for budget_id in BUDGETS:
        content["budgets"][budget_id] = {}
        for method in SHOWN:
            own = [i for i, one in enumerate(found) if (one["method"], one["budget_id"]) == (method, budget_id)]
            if own:
                content["budgets"][budget_id][method] = {
                    "n": len(own), "promised": float(promised[own].mean()), "measured": float(measured[own].mean()),
                    "most": float(measured[own].max()),
                }  # fmt: skip
    return content


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    quiet = Console(quiet=True)
    run = open_folder(parser.parse_args().run, Engine(EngineConfig(threads=1), quiet), quiet)
    table = LatencyTable.from_json(LATENCY.read_text(encoding="utf-8"))
    found = timed(run, networks(json.loads(RESULT.read_text(encoding="utf-8"))), table)
    content = {
        "type": "dnas.BinasLatency", "version": 1, "table": dict(table.machine), "here": machine(CONFIG), **summary(found),
        "networks": found, **stamp(0.0),
    }  # fmt: skip
    del content["seconds"]
    write_atomically(TIMED, json.dumps(content, indent=1) + "\n")
    print({name: value for name, value in content.items() if name in ("n", "median_error", "noise", "budgets")})


if __name__ == "__main__":
    main()
