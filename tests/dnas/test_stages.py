"""Stages by themselves: what they write, and what they refuse."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dnas.cli import configuration_folder
from dnas.models import dscnn, mobilenetv2, resnet8
from dnas.realise import realise
from dnas.search.budget import Budget
from dnas.search.supernet import Supernet
from dnas.select.reference import random_architecture
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.exported import check_costs
from dnas.stages.context import Run, load, open_folder
from dnas.stages.retrain import promising_uniform, summary
from dnas.stages.search import search
from quant.export import export
from quant.graph import ExportedLayer, read_layers
from quant.verify import VerificationError
from tests.networks import Residual, example
from tests.small import SMALL, dnas

NETWORKS = {
    "resnet8": lambda: resnet8(3, 10),
    "dscnn": lambda: dscnn(3, 10, 16, 2, (3, 3)),
    "mobilenetv2": lambda: mobilenetv2(3, 10, width=0.25, stem="cifar"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run up to its selection."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert dnas(patch, "stage=preflight", "folder=run", *SMALL, "retrain.baselines=[uniform,random]") == 0
        for stage in ("search", "select"):
            assert dnas(patch, f"stage={stage}", "folder=run") == 0
    return open_folder(folder / "run")


# --- the proof of equal costs


def exported(name: str, folder: Path) -> tuple[Architecture, list[ExportedLayer]]:
    """A random architecture of a network, and the layers of its file."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]().eval(), torch.randn(2, 3, 16, 16)
    space = build_space(model, (x,), (2, 4, 8), (2, 4, 8), (0.5, 1.0))
    architecture = random_architecture(space, Budget(bops=0.2), 1, lowest=0.5)
    small = realise(Supernet(model, space), architecture).eval()
    export(small, x, folder / f"{name}.onnx", "qcdq")
    return small.architecture, read_layers(folder / f"{name}.onnx")  # type: ignore[return-value]


@pytest.fixture(scope="module", params=list(NETWORKS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Architecture, list[ExportedLayer]]:
    return exported(request.param, tmp_path_factory.mktemp("onnx"))


def test_costs_of_the_file_are_those_of_the_architecture(pair: tuple[Architecture, list[ExportedLayer]]) -> None:
    architecture, layers = pair
    found = check_costs(architecture, layers)
    assert found["bops"] == architecture.cost("bops")
    assert found["macs"] == architecture.cost("macs")
    assert found["weight_bits"] == architecture.cost("weight_bits")


@pytest.mark.parametrize("change", ["weight_bits", "act_bits", "in_channels", "out_channels", "missing", "another"])
def test_tampering_is_found(pair: tuple[Architecture, list[ExportedLayer]], change: str) -> None:
    architecture, layers = pair
    if change == "another":
        options = {c.name: c.options[-1] for c in architecture.space.choices}
        architecture = Architecture(architecture.space, options)
    else:
        middle = next(i for i, use in enumerate(layers) if i > 1 and use.groups == 1)  # its input is no network's
        use = layers[middle]
        value = [] if change == "missing" else [replace(use, **{change: getattr(use, change) * 2})]
        layers = [*layers[:middle], *value, *layers[middle + 1 :]]
    with pytest.raises(VerificationError, match="the architecture's is"):
        check_costs(architecture, layers)


# --- single stages


def test_selection_is_recorded(run: Run) -> None:
    architecture = run.architecture()
    certificate = architecture.certificate
    assert certificate is not None
    assert certificate.costs["bops"] == architecture.cost("bops") <= certificate.limits["bops"]
    assert certificate.gap == pytest.approx(0, abs=1e-4)
    content = json.loads(run.folder.file("select.json").read_text())
    assert [entry["network"] for entry in content["gap"]] == ["relaxed", "sampled", "argmax", "selected"]
    assert content["gap"][3]["relative"]["bops"] <= 0.2
    assert content["seconds"] > 0


def test_the_same_seed_gives_the_same_loaders(run: Run) -> None:
    again = open_folder(run.folder.path)
    one, other = (list(r.batches("weights", 32, True, "weights").epoch(3)) for r in (run, again))
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))
    images = run.images("validation")
    assert torch.equal(images[:5], run.images("validation", 5))


