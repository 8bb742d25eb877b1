"""The thesis' grid: pairs are joint, both parts cost alike, and no seed serves two networks."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import thesis_grid
from pareto_runs import Setting
from tables import table
from thesis_grid import COMPOSITIONS, FIRST, PAIRS, PARTS, SEEDS, drawn, next_tensors, restore, seed_of, summary, train

import dnas
from dnas.models.resnet import resnet8
from dnas.space.choice import Space


@pytest.fixture(scope="module")
def space() -> Space:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return dnas.build_space(
        resnet8(3, 10).eval(),
        (images,),
        (2, 3, 8),
        (2, 3, 4, 8),
        (1.0,),
        granularity="filter",
        act_granularity="filter",
    )


def test_channels_are_quantised_next_where_the_network_reads_them(space: Space) -> None:
    """As `BasicBlock.forward` has it: a block's second convolution and its shortcut end in one sum."""
    found = next_tensors(space)
    assert found.pop("fc") is None
    assert {layer: str(tensor).removesuffix(".act_bits") for layer, tensor in found.items()} == {
        "conv1": "layer1.0.conv1", "layer1.0.conv1": "layer1.0.conv2", "layer1.0.conv2": "layer2.0.conv1",
        "layer2.0.conv1": "layer2.0.conv2", "layer2.0.conv2": "layer3.0.conv1", "layer2.0.downsample.0": "layer3.0.conv1",
        "layer3.0.conv1": "layer3.0.conv2", "layer3.0.conv2": "fc", "layer3.0.downsample.0": "fc",
    }  # fmt: skip


def pairs(architecture: Any, layer: str, tensor: str) -> set[tuple[int, int]]:
    options = architecture.options
    return set(zip(options[f"{layer}.weight_bits"], options[tensor], strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_compositions_are_of_joint_pairs_at_the_cost_of_three_bits(space: Space, part: str) -> None:
    even = 3 * 3 / 64
    for number in range(4):
        found = drawn(space, part, number)
        assert found == drawn(space, part, number)
        assert found != drawn(space, part, number + 1)
        varied = {layer: tensor for layer, tensor in next_tensors(space).items() if tensor}
        for layer, tensor in varied.items():
            assert pairs(found, layer, tensor) <= set(PAIRS)
        if part == PARTS[0]:
            assert all(pairs(found, layer, tensor) == {(3, 3)} for layer, tensor in varied.items() if layer != FIRST)
        # the images have 8 bits, everything else of the reference 3
        macs = {
            layer.name: layer.positions * len(layer.inputs) * layer.kernel * len(layer.outputs)
            for layer in space.layers
        }
        share = sum(count * (24 if name == FIRST else 9) for name, count in macs.items()) / sum(macs.values()) / 64
        assert share > even
        assert 0.96 * share <= float(found.cost("bops", relative=True)) <= share * (1 + 1e-9)


def test_no_two_networks_share_a_seed() -> None:
    seeds = [seed_of(part, number, turn) for part in PARTS for number in range(COMPOSITIONS) for turn in range(SEEDS)]
    assert len(set(seeds)) == len(seeds) == len(PARTS) * COMPOSITIONS * SEEDS


def rows(architecture: float, retraining: float, common: float) -> list[dict[str, Any]]:
    """Accuracies with known deviations; `common` is a seed's effect on every network that has it."""
    generator = np.random.default_rng(1)
    effects = {seed: common * generator.standard_normal() for seed in range(4000)}
    return [
        {
            "part": part, "composition": number, "retrain_seed": seed_of(part, number, turn), "spent": 0.97 + 0.01 * turn,
            "accuracy": 70 + own + retraining * generator.standard_normal() + effects[seed_of(part, number, turn)],
            "validation_accuracy": 70 + 2 * own + retraining * generator.standard_normal(),
        }
        for part in PARTS for number in range(400) for own in [architecture * generator.standard_normal()]
        for turn in range(SEEDS)
    ]  # fmt: skip


def test_the_summary_finds_the_deviations_and_the_table_shows_them() -> None:
    found = summary(rows(0.5, 0.3, 0.0))
    for part in PARTS:
        assert found[part]["architecture"]["sd"] == pytest.approx(0.5, rel=0.1)
        assert found[part]["retraining"]["sd"] == pytest.approx(0.3, rel=0.1)
        assert found[part]["validation"]["architecture"]["sd"] == pytest.approx(1.0, rel=0.1)
        assert found[part]["validation"]["retraining"]["sd"] == pytest.approx(0.3, rel=0.1)
        assert found[part]["spent"] == [0.97, pytest.approx(0.99)]
    # with seeds of their own what a seed does to a network is retraining, whatever it would do to the others
    assert summary(rows(0.5, 0.3, 0.4))[PARTS[0]]["retraining"]["sd"] == pytest.approx(0.5, rel=0.1)
    text = table({"type": "dnas.ThesisGrid", "version": 1, "summary": found, "rows": []})
    assert all(part in text for part in PARTS)
    assert "400 x 3 | 97.0% to 99.0%" in text


def test_committed_rows_of_this_float_network_are_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            "part": PARTS[1],
            "composition": 2,
            "retrain_seed": seed_of(PARTS[1], 2, turn),
            "float": network,
            "accuracy": 50.0,
        }
        for turn, network in enumerate(("here", "another"))
    ]
    (tmp_path / "grid.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(thesis_grid, "RESULT", tmp_path / "grid.json")
    setting = Setting("data", tmp_path / "runs", tmp_path / "rows.json", "model", "experiment")
    restore(setting, "here")
    assert [json.loads(file.read_text()) for file in (tmp_path / "runs" / "grid_rows").iterdir()] == rows[:1]
    assert train(setting, PARTS[1], 2, 0) == rows[0]  # without data, so that nothing can be trained


def test_the_committed_summary_is_that_of_the_committed_rows() -> None:
    content = json.loads(thesis_grid.RESULT.read_text(encoding="utf-8"))
    for part, found in summary(content["rows"]).items():
        for name in ("architecture", "retraining"):
            assert found[name]["sd"] == pytest.approx(content["summary"][part][name]["sd"])
            again = content["summary"][part]["validation"][name]
            assert found["validation"][name]["sd"] == pytest.approx(again["sd"])
        assert found["n"] == content["summary"][part]["n"]
