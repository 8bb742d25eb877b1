"""What is known before training: shares counted by hand, ranges found by enumeration, and a dry run that reports."""

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import dnas
from dnas.describe import Trial
from dnas.models import resnet8
from dnas.space.build import build_space
from dnas.space.choice import Choice, Position, Space
from dnas.space.cost import build_cost
from dnas.space.preflight import cost_ranges, percent, series, short_number
from tests.networks import Attention, Chain, Functional, Head, Separable, TwoInputs, conv, example
from tests.small import SMALL
from tests.small import dnas as command

MODULE = sys.modules["dnas.describe"]  # the package's attribute of this name is the function


def describe(model: nn.Module, inputs: Any = None, **options: Any) -> dnas.Description:
    return dnas.describe(model, example(model) if inputs is None else inputs, **options)


# --- the layer table


def test_macs_and_shares_counted_by_hand() -> None:
    chain = {row.name: row for row in describe(Chain()).layers}  # 8 x 8 images, the second layer in steps of 2
    macs = {"a": 8 * 8 * 9 * 3 * 8, "b": 4 * 4 * 9 * 8 * 12, "head.fc": 12 * 5}
    assert {name: row.macs for name, row in chain.items()} == macs
    for name, count in macs.items():
        assert chain[name].share == pytest.approx(count / sum(macs.values()))
    assert [row.channels for row in chain.values()] == [(3, 8), (8, 12), (12, 5)]

    rows = describe(Functional()).layers  # a functional 1 x 1 convolution of 8 to 8 channels is no layer, but counts
    outside = [row for row in rows if row.channels is None]
    assert [row.macs for row in outside] == [8 * 8 * 8 * 8]
    total = 8 * 8 * (9 * 3 * 8 + 9 * 8 * 8 + 8 * 8) + 8 * 5
    assert outside[0].share == pytest.approx(8 * 8 * 8 * 8 / total)
    assert sum(row.share for row in rows) == pytest.approx(1)

    depthwise = next(row for row in describe(Separable()).layers if row.name == "depth")
    assert (depthwise.kind, depthwise.macs) == ("depthwise", 8 * 8 * 9 * 16)


def test_letters_name_what_is_shared() -> None:
    rows = {row.name: row for row in describe(resnet8(3, 10), torch.randn(2, 3, 16, 16)).layers}
    assert rows["conv1"].coupled == rows["layer1.0.conv2"].coupled == ("A",)  # joined by the first addition
    assert rows["layer2.0.conv2"].coupled == rows["layer2.0.downsample.0"].coupled == ("B",)
    assert rows["layer1.0.conv1"].coupled == ("",)
    assert rows["layer2.0.conv1"].shared == rows["layer2.0.downsample.0"].shared == "a"  # both read the block's input
    assert rows["layer2.0.conv2"].shared == ""
    assert rows["layer1.0.conv1"].filters == ("4,8..16",)
    assert rows["fc"].filters == ("all",)


def test_options_as_text() -> None:
    pairs = {row.name: row for row in describe(Chain(), pairs=((2, 8), (4, 4), (8, 2))).layers}
    assert (pairs["b"].weights, pairs["b"].acts) == ("W2A8,W4A4,W8A2", "the pair's")
    fine = describe(Chain(), granularity="filter", weight_bits=(0, 2, 4, 8))
    rows = {row.name: row for row in fine.layers}
    assert (rows["a"].weights, rows["a"].filters) == ("8 x 2,4,8", ("8 x 2-8",))
    assert "16 x: 16 filters" in " ".join(fine.text(200).split())


def test_numbers_as_text() -> None:
    assert [series(s) for s in ((2, 3, 4, 6, 8), (2, 4), (8,), (4, 8, 12, 16), tuple(range(1, 65)))] == [
        "2-4,6,8", "2,4", "8", "4,8..16", "1-64",
    ]  # fmt: skip
    assert series((1, 3, 7, 12, 20, 31, 50)) == "1..50 (7)"
    assert [short_number(n) for n in (0, 999, 999.6, 884_736, 9_999_999, 2.5e12, 3e15)] == [
        "0", "999", "1k", "885k", "10M", "2.5T", "3000T",
    ]  # fmt: skip
    assert [percent(p) for p in (0, 0.0062, 0.05, 0.1, 1, 8.71)] == ["0%", "0.62%", "5.0%", "10%", "100%", "871%"]


# --- reachable costs


def positions(choice: Choice) -> Iterator[Position]:
    """Everything that can be chosen."""
    if not choice.by_filter:
        yield from range(len(choice.options))
        return
    for found in product(range(choice.width), repeat=choice.count):
        if choice.kind != "filters" or sum(found) * choice.block in choice.options:
            yield found


