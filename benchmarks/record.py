"""Commits what a run or a sweep found: `python benchmarks/record.py RUN_OR_PARETO_FOLDER NAME`.

Writes benchmarks/results/NAME.json from report.json or pareto.json: rows, costs, seeds, seconds, versions, commit; without
paths of the machine that ran it.
"""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
KEPT = (
    "type", "version", "model", "data", "seed", "budgets", "limits", "reference", "convention", "rows", "layers", "gap",
    "certificate", "verify", "stages", "versions", "machine", "commit", "networks", "runs",
)  # fmt: skip


def record(folder: Path, name: str) -> Path:
    """Writes the result file and returns its path."""
    report, pareto = folder / "report.json", folder / "pareto.json"
    content: dict[str, Any] = json.loads((report if report.exists() else pareto).read_text(encoding="utf-8"))
    kept = {key: content[key] for key in KEPT if key in content}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(record(Path(sys.argv[1]), sys.argv[2]))
