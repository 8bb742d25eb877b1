"""What the report says of an estimator: savings per option, other predictors, and pictures without empty panels."""

import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dnas.report.estimator import estimator_pictures
from dnas.report.html import render
from dnas.search.budget import Budget
from dnas.search.effects import Estimator, fit_effects, pairs_of, part_of
from dnas.search.judge import HELD, enough, findings, judge_estimator, report
from dnas.search.pool import Pool
from dnas.search.predictors import PREDICTORS
from dnas.select.select import select
from dnas.space.choice import Layer, Space
from dnas.space.cost import build_cost
from tests.dnas.test_effects import elastic, pool, small, truth
from tests.dnas.test_report import Reader
from tests.dnas.test_report import report as example_report


def channels(layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
    return float(c_in * c_out)


def fitted(space: Space) -> tuple[Pool, Pool, Estimator, dict[str, Any]]:
    """Records, others that judge, the estimator, and its judgement."""
    value = truth(space, joint=0.3)
    records, test = pool(space, value, 300, 0, noise=0.5), pool(space, value, 60, 1)
    judged = judge_estimator(space, records, test, build_cost(space, "bops"))
    return records, test, fit_effects(space, records), judged


def test_savings_predictors_and_pictures() -> None:
    space = small()
    records, _, estimator, judged = fitted(space)
    functions = {"latency_us": channels}
    wider = fit_effects(space, records, neighbours=True)
    content = json.loads(json.dumps(report(space, estimator, judged, functions, wider), allow_nan=False))
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
        "effects", "effects per saved MBOP", "effects per saved ms", "interactions",
        "interactions of neighbours", "agreement",
    ]  # fmt: skip
    kinds = {entry["kind"] for entry in content["effects"]}
    assert [len(pictures[name].figure.axes) for name in list(pictures)[:3]] == [len(kinds), len(kinds), 1]
    for picture in pictures.values():
        assert picture.png().startswith(b"\x89PNG")
    inside = [set(pair) for pair in pairs_of(space)]
    assert [set(entry["choices"]) for entry in content["joint"]] == inside
    assert [set(e["choices"]) for e in content["neighbours"]] == [
        set(pair) for pair in pairs_of(space, neighbours=True) if set(pair) not in inside
    ]
    term = next(t for t in wider.design.terms if list(t.choices) == content["neighbours"][0]["choices"])
    assert content["neighbours"][0]["spread"] == pytest.approx(float(np.sqrt((wider.table(term)[0] ** 2).mean())))
    without = estimator_pictures(json.loads(json.dumps(report(space, estimator, judged))))
    assert "effects per saved ms" not in without
    assert np.isfinite([entry["tau"] for entry in content["judged"]["sizes"]]).all()
    assert content["judged"]["enough"] == enough([(e["records"], e["tau"]) for e in content["judged"]["sizes"]])


def test_what_it_promises_of_the_selected_network_is_its_prediction() -> None:
    space = elastic()
    _, test, estimator, judged = fitted(space)
    chosen = select(estimator.scores(space), space, Budget(bops=0.5))
    assert chosen.certificate is not None
    positions = chosen.positions()
    (expected,) = estimator.predict(np.array([[positions[choice.name] for choice in space.choices]]))
    missed = float(np.sqrt(np.mean((estimator.predict(test.positions) - test.accuracy) ** 2)))
    content = example_report(
        estimator=report(space, estimator, judged), certificate=asdict(chosen.certificate),
        gap=[{"network": "selected", "relative": {"bops": 0.05}, "accuracy": 61.25}],
    )  # fmt: skip
    text = Reader(render(content)).text()
    assert (
        f"Selected network: {expected:.1f} % predicted (for left-out sub-networks it is {missed:.1f} points off" in text
    )
    assert "61.2 % in the supernet, 95.4 % retrained" in text
    assert "Selected network" not in Reader(render({**content, "gap": []})).text()


def test_findings_name_the_part_that_pays_most_and_by_how_much() -> None:
    space = elastic()
    depth = {choice.name: choice for choice in space.searched() if choice.kind == "depth"}
    first, second = sorted(depth)
    column = {choice.name: i for i, choice in enumerate(space.choices)}

    def value(positions: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.full(len(positions), 60.0)
        for name, slope in ((first, 0.5), (second, 3.0)):
            found += slope * np.asarray(depth[name].options)[positions[:, column[name]]]
        return found

    sentences = findings(space, fit_effects(space, pool(space, value, 1500, 0, noise=0.2)))
    assert len(sentences) == len({choice.kind for choice in space.searched()})
    (own,) = [sentence for sentence in sentences if sentence.startswith("Depth")]
    found = re.fullmatch(
        r"Depth pays most in (\S+): \+(\S+) \+- (\S+) points per block; least in (\S+): \+(\S+) \+- \S+\.", own
    )
    assert found is not None, own
    assert (found[1], found[4]) == (part_of(second), part_of(first))
    assert (float(found[2]), float(found[5])) == (pytest.approx(3.0, abs=0.06), pytest.approx(0.5, abs=0.06))
    for sentence in sentences:  # the ridge leaves others a hundredth of a point
        assert sentence == own or all(abs(float(slope)) < 0.05 for slope in re.findall(r"[+-]\d\S+(?= \+-)", sentence))


def test_the_smallest_pool_that_holds_the_ranking() -> None:
    near = 0.9 - HELD / 2
    assert enough([(100, 0.9)]) == 100
    assert enough([(100, 0.5), (200, near), (500, 0.93), (1000, 0.9)]) == 200
    assert (
        enough([(100, near), (200, 0.5), (500, near), (1000, 0.9)]) == 500
    )  # a small pool that was lucky does not count
