"""The benchmark of BINAS does not train a supernet to rank uniform networks that are trained already."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from binas_cifar10 import SCREENED, screened
from binas_verdict import BUDGETS, RESULT
from pareto_plan import Plan
from pareto_runs import Setting, float_weights


@pytest.mark.parametrize("lost", [False, True])
def test_screened_networks_are_those_of_the_rows_or_none_where_one_is_missing(lost: bool, tmp_path: Path) -> None:
    rules = {
        "5%": ("uniform 3 3 0.5 branch=0 depth=2 kernel=5", "uniform 2 4 0.5 branch=1 depth=2 kernel=5",
               "uniform 2 3 0.666667 branch=1 depth=2 kernel=5"),
        "12%": ("uniform 3 4 1 branch=1 depth=2 kernel=5", "uniform 3 3 1 branch=1 depth=3 kernel=5",
                "uniform 3 4 0.666667 branch=1 depth=3 kernel=5"),
    }  # fmt: skip
    (tmp_path / "rows").mkdir()
    (tmp_path / "float").mkdir()
    shutil.copy(float_weights("elastic_mobilenet"), tmp_path / "float" / "float.safetensors")
    for row in json.loads(RESULT.read_text(encoding="utf-8")):
        if row["method"] == "uniform" and not (
            lost and row["architecture"] == "W3 A3 filters x0.5 kernel 5 depth 2 branch 0"
        ):
            (tmp_path / "rows" / f"{row['key']}.json").write_text(json.dumps(row), encoding="utf-8")
    setting = Setting("data", tmp_path, tmp_path / "rows.json", "elastic_mobilenet", "binas_cifar10")
    with ThreadPoolExecutor(1) as pool:
        for budget_id, known in rules.items():
            given = [*known, "uniform 8 8 0.5 branch=0 depth=2 kernel=3"]
            found = screened(Plan(setting, pool, BUDGETS, budget_id, [0]), given)
            assert len(known) == SCREENED
            assert found == ([] if lost and budget_id == "5%" else list(known))