def enumerated(space: Space, name: str) -> tuple[float, float]:
    cost = build_cost(space, name)
    everything = product(*(list(positions(choice)) for choice in space.choices))
    names = [choice.name for choice in space.choices]
    values = [cost.at(dict(zip(names, found, strict=True))) for found in everything]
    return min(values), max(values)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(1, 3), conv(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).mean((2, 3))


SPACES: dict[str, dict[str, Any]] = {
    "layers": {"weight_bits": (2, 8), "act_bits": (3, 4), "filters": (0.4, 1.0)},
    "pairs": {"pairs": ((2, 8), (3, 5), (4, 4), (8, 2)), "filters": (0.4, 1.0)},
    "filters": {"weight_bits": (0, 2, 5), "act_bits": (3, 4), "granularity": "filter", "act_granularity": "filter"},
}


@pytest.mark.parametrize("options", SPACES.values(), ids=SPACES)
def test_ranges_are_those_of_all_architectures(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    space = build_space(Tiny(), torch.randn(2, 1, 4, 4), **options)
    ranges = cost_ranges(space)
    assert {"bops", "macs", "weight_bits", "activation_traffic_bits", "peak_activation_bits"} <= {
        r.name for r in ranges
    }
    for found in ranges:
        assert (found.smallest, found.largest) == pytest.approx(enumerated(space, found.name)), found.name


def test_budgets_are_compared_with_the_ranges() -> None:
    found = describe(Chain(), budget=dnas.Budget(bops=1e-4, macs=1.0, weight_bits=0.5))
    reference = (8 * 8 * 9 * 3 * 8 + 4 * 4 * 9 * 8 * 12 + 12 * 5) * 64
    assert found.limits["bops"] == pytest.approx(reference / 10_000)
    lines = {line.split()[0]: line for line in found.text(120).splitlines() if line}
    assert "out of reach" in lines["bops"]
    assert "no limit" in lines["macs"]
    assert "reach" not in lines["weight_bits"]
    assert not found.works
    assert describe(Chain(), budget=dnas.Budget(weight_bits=0.5)).works


# --- the dry run


class Outputs(nn.Module):
    """Two inputs, and two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), nn.Linear(6, 8), Head(8)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        feature = (self.a(x) + self.b(y)[:, :, None, None]).relu()
        return {"logits": self.head(feature), "feature": feature}


@pytest.mark.parametrize("make", [Chain, TwoInputs, Outputs])
def test_any_module_is_described_and_left_alone(make: type[nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    model = make()
    model.get_submodule("a").eval()  # modes as a user may have left them
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = example(TwoInputs()) if make is Outputs else example(model)
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    found = describe(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [(trial.step, trial.network, trial.problem) for trial in found.exports] == [
        (step, network, "") for network in ("smallest", "largest") for step in ("realise", "qcdq", "qonnx")
    ]
    assert found.works
    assert capfd.readouterr() == ("", "")


class Bessel(nn.Module):
    """An operation that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.special.bessel_j0(self.a(x)))


def test_what_cannot_be_exported_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    found = describe(Bessel(), torch.randn(2, 3, 8, 8))
    problems = {trial.step: trial.problem for trial in found.exports}
    assert problems["realise"] == ""
    assert "special_bessel_j0" in problems["qcdq"]
    assert "special_bessel_j0" in problems["qonnx"]
    assert not found.works
    text = " ".join(str(found).split())
    assert "realise: works" in text
    assert "qcdq: fails, because" in text
    assert capfd.readouterr() == ("", "")


