"""Energy by a table: against the other costs, which it is a weighted sum of, by hand, and as a budget."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, Attention, Chain, example

import dnas
from dnas.config import ConfigError, parse_config
from dnas.models.elastic_mobilenet import elastic_mobilenet
from dnas.search.scores import Scores
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.cost import Cost, build_cost, reference_cost
from dnas.space.energy import ENERGY, EnergyConfig
from dnas.stages.context import open_folder
from tests.small import SMALL
from tests.small import dnas as command

CONFIG = EnergyConfig(product=0.3, addition=0.05, weight_bit=0.7, activation_bit=0.11)
FUNCTIONS = {ENERGY: CONFIG.table}
PARTS = {"bops": 0.3 / 64, "macs": 0.05, "weight_bits": 0.7, "activation_traffic_bits": 0.11}
"""Energy without measured numbers is this sum of costs that have tests of their own."""


def space_of(name: str) -> Space:
    if name == "elastic_mobilenet":
        kinds: dict[str, Any] = {"kernels": (3, 5), "min_depth": 2, "branches": ("*.se",)}
        model = elastic_mobilenet(3, 10, stem=(8, 8), stages=(8, 8), strides=(2, 2), depth=3, last=(16, 16))
        return build_space(model, (torch.zeros(2, 3, 16, 16),), (2, 8), (2, 8), (0.5, 1.0), **kinds)
    model = Attention() if name == "attention" else NETWORKS[name]()
    return build_space(model, example(model), (2, 4, 8), (3, 8), (0.5, 1.0))


@pytest.mark.parametrize("name", ["residual", "separable", "concat", "shared", "attention", "elastic_mobilenet"])
def test_it_is_a_weighted_sum_of_the_other_costs(name: str) -> None:
    """Of random architectures, of the full network at 8 bits, and in expectation."""
    space, generator = space_of(name), torch.Generator().manual_seed(0)
    for _ in range(20):
        options = {
            c.name: c.options[int(torch.randint(len(c.options), (), generator=generator))] for c in space.choices
        }
        architecture = Architecture(space, options, functions=FUNCTIONS)
        expected = sum(weight * float(architecture.cost(part)) for part, weight in PARTS.items())
        assert float(architecture.cost(ENERGY)) == pytest.approx(expected, rel=1e-12)
    reference = sum(weight * reference_cost(space, part) for part, weight in PARTS.items())
    assert reference_cost(space, ENERGY, functions=FUNCTIONS) == pytest.approx(reference, rel=1e-12)
    chances = {
        c.name: torch.softmax(torch.randn(len(c.options), generator=generator, dtype=torch.float64), 0)
        for c in space.choices
    }

    def expectation(part: str) -> float:
        cost = build_cost(space, part, FUNCTIONS)
        return float(
            cost.expectation(
                torch.nn.utils.rnn.pad_sequence([chances[name] for name in cost.choices], batch_first=True)
            )
        )

    assert expectation(ENERGY) == pytest.approx(sum(weight * expectation(part) for part, weight in PARTS.items()))


def test_measured_numbers_take_the_place_of_the_formula() -> None:
    """All layers have 4-bit weights and 8-bit inputs, so that every operation costs the same."""
    model = Chain()
    space = build_space(model, example(model), (4,), (8,), (1.0,))
    config = EnergyConfig(weight_bit=0.0, activation_bit=0.0, macs={"4x8": 0.5, "8x8": 2.0})
    architecture = Architecture(space, {c.name: c.options[-1] for c in space.choices}, functions={ENERGY: config.table})
    assert float(architecture.cost(ENERGY)) == pytest.approx(0.5 * float(architecture.cost("macs")))
    assert float(architecture.cost(ENERGY, relative=True)) == pytest.approx(0.25)


def test_widths_that_were_not_measured_run_as_the_cheapest_that_contain_them() -> None:
    """As on hardware that lacks them; what is wider than all is refused, products of activations (in floats) too."""
    table = EnergyConfig(macs={"8x8": 2.0, "4x8": 0.9, "8x4": 0.8, "2x2": 0.1}).table
    assert (table.mac(4, 8), table.mac(3, 8), table.mac(3, 3), table.mac(2, 1), table.mac(8, 6)) == (
        0.9,
        0.9,
        0.8,
        0.1,
        2.0,
    )
    with pytest.raises(ValueError, match=r"no number for 16x8 bits .these widths., nor for a wider pair; it has 8x8"):
        table.mac(16, 8)
    space = space_of("attention")
    with pytest.raises(ValueError, match=r"32x32 bits .a product of activations, which runs in floats"):
        build_cost(space, ENERGY, {ENERGY: table})
    assert build_cost(space, ENERGY, {ENERGY: EnergyConfig(macs={"8x8": 2.0, "32x32": 9.0}).table})


def test_the_default_is_of_45_nm() -> None:
    """Horowitz 2014: a product of 8 bits 0.2 pJ, of 32 bits 3.1; 64 bits of a small memory 10 pJ."""
    default = EnergyConfig()
    assert default.table.mac(8, 8) == pytest.approx(0.2 + 0.1)
    assert default.table.mac(32, 32) == pytest.approx(3.1 + 0.1, rel=0.05)
    assert 64 * default.weight_bit == 64 * default.activation_bit == 10


def test_a_budget_holds_strictly_and_the_selection_is_the_best() -> None:
    """Against all architectures."""
    model = Chain()
    space = build_space(model, example(model), (2, 8), (2, 8), (0.5, 1.0))
    generator = torch.Generator().manual_seed(3)
    values = {c.name: tuple(torch.rand(len(c.options), generator=generator).sort()[0].tolist()) for c in space.choices}
    scores, budget = Scores(values, "measured"), dnas.Budget(functions=FUNCTIONS, **{ENERGY: 0.4})
    every: list[dict[str, int]] = [{}]
    for choice in space.choices:
        every = [{**one, choice.name: option} for one in every for option in choice.options]
    allowed = [a for a in (Architecture(space, one, functions=FUNCTIONS) for one in every) if budget.holds(a)]

    def value(architecture: Architecture) -> float:
        return sum(values[c.name][c.options.index(architecture[c.name])] for c in space.choices)

    found = select(scores, space, budget)
    assert 0 < len(allowed) < len(every)
    assert budget.holds(found)
    assert value(found) == pytest.approx(max(map(value, allowed)))


def test_a_run_under_a_budget_of_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [one for one in SMALL if not one.startswith("budget.")]
    wanted = (
        "budget.energy_pj=0.3",
        "cost.energy.weight_bit=0",
        "retrain.baselines=[]",
        "retrain.start=float",
        "folder=run",
    )
    assert command(monkeypatch, *given, *wanted) == 0
    found = open_folder(tmp_path / "run").architecture()
    parts = {"bops": 0.2 / 64, "macs": 0.1, "activation_traffic_bits": 0.15625}
    expected = sum(weight * float(found.cost(part)) for part, weight in parts.items())
    assert found.certificate is not None
    assert found.certificate.costs[ENERGY] == pytest.approx(expected)
    assert expected <= found.certificate.limits[ENERGY]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "0.2 pJ per 8x8-bit product, 0.1 per addition, 0 per bit of a weight, 0.15625 per bit of a layer" in page
    assert "Retrained from the float network" in page


def test_measured_numbers_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [one for one in SMALL if not one.startswith("budget.")]
    wanted = ("+cost.energy.macs={4x8: 0.17, 8x8: 0.29}", "budget.energy_pj=0.7", "stage=preflight", "folder=run")
    assert command(monkeypatch, *given, *wanted) == 0
    table = open_folder(tmp_path / "run").functions[ENERGY]
    assert (table.mac(2, 4), table.mac(8, 8)) == (0.17, 0.29)  # type: ignore[attr-defined]


def test_a_layer_that_reads_many_groups_needs_no_table_of_all() -> None:
    """As of bit operations, which add up over input channels as well."""
    model = NETWORKS["concat"]()
    space = build_space(model, example(model), (2, 8), (2, 8), (0.5, 1.0))
    energy, bops = (build_cost(space, name, FUNCTIONS) for name in (ENERGY, "bops"))

    def widest(cost: Cost) -> int:
        return max(len(factor.choices) for row in cost.rows for factor in row)

    assert widest(energy) == widest(bops)


def test_single_filters_have_no_table_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = [one for one in SMALL if not one.startswith("budget.")]
    assert command(monkeypatch, "space.granularity=filter", "budget.energy_pj=0.3", "folder=run", *given) != 0
    output = "".join(capsys.readouterr())
    assert "energy_pj" in output
    assert "has no table where single filters go or have their own act_bits" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        ({"product": -1.0}, "cost.energy.product is -1.0; allowed: picojoules"),
        ({"product": 0, "addition": 0, "weight_bit": 0, "activation_bit": 0}, "at least one number above 0"),
        ({"macs": {"4": 0.1}}, "cost.energy.macs has '4'; needed are weight bits x activation bits"),
        ({"macs": {"4x4": -0.1}}, "cost.energy.macs.4x4 is -0.1"),
        ({"products": 1.0}, "product"),
    ],
)
def test_wrong_tables_are_named(energy: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"cost": {"energy": energy}})
