"""What BINAS' estimator says of a network: `python benchmarks/binas_findings.py RUN_FOLDER...`, one run per seed.

From the `estimator.json` of runs of `dnas experiment=binas_cifar10`: how well it ranks sub-networks that it never saw, how
many records would have done, and what options are worth in every stage, from the smallest to the largest, where their block
runs. The paper found that depth and width pay most in deeper stages and at the first block of each stage: is that so here?
Writes results/binas_findings.json.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pareto_runs import stamp

RESULT = Path(__file__).parent / "results" / "binas_findings.json"
KINDS = ("depth", "filters", "kernel", "branch", "weight_bits", "act_bits")
TWO_SIDED = 1.96


def gain(entry: dict[str, Any]) -> tuple[float, float]:
    """Points of accuracy from the smallest to the largest option, and their standard error (of uncorrelated effects)."""
    return entry["effects"][-1] - entry["effects"][0], float(np.hypot(entry["errors"][-1], entry["errors"][0]))


def mean(gains: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """Mean of gains and its standard error."""
    values, errors = zip(*gains, strict=True) if (gains := list(gains)) else ((), ())
    return (float(np.mean(values)), float(np.linalg.norm(errors)) / len(values)) if values else None


def place(choice: str) -> tuple[int, int] | None:
    """Stage and block that a choice is in; None outside of the elastic stages."""
    parts = choice.split(".")
    return (int(parts[1]), int(parts[2])) if parts[0] == "stages" else None


def by_stage(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every stage and kind of choice the mean gain over its choices and over the runs; of filters also by block."""
    found: dict[tuple[int, str, bool], list[tuple[float, float]]] = {}
    for report in reports:
        for entry in report["effects"]:
            where = place(entry["choice"])
            if where is not None:
                found.setdefault((where[0], entry["kind"], where[1] == 0), []).append(gain(entry))
    rows = []
    for stage in sorted({key[0] for key in found}):
        row: dict[str, Any] = {"stage": stage}
        for kind in KINDS:
            row[kind] = mean([*found.get((stage, kind, True), []), *found.get((stage, kind, False), [])])
        row["filters, first block"] = mean(found[stage, "filters", True])
        row["filters, other blocks"] = mean(found[stage, "filters", False])
        rows.append(row)
    return rows


def claim(more: tuple[float, float], less: tuple[float, float]) -> dict[str, Any]:
    """Whether the first gain is larger than the second by more than chance."""
    difference, error = more[0] - less[0], float(np.hypot(more[1], less[1]))
    holds = (
        "yes" if difference > TWO_SIDED * error else "no, the opposite" if difference < -TWO_SIDED * error else "open"
    )
    return {"difference": difference, "error": error, "holds": holds}


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The paper's findings, tested."""
    first, last = rows[0], rows[-1]
    starts, others = (
        mean(row[f"filters, {blocks} block{end}"] for row in rows) for blocks, end in (("first", ""), ("other", "s"))
    )
    assert starts is not None
    assert others is not None
    return {
        "depth pays more in the last stage than in the first": claim(last["depth"], first["depth"]),
        "width pays more in the last stage than in the first": claim(last["filters"], first["filters"]),
        "width pays more in the first block of a stage than in the others": claim(starts, others),
    }


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """How well an estimator ranks, without the single networks."""
    return {key: value for key, value in report["judged"].items() if key not in ("predicted", "measured", "costs")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    reports = [json.loads((run / "estimator.json").read_text(encoding="utf-8")) for run in parser.parse_args().runs]
    rows = by_stage(reports)
    content = {
        "type": "dnas.BinasFindings", "version": 1, "stages": rows, "claims": claims(rows),
        "judged": [judged(report) for report in reports], "findings": [report["findings"] for report in reports], **stamp(0.0),
    }  # fmt: skip
    del content["seconds"]
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["claims"], indent=1))


if __name__ == "__main__":
    main()
