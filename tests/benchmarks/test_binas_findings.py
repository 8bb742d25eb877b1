"""The paper's findings are read off the right effects: gains from the smallest to the largest option, by stage and by block."""

import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from binas_findings import KINDS, added, by_stage, claim, claims, saved, seconds
from tables import table
from tables_estimators import stage_seconds

import dnas
from dnas.models import elastic_mobilenet
from dnas.run import RunFolder


def estimator(shift: float, variance: float = 0.01) -> Any:
    """Two stages of three blocks; of every choice the middle one of three options is not looked at."""
    values = {f"stages.{s}.0.depth": 1.0 + 2 * s + shift for s in (0, 1)}
    values |= {f"stages.{s}.{b}.expand.0.filters": 4.0 * (b == 0) + b - 3 * s for s in (0, 1) for b in range(3)}
    values |= {f"stages.{s}.0.x.{kind}": 0.0 for s in (0, 1) for kind in KINDS if kind not in ("depth", "filters")}
    values["last.0.filters"] = 99.0
    terms = [SimpleNamespace(choices=(name,), start=3 * i, size=3) for i, name in enumerate(values)]
    effects = np.array([part for gain in values.values() for part in (-gain / 3, 77.0, 2 * gain / 3)])

    def contrast(weights: np.ndarray) -> tuple[float, float]:
        return float(weights @ effects), float(np.sqrt(variance * weights @ weights))

    return SimpleNamespace(design=SimpleNamespace(terms=terms, mains=len(terms), size=len(effects)), contrast=contrast)


def test_gains_by_stage_and_what_they_say() -> None:
    runs = [estimator(0.0), estimator(0.2)]
    rows = by_stage(runs)
    assert [row["stage"] for row in rows] == [0, 1]
    assert rows[0]["depth"] == pytest.approx((1.1, 0.1))  # of the spread between both runs
    assert rows[0]["filters, first block"][0] == pytest.approx(4.0)
    assert by_stage(runs[:1])[0]["filters, other blocks"] == pytest.approx((1.5, (2 * 0.01 / 2) ** 0.5))
    assert rows[1]["filters"][0] == pytest.approx((4 + 1 + 2) / 3 - 3)
    found = claims(runs)
    assert found["depth pays more in the last stage than in the first"]["holds"] == "yes"
    assert found["width pays more in the last stage than in the first"]["holds"] == "no, the opposite"
    starts = found["width pays more in the first block of a stage than in the others"]
    assert starts["difference"] == pytest.approx(2.5)
    assert starts["holds"] == "yes"
    assert {claim["holds"] for claim in claims([estimator(0.0, 100.0)]).values()} == {"open"}


@pytest.mark.parametrize("shifts", [(0.0, 0.2, 0.7), (0.0, 0.2, 0.7, 0.1)], ids=["one run is added", "two are"])
def test_findings_of_runs_that_are_added_are_those_of_all_at_once(shifts: tuple[float, ...]) -> None:
    runs = [estimator(shift) for shift in shifts]
    before, new, together = (
        {
            "seeds": list(range(len(shifts)))[part], "stages": by_stage(runs[part]), "claims": claims(runs[part]),
            "judged": [0] * len(runs[part]), "findings": [], "seconds": [],
        }
        for part in (slice(2), slice(2, None), slice(None))
    )  # fmt: skip
    found = added(before, new)
    assert (found["seeds"], found["judged"]) == (together["seeds"], together["judged"])
    for row, expected in zip(found["stages"], together["stages"], strict=True):
        for name in expected:
            assert row[name] == pytest.approx(expected[name])
    for name, one in together["claims"].items():
        assert found["claims"][name]["holds"] == one["holds"]
        assert found["claims"][name]["difference"] == pytest.approx(one["difference"])
        assert found["claims"][name]["error"] == pytest.approx(one["error"])
    with pytest.raises(ValueError, match="runs of seeds 0, 1 already"):
        added(found, before)