def test_batches_larger_than_the_split(run: Run) -> None:
    (batch,) = run.batches("validation", 100_000, True).epoch(0)
    assert len(batch[1]) == len(run.data.splits["validation"])


def test_promising_uniform_networks(run: Run) -> None:
    found = promising_uniform(run)
    assert len(found) == 1
    assert run.budget.holds(found[0])


def test_the_realised_model_takes_weights_of_its_own_shape(run: Run) -> None:
    supernet = run.supernet()
    architecture = run.architecture()
    model = run.realised(architecture, None, supernet)
    images = run.images("validation", 8)
    with torch.no_grad(), supernet.evaluate_as(architecture):
        assert torch.allclose(model(images), supernet(images), atol=1e-4)
    assert not model.training


@pytest.mark.parametrize("start", ["supernet", "float"])
def test_retraining_starts_from_the_weights_that_are_asked_for(
    run: Run, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an epoch of training a network has the weights it started from, of the filters that select recorded."""
    monkeypatch.chdir(tmp_path)
    given = (*SMALL, f"search_from={run.folder.path}", f"retrain.start={start}", "retrain.epochs=0")
    for stage in ("preflight", "search", "select", "retrain"):
        assert dnas(monkeypatch, f"stage={stage}", "folder=other", "retrain.baselines=[random]", *given) == 0
    other = open_folder(tmp_path / "other")
    first, second = (run.space.layers[i].outputs.group[0] for i in (0, 2))
    floating = other.float_model().get_submodule("blocks.0.3").weight
    trained = run.supernet().model.get_submodule("blocks.0.3").layer.weight  # type: ignore[union-attr]
    assert not torch.equal(floating, trained)  # type: ignore[arg-type]
    for file in ("model", "baselines/random"):
        record = json.loads(other.folder.file(f"{file}.json").read_text())
        inputs, outputs = (record["architecture"]["kept"][run.space.groups[group].choice] for group in (first, second))
        weight = load_file(other.folder.file(f"{file}.safetensors"))["blocks.0.3.weight"]
        source = {"supernet": trained, "float": floating}[start]
        assert torch.equal(weight, source[outputs][:, inputs])  # type: ignore[index]
    record = json.loads(other.folder.file("model.json").read_text())
    assert Architecture.from_json(json.dumps(record["architecture"]), run.space).kept == other.architecture().kept
    assert load(tmp_path / "other")(run.images("validation", 2)).shape == (2, 10)


def test_a_space_without_a_random_network_still_has_a_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that cannot be drawn is said and left out."""
    from dnas.search.budget import BudgetError
    from dnas.stages import retrain as stage

    def fail(*args: object) -> Architecture:
        raise BudgetError("no random architecture spent enough")

    trained = []
    monkeypatch.setattr(stage, "random_architecture", fail)
    monkeypatch.setattr(stage, "_train", lambda run, method, file, architecture: trained.append(method))
    stage.retrain(run)
    assert trained == ["ours", "uniform"]


def test_search_trains_nothing_without_a_space(run: Run, tmp_path: Path) -> None:
    lost = copy.copy(run)
    lost.folder = type(run.folder)(tmp_path)
    lost.__dict__.pop("space", None)
    with pytest.raises(RuntimeError, match="run stage=preflight in this folder first"):
        search(lost)
    assert not list(tmp_path.iterdir())


def test_summaries(run: Run) -> None:
    space = run.space
    full = Architecture(space, {c.name: c.options[-1] for c in space.choices})
    assert summary(full) == "W8 A8 filters x1"
    fixed = build_space(Residual(), example(Residual()), (4,), (2, 8), (1.0,))
    assert summary(Architecture(fixed, {c.name: c.options[0] for c in fixed.choices})) == "W4 A2 filters x1"
    mixed = dict(full.options)
    mixed[next(c.name for c in space.searched() if c.kind == "weight_bits")] = 2
    assert summary(Architecture(space, mixed)).startswith("W~")


def test_a_teacher_is_a_model_of_its_own(run: Run) -> None:
    one, other = run.float_model(), run.float_model()
    assert isinstance(one, nn.Module)
    assert one is not other
    assert not one.training


def test_conf_is_found() -> None:
    assert configuration_folder().is_dir()
