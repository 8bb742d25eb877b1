"""What the report says of an estimator: savings per option, other predictors, and pictures without empty panels."""

import json

import numpy as np
import pytest

from dnas.report.estimator import estimator_pictures
from dnas.search.effects import fit_effects
from dnas.search.judge import HELD, enough, judge_estimator, report
from dnas.search.predictors import PREDICTORS
from dnas.space.choice import Layer
from dnas.space.cost import build_cost
from tests.dnas.test_effects import pool, small, truth


def channels(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    return float(c_in * c_out)


def test_savings_predictors_and_pictures() -> None:
    space = small()
    value = truth(space, joint=0.3)
    records, test = pool(space, value, 300, 0, noise=0.5), pool(space, value, 60, 1)
    estimator = fit_effects(space, records)
    judged = judge_estimator(space, records, test, build_cost(space, "bops"))
    functions = {"latency_us": channels}
    content = json.loads(json.dumps(report(space, estimator, judged, functions), allow_nan=False))
    dearest = space.extreme(dearest=True)
    cost = build_cost(space, "latency_us", functions)
    for entry in content["effects"]:
        wanted = [cost.at(dearest) - cost.at({**dearest, entry["choice"]: i}) for i in range(len(entry["options"]))]
        assert entry["saved"]["latency_us"] == wanted
        assert (max(wanted) > 0) == (entry["kind"] == "filters")
        assert entry["loss_errors"][-1] == 0.0
        if len(entry["options"]) == 2:  # both move by the same, to opposite sides
            assert entry["loss_errors"][0] == pytest.approx(sum(entry["errors"]))
    assert set(content["judged"]["predictors"]) == set(PREDICTORS)
    assert (
        content["judged"]["predictors"]["linear"]["tau"] < content["judged"]["held_out"]["tau"]
    )  # products matter here
    pictures = estimator_pictures(content)
    assert list(pictures) == [
        "effects", "effects per saved MBOP", "effects per saved ms", "interactions", "agreement",
    ]  # fmt: skip
    kinds = {entry["kind"] for entry in content["effects"]}
    assert [len(pictures[name].figure.axes) for name in list(pictures)[:3]] == [len(kinds), len(kinds), 1]
    for picture in pictures.values():
        assert picture.png().startswith(b"\x89PNG")
    without = estimator_pictures(json.loads(json.dumps(report(space, estimator, judged))))
    assert "effects per saved ms" not in without
    assert np.isfinite([entry["tau"] for entry in content["judged"]["sizes"]]).all()
    assert content["judged"]["enough"] == enough([(e["records"], e["tau"]) for e in content["judged"]["sizes"]])


def test_the_smallest_pool_that_holds_the_ranking() -> None:
    near = 0.9 - HELD / 2
    assert enough([(100, 0.9)]) == 100
    assert enough([(100, 0.5), (200, near), (500, 0.93), (1000, 0.9)]) == 200
    assert (
        enough([(100, near), (200, 0.5), (500, near), (1000, 0.9)]) == 500
    )  # a small pool that was lucky does not count