class Single(nn.Module):
    """A forward that insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.hardtanh(self.a(x.float())))


def test_a_forward_in_float32_only() -> None:
    assert describe(Single(), torch.randn(2, 3, 8, 8)).works


def test_a_wrong_network_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*arguments: Any) -> nn.Module:
        model = dnas.realise(*arguments)
        with torch.no_grad():
            model.get_parameter("head.fc.bias").add_(0.5)
        return model

    monkeypatch.setattr(MODULE, "realise", shifted)
    found = describe(Chain())
    assert "differs from the masked supernet by 0.5" in found.exports[0].problem
    assert "realise: fails, because it differs from the masked supernet by 0.5" in " ".join(str(found).split())

    def fails(*_: Any) -> nn.Module:
        raise ValueError("no such layer\nmore lines")

    monkeypatch.setattr(MODULE, "realise", fails)
    assert [trial.problem for trial in describe(Chain()).exports[:2]] == [
        "no such layer",
        "the network is not realised: no such layer",
    ]


def test_failure_of_one_network_is_named() -> None:
    found = describe(Chain())
    one = dnas.Description(
        found.space,
        found.layers,
        found.ranges,
        {},
        {},
        (Trial("qcdq", "smallest", "[reason]"), Trial("qcdq", "largest")),
    )
    assert str(one).splitlines()[-1].rstrip() == "qcdq: fails for the smallest network, because [reason]"


# --- how it looks


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit(width: int) -> None:
    x = torch.randn(2, 3, 16, 16)
    for found in (describe(resnet8(3, 10), x, budget=dnas.Budget(bops=0.05)), describe(Attention())):
        lines = found.text(width).splitlines()
        assert max(map(len, lines)) <= width
        words = {line.split()[0] for line in lines if line}
        assert {row.name for row in found.layers} <= words  # nothing is broken
        assert {entry.name for entry in found.ranges} <= words


def test_reasons_are_grouped() -> None:
    found = describe(resnet8(3, 10), torch.randn(2, 3, 16, 16), exclude=["layer*"])
    names = found.fixed["excluded by space.exclude: full width, 8 bits"]
    assert len(names) == 8
    assert names[0] == "layer1.0.conv1"
    many = resnet8(3, 10)
    many.spare = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))
    text = " ".join(describe(many, torch.randn(2, 3, 16, 16)).text(200).split())
    assert "did not run on example_inputs: left as it is spare.0, " in text
    assert "spare.7, and 4 more" in text


# --- the stage


def test_preflight_uses_the_options_of_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("space.granularity=filter", "space.act_granularity=filter", "space.filter_block=2")
    assert command(monkeypatch, "stage=preflight", "folder=fine", *SMALL, *more) == 0
    fine = Space.from_json((tmp_path / "fine" / "space.json").read_text())
    assert {(c.kind, c.block) for c in fine.choices if c.by_filter} == {
        ("weight_bits", 2), ("act_bits", 2), ("filters", 2),
    }  # fmt: skip
    assert command(monkeypatch, "stage=preflight", "folder=pairs", *SMALL, "space.pairs=[[2,8],[4,4]]") == 0
    pairs = Space.from_json((tmp_path / "pairs" / "space.json").read_text())
    assert {c.options for c in pairs.choices if c.kind == "pair_bits"} == {(28, 44)}
    stored = json.loads((tmp_path / "pairs" / "preflight.json").read_text())
    found = {entry["name"]: entry for entry in stored["ranges"]}
    assert found["bops"]["smallest"] < stored["limits"]["bops"] < found["bops"]["largest"]


def test_preflight_refuses_what_describe_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails(*_: Any) -> None:
        raise RuntimeError("no such operator")

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "export", fails)
        assert command(patch, "stage=preflight", "folder=run", *SMALL) != 0
    output = " ".join("".join(capsys.readouterr()).split())
    assert "qcdq: fails, because no such operator" in output  # the tables come first
    assert "qcdq of the smallest network of this space fails: no such operator" in output
    assert not (tmp_path / "run" / "space.json").exists()
    assert command(monkeypatch, "stage=preflight", "folder=run", *SMALL, "model.checkpoint_skip=[fc.*]") != 0
    assert "model.checkpoint_skip is ['fc.*'], but no checkpoint" in " ".join("".join(capsys.readouterr()).split())


def test_a_file_that_computes_something_else_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier's bias is another one in the QCDQ file."""
    module: Any = sys.modules["dnas.describe"]
    export = module.export

    def spoiled(model: nn.Module, inputs: Any, path: Path, format: str) -> None:
        export(model, inputs, path, format)
        file = onnx.load(path)
        (bias,) = (t for t in file.graph.initializer if t.name.endswith("fc.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.1, bias.name))
        onnx.save(file, path)

    monkeypatch.setattr(module, "export", spoiled)
    model = Chain()
    found = dnas.describe(model, example(model), weight_bits=(2, 8), act_bits=(3, 8), filters=(0.5, 1.0))
    assert not found.works
    for trial in found.exports:
        if trial.step == "qcdq":
            assert trial.problem.startswith("output 0 differs by 0.1 in onnxruntime")
        else:
            assert not trial.problem


def test_rounding_is_no_difference() -> None:
    """What noise moves may differ as far; infinities that agree do not differ."""
    module: Any = sys.modules["dnas.describe"]
    one = torch.tensor([1.0, float("inf"), float("nan")])
    assert module._apart(one, one) == 0
    assert module._apart(one, torch.tensor([1.5, float("inf"), float("nan")])) == 0.5
    assert module._apart(one, torch.tensor([1.0, 2.0, float("nan")])) == float("inf")
