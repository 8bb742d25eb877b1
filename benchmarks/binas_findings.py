"""What BINAS' estimator says of a network: `python benchmarks/binas_findings.py RUN_FOLDER...`, one run per seed.

From the pools of runs of `dnas experiment=binas_cifar10`: how well it ranks sub-networks that it never saw, how many records
would have done, what the stages took, and what options are worth in every stage, from smallest to largest, where their block
runs, in points and in points per million of bit operations. The paper found that depth and width pay most in deeper stages and
at the first block of each stage: is that so here?
Adds the runs to those of results/binas_findings.json, as means and spreads over all; --anew leaves the earlier ones out.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pareto_runs import stamp
from rich.console import Console
from scipy import stats

from dnas.engine import Engine, EngineConfig
from dnas.search.effects import fit_effects
from dnas.search.judge import findings, judge_estimator
from dnas.search.pool import Pool
from dnas.search.rank import rank_agreement
from dnas.searcher import JUDGED_FILE, POOL_FILE
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from dnas.stages.context import Run, open_folder

RESULT = Path(__file__).parent / "results" / "binas_findings.json"
KINDS = ("depth", "filters", "kernel", "branch", "weight_bits", "act_bits")
TWO_SIDED = 1.96
"""Of one run; of several Student's t decides."""
BOTH = (True, False)
Gain = list[NDArray[np.float64]]
"""Weights of main effects, for every run."""


def gains(estimator: Any) -> list[tuple[tuple[int, int], str, NDArray[np.float64]]]:
    """Stage and block, kind, and the contrast of the largest and the smallest option, of every choice of a stage."""
    found = []
    for term in estimator.design.terms[: estimator.design.mains]:
        parts = term.choices[0].split(".")
        if parts[0] == "stages":
            weights = np.zeros(estimator.design.size)
            weights[term.start + term.size - 1], weights[term.start] = 1.0, -1.0
            found.append(((int(parts[1]), int(parts[2])), parts[-1], weights))
    return found


def mean(estimators: Sequence[Any], kind: str, stages: Sequence[int], blocks: Sequence[bool]) -> Gain:
    """Of the choices of a kind in some stages, in first blocks (True), in others (False): the mean contrast of every run."""
    return [
        np.mean([w for (stage, block), k, w in gains(e) if k == kind and stage in stages and (block == 0) in blocks], 0)
        for e in estimators
    ]


def valued(estimators: Sequence[Any], gain: Gain) -> tuple[float, float]:
    """The mean of contrasts over the runs and its standard error.

    Of several runs that of their spread: supernets differ from each other, too. Of one the estimator's own: what choices have
    in common is in its covariance.
    """
    values, errors = zip(*(e.contrast(weights) for e, weights in zip(estimators, gain, strict=True)), strict=True)
    error = float(stats.sem(values)) if len(values) > 1 else float(errors[0])
    return float(np.mean(values)), error


def by_stage(estimators: Sequence[Any]) -> list[dict[str, Any]]:
    """For every stage and kind of choice the mean gain over its choices and over the runs; of filters also by block."""
    rows = []
    for stage in sorted({stage for (stage, _), _, _ in gains(estimators[0])}):
        row: dict[str, Any] = {"stage": stage}
        for kind in KINDS:
            row[kind] = valued(estimators, mean(estimators, kind, [stage], BOTH))
        row["filters, first block"] = valued(estimators, mean(estimators, "filters", [stage], [True]))
        row["filters, other blocks"] = valued(estimators, mean(estimators, "filters", [stage], [False]))
        rows.append(row)
    return rows


def saved(space: Space) -> list[dict[str, Any]]:
    """MBOPs between the largest and the smallest option, all other choices at the dearest: the mean as in `by_stage`."""
    cost, dearest = build_cost(space, "bops"), space.extreme(dearest=True)
    found: dict[int, dict[str, list[float]]] = {}
    for choice in space.searched():
        parts = choice.name.split(".")
        if parts[0] == "stages":
            spared = (cost.at(dearest) - cost.at({**dearest, choice.name: 0})) / 1e6
            kinds = [parts[-1]]
            if parts[-1] == "filters":
                kinds.append("filters, first block" if parts[2] == "0" else "filters, other blocks")
            for kind in kinds:
                found.setdefault(int(parts[1]), {}).setdefault(kind, []).append(spared)
    return [
        {"stage": stage, **{kind: float(np.mean(values)) for kind, values in found[stage].items()}}
        for stage in sorted(found)
    ]


def claim(estimators: Sequence[Any], more: Gain, less: Gain) -> dict[str, Any]:
    """Whether the first gain is larger than the second by more than chance."""
    found = valued(estimators, [a - b for a, b in zip(more, less, strict=True)])
    return decided(found, len(estimators))


def decided(found: tuple[float, float], runs: int) -> dict[str, Any]:
    """What a mean difference over so many runs and its standard error say of a claim."""
    difference, error = found
    width = error * (TWO_SIDED if runs == 1 else float(stats.t.ppf(0.975, runs - 1)))
    holds = "yes" if difference > width else "no, the opposite" if difference < -width else "open"
    return {"difference": difference, "error": error, "holds": holds}


