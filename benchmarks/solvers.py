"""The selection's solvers against each other: `python benchmarks/solvers.py` writes results/solvers.json.

For every instance and method: seconds, value, bound and gap, in the instance's own units; the heuristics' bound is the
Lagrangian one. A front of 30 budgets per network, too. What is in the file already stays, but for instances and networks whose
name contains the text of `--again` (`--again ''` measures all of them).
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from solver_instances import NETWORKS, PRESETS, Instance, network_space, scores_of

from dnas.run import source_commit
from dnas.search.budget import BudgetError
from dnas.select.decomposition import build_graph
from dnas.select.highs import flow_size, solve_highs
from dnas.select.pareto_front import frontier
from dnas.select.solvers import TIE, solve_problem, unscaled
from dnas.select.ties import scaled
from dnas.space.processor import processor

RESULT = Path(__file__).parent / "results" / "solvers.json"
TWO, THREE = ("bops", "weight_bits"), ("bops", "weight_bits", "activation_traffic_bits")
PEAK = ("bops", "peak_activation_bits")
LARGE = {(50, 40), (100, 60)}
INSTANCES = [
    *(Instance("chain", share, seed=seed, size=(20, 25)) for seed in (0, 1) for share in (0.1, 0.3)),
    *(Instance("chain", share, costs, size=(20, 25)) for costs in (TWO, THREE) for share in (0.1, 0.3)),
    *(Instance("chain", share, size=size) for size in sorted(LARGE) for share in (0.1, 0.3)),
    *(Instance(kind, share) for kind in ("resnet8", "resnet20", "resnet56", "mobilenetv2") for share in (0.1, 0.3)),
    *(Instance(kind, 0.3, costs) for kind in ("resnet20", "resnet56", "mobilenetv2") for costs in (TWO, THREE, PEAK)),
    *(Instance(kind, share) for kind in PRESETS for share in (0.1, 0.3)),
    *(Instance(kind, 0.3, TWO) for kind in PRESETS),
]
METHODS = ("labels", "highs_flow", "highs_conditional", "frank_wolfe", "evolution", "random", "cp_sat", "scip")
SLOW = ("cp_sat", "scip")
"""Methods that run on small instances with one budget only."""


def applies(method: str, instance: Instance, size: int) -> bool:
    if method in SLOW:
        small = instance.size not in LARGE and instance.kind in ("chain", "resnet8", "resnet20")
        return small and instance.seed == 0 and len(instance.costs) == 1
    return method != "highs_flow" or size <= 200_000


def measure(instance: Instance, time_limit: float) -> dict[str, Any]:
    problem = instance.problem()
    size = flow_size(problem)
    row: dict[str, Any] = {
        "instance": instance.name,
        "choices": sum(n > 1 for n in problem.sizes.values()),
        "flow_columns": size,
        "arcs": build_graph(problem).arcs,
        "limits": dict(problem.limits or {}),
        "methods": {},
        "commit": source_commit(),
        "processor": processor(),
    }
    for method in METHODS:
        if not applies(method, instance, size):
            continue
        start = time.perf_counter()
        try:
            if method.startswith("highs"):
                loose, scale = scaled(problem, TIE)
                found = solve_highs(loose, time_limit, conditional=method == "highs_conditional")
                found = unscaled(found, problem, scale)
            else:
                found = solve_problem(problem, method, time_limit)
        except BudgetError as error:
            row["methods"][method] = {"seconds": round(time.perf_counter() - start, 3), "error": str(error)}
            continue
        assert problem.holds(found.positions)
        row["methods"][method] = {
            "seconds": round(time.perf_counter() - start, 3), "value": found.value, "bound": found.bound, "gap": found.gap,
        }  # fmt: skip
        print(f"{instance.name:60} {method:18} {row['methods'][method]}", flush=True)
    return row


def front(kind: str) -> dict[str, Any]:
    space = network_space(kind)
    scores = scores_of(kind, space, 0)
    start = time.perf_counter()
    found = frontier(scores, space, "bops", 30)
    seconds = round(time.perf_counter() - start, 3)
    gap = max(a.certificate.gap for a in found if a.certificate)
    return {
        "network": kind, "seconds": seconds, "architectures": len(found), "largest_gap": gap, "commit": source_commit(),
        "processor": processor(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", help="measures instances and networks anew whose name contains this")
    parser.add_argument("--time-limit", type=float, default=10.0)
    given = parser.parse_args()
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"rows": [], "fronts": []}

    def kept(name: str) -> bool:
        return given.again is None or given.again not in name

    rows = {row["instance"]: row for row in known["rows"] if kept(row["instance"])}
    fronts = {row["network"]: row for row in known["fronts"] if kept(row["network"])}
    for instance in INSTANCES:
        if instance.name not in rows:
            rows[instance.name] = measure(instance, given.time_limit)
    for kind in (*NETWORKS, *PRESETS):
        if kind not in fronts:
            fronts[kind] = front(kind)
    content = {
        "type": "dnas.Solvers",
        "version": 1,
        "versions": {name: version(name) for name in ("numpy", "scipy", "ortools", "pyscipopt")},
        "machine": {"cores": os.cpu_count(), "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))},
        "time_limit": given.time_limit,
        "rows": [rows[instance.name] for instance in INSTANCES],
        "fronts": [fronts[kind] for kind in (*NETWORKS, *PRESETS)],
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