def test_what_options_save_is_that_of_the_dearest_network() -> None:
    """Of kernels and branches in closed form: their layers' multiplications, at eight bits each, counted by hooks."""
    model = elastic_mobilenet(
        3, 10, stem=(8, 8), stages=(8, 12), strides=(1, 2), last=(16, 16), hard_swish_from=1
    ).eval()
    macs: dict[str, int] = {}

    def hook(name: str) -> Any:
        def count(module: Any, _: Any, output: torch.Tensor) -> None:
            macs[name] = output[0].numel() * module.weight[0].numel()

        return count

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook(name))
    x = torch.randn(1, 3, 16, 16)
    model(x)
    space = dnas.build_space(model, x, (4, 8), (8,), (0.5, 1.0), kernels=(3, 5), min_depth=2, branches=("*.se",))
    rows = saved(space)
    assert [row["stage"] for row in rows] == [0, 1]
    for row in rows:
        own = {name: count for name, count in macs.items() if name.startswith(f"stages.{row['stage']}.")}
        wide = [
            n * 16 / 25 for name, n in own.items() if getattr(model.get_submodule(name), "kernel_size", 0) == (5, 5)
        ]
        assert row["kernel"] == pytest.approx(64 * statistics.mean(wide) / 1e6)
        beside = sum(count for name, count in own.items() if ".se." in name)
        assert row["branch"] == pytest.approx(64 * beside / len(wide) / 1e6)
        assert 0 < row["weight_bits"] < row["depth"]


def test_what_differs_between_supernets_is_not_taken_for_found() -> None:
    """Errors within a run are small here; Student's t over the runs decides."""

    def valued_at(value: float) -> Any:
        return SimpleNamespace(contrast=lambda weights: (value * weights[0], 0.01))

    def holds(*values: float) -> str:
        gain = [np.ones(1)] * len(values)
        return str(claim([valued_at(v) for v in values], gain, [np.zeros(1)] * len(values))["holds"])

    assert stats.ttest_1samp([1.0, -0.2, 0.4], 0).pvalue > 0.05 > stats.ttest_1samp([1.0, 0.8, 0.9], 0).pvalue
    assert (holds(1.0, -0.2, 0.4), holds(1.0, 0.8, 0.9), holds(-1.0, -0.8, -0.9)) == ("open", "yes", "no, the opposite")
    assert holds(0.4) == "yes"


def test_seconds_are_those_that_the_run_folder_holds(tmp_path: Path) -> None:
    """Of a resumed stage all attempts, which the record of stages does not have."""
    folder = RunFolder(tmp_path)
    run: Any = SimpleNamespace(folder=folder, config=SimpleNamespace(engine=SimpleNamespace(threads=1)))
    folder.write_json("stages.json", [{"stage": "search", "seconds": 5.0}, {"stage": "select", "seconds": 6.0}])
    folder.write_json("search.json", {"seconds": 1624.0})
    judged = "selection with its checks in the supernet"
    assert seconds(run)["stages"] == {"supernet, pool and estimator": 1624.0, judged: 6.0}
    folder.write_json("select.json", {"seconds": 0.26})
    folder.write_json("float.json", {"history": [{"seconds": 400.0}, {"seconds": 500.0}]})
    folder.write_json("frontier.json", {"points": [{}] * 40, "seconds": 12.0})
    stages = (
        f"float training 900, supernet, pool and estimator 1,624, selection 0.3, {judged} 6.0, front 12 (40 networks)"
    )
    assert stage_seconds(seconds(run)) == f"Seconds, engine.threads=1: {stages}."


def test_the_table_shows_the_fastest_run_and_the_slowest() -> None:
    runs = [{"stages": {"selection": value}, "networks": 0, "threads": 1} for value in (9.0, 4.0, 7.0)]
    content = {"type": "dnas.BinasFindings", "stages": [], "claims": {}, "judged": [], "seconds": runs}
    assert table(content).endswith(
        "The fastest of 3 runs. Seconds, engine.threads=1: selection 4.0.\n"
        "The slowest, on a slower processor or beside other work. Seconds, engine.threads=1: selection 9.0."
    )
    assert table({**content, "seconds": runs[:1]}).endswith("\nSeconds, engine.threads=1: selection 9.0.")


def test_the_table_has_the_ranks_of_every_seed_and_nothing_where_a_run_has_no_predictor() -> None:
    agreed = {"tau": 0.5, "tau_interval": (0.25, 0.75)}
    one = {
        **dict.fromkeys(("held_out", "band", "cost alone", "cost alone in band"), agreed), "enough": 1000,
        "sizes": [{"records": 2000}], "predictors": {"linear": {"tau": 0.4}},
    }  # fmt: skip
    other = {**one, "neighbours": {"tau": 0.6}, "predictors": {"trees": {"tau": 0.3}}}
    content = {"type": "dnas.BinasFindings", "seeds": [0, 7], "stages": [], "claims": {}, "judged": [one, other]}
    first, second = table(content).splitlines()[-2:]
    assert first == f"| seed 0 |{' 0.50, 0.25 to 0.75 |' * 4} 1,000 of 2,000 |  | 0.40 |  |"
    assert second == f"| seed 7 |{' 0.50, 0.25 to 0.75 |' * 4} 1,000 of 2,000 | 0.60 |  | 0.30 |"