def claims(estimators: Sequence[Any]) -> dict[str, Any]:
    """The paper's findings, tested."""
    stages = sorted({stage for (stage, _), _, _ in gains(estimators[0])})

    def deeper(kind: str) -> dict[str, Any]:
        return claim(estimators, *(mean(estimators, kind, [stages[end]], BOTH) for end in (-1, 0)))

    return {
        "depth pays more in the last stage than in the first": deeper("depth"),
        "width pays more in the last stage than in the first": deeper("filters"),
        "width pays more in the first block of a stage than in the others": claim(
            estimators, *(mean(estimators, "filters", stages, [first]) for first in (True, False))
        ),
    }


def judged(run: Run, pool: Pool) -> dict[str, Any]:
    """How well an estimator ranks, without the single networks; and one that has effects of neighbouring layers, too."""
    test = Pool.from_json(run.folder.read(JUDGED_FILE, "search"), run.space)
    found = judge_estimator(run.space, pool, test, build_cost(run.space, "bops"))
    neighbours = fit_effects(run.space, pool, neighbours=True).predict(test.positions)
    found["neighbours"] = asdict(rank_agreement(neighbours, test.accuracy))
    return {key: value for key, value in found.items() if key not in ("predicted", "measured", "costs")}


def seconds(run: Run) -> dict[str, Any]:
    """What a run's stages took, all attempts of a resumed one together; without what it has not done."""
    finished = {record["stage"]: record["seconds"] for record in run.folder.stages()}

    def read(name: str) -> dict[str, Any]:
        return dict(run.folder.read_json(name, "search")) if run.folder.file(name).exists() else {}

    front = read("frontier.json")
    stages = {
        "float training": sum(numbers["seconds"] for numbers in read("float.json").get("history", [])) or None,
        "supernet, pool and estimator": read("search.json").get("seconds"),
        "selection": read("select.json").get("seconds"),
        "selection with its checks in the supernet": finished.get("select"),
        "front": front.get("seconds"),
    }
    return {
        "stages": {name: value for name, value in stages.items() if value is not None},
        "networks": len(front.get("points", [])), "threads": run.config.engine.threads,
    }  # fmt: skip


def pooled(one: Sequence[float], runs: int, other: Sequence[float], others: int) -> tuple[float, float]:
    """Mean and standard error over runs and others, from those over each; the error of a single run is of no spread."""
    count = runs + others
    mean = (runs * one[0] + others * other[0]) / count
    within = sum(n * (n - 1) * error**2 for n, (_, error) in ((runs, one), (others, other)) if n > 1)
    between = runs * (one[0] - mean) ** 2 + others * (other[0] - mean) ** 2
    return mean, math.sqrt((within + between) / (count - 1) / count)


def added(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The findings of other runs, together with those before.

    Raises:
        ValueError: both have a run of one seed.
    """
    runs, others = len(before["seeds"]), len(new["seeds"])
    twice = sorted(set(before["seeds"]) & set(new["seeds"]))
    if twice:
        raise ValueError(
            f"{RESULT} has runs of seeds {', '.join(map(str, twice))} already; leave them out, or give --anew"
        )
    lists = {name: [*before[name], *new[name]] for name in ("seeds", "judged", "findings", "seconds")}
    stages = [
        {"stage": one["stage"]}
        | {name: pooled(one[name], runs, other[name], others) for name in one if name != "stage"}
        for one, other in zip(before["stages"], new["stages"], strict=True)
    ]
    found = {}
    for name, one in before["claims"].items():
        ends = [(claim["difference"], claim["error"]) for claim in (one, new["claims"][name])]
        found[name] = decided(pooled(ends[0], runs, ends[1], others), runs + others)
    return {**new, **lists, "stages": stages, "claims": found}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--anew", action="store_true", help="without the runs that the result has")
    given, quiet = parser.parse_args(), Console(quiet=True)
    runs = [open_folder(folder, Engine(EngineConfig(), quiet), quiet) for folder in given.runs]
    pools = [Pool.from_json(run.folder.read(POOL_FILE, "search"), run.space) for run in runs]
    estimators = [fit_effects(run.space, pool) for run, pool in zip(runs, pools, strict=True)]
    content = {
        "type": "dnas.BinasFindings", "version": 1, "seeds": [run.config.seed for run in runs],
        "stages": by_stage(estimators), "saved": saved(runs[0].space), "claims": claims(estimators),
        "judged": [judged(run, pool) for run, pool in zip(runs, pools, strict=True)],
        "findings": [findings(run.space, estimator) for run, estimator in zip(runs, estimators, strict=True)], **stamp(0.0),
        "seconds": [seconds(run) for run in runs],
    }  # fmt: skip
    if RESULT.exists() and not given.anew:
        content = added(json.loads(RESULT.read_text(encoding="utf-8")), content)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["claims"], indent=1))


if __name__ == "__main__":
    main()
