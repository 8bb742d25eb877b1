"""A tensor that is negative in the trained network alone: batch norm after ReLU, weights that start at zero, a moved bias."""

import json
from pathlib import Path

import pytest
import torch
from small import SMALL, dnas
from torch import Tensor, nn

from dnas.search.supernet import Supernet
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.ranges import with_signs_of


def norm_last() -> nn.Sequential:
    """As speech networks have it: ReLU, then batch norm, then the next convolution."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def signs(space: Space) -> dict[str, bool]:
    return {name.removesuffix(".act_bits"): found.signed for name, found in space.ranges.items()}


def test_a_batch_norm_that_has_seen_nothing_is_centred_as_in_training(generator: torch.Generator) -> None:
    model, x = norm_last(), torch.randn(16, 1, 8, 8, generator=generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert signs(build_space(model, x)) == {"0": True, "3": True, "6": False}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert signs(build_space(model.train(), x[:1])) == {
        "0": True,
        "3": False,
        "6": False,
    }  # one image has no statistics
    with torch.no_grad():
        for _ in range(20):
            model(x)
    assert signs(build_space(model, x)) == {"0": True, "3": True, "6": False}


def test_a_layer_that_starts_at_zero(generator: torch.Generator) -> None:
    model, x = norm_last(), torch.randn(4, 1, 8, 8, generator=generator)
    assert isinstance(model[3], nn.Conv2d)
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    assert signs(build_space(model, x))["6"]


def test_the_signs_of_a_network_that_was_trained_since(generator: torch.Generator) -> None:
    model, x = norm_last(), torch.rand(16, 1, 8, 8, generator=generator)
    space = build_space(model, x, (2, 8), (2, 8))
    assert signs(space) == {"0": False, "3": True, "6": False}
    assert with_signs_of(space, model, x) is space
    assert isinstance(model[2], nn.BatchNorm2d)
    nn.init.constant_(model[2].bias, 10.0)
    found = with_signs_of(space, model, (x,))
    assert signs(found) == {"0": False, "3": False, "6": False}
    assert found.ranges["3.act_bits"] == build_space(model, x, (2, 8), (2, 8)).ranges["3.act_bits"]
    assert [found.ranges[name] for name in ("0.act_bits", "6.act_bits")] == [
        space.ranges[name] for name in ("0.act_bits", "6.act_bits")
    ]
    assert (found.choices, found.layers) == (space.choices, space.layers)


def test_calibration_refuses_signs_that_the_space_has_not_seen(generator: torch.Generator) -> None:
    model, x = norm_last().eval(), torch.rand(16, 1, 8, 8, generator=generator)
    assert isinstance(model[2], nn.BatchNorm2d)
    nn.init.constant_(model[2].bias, 10.0)
    space = build_space(model, x)
    nn.init.zeros_(model[2].bias)
    with pytest.raises(ValueError, match=r"3\.act_bits: .* is below 0, .*build the space on the network as it is now"):
        Supernet(model, space).calibrate(x)
    with pytest.raises(ValueError, match=r"0\.act_bits: "):
        Supernet(model, build_space(model, x)).calibrate(x - 0.5)
    Supernet(model, build_space(model, x)).calibrate(x)


class Late(nn.Module):
    """Its batch norm is centred by training alone: its first statistics keep all that it makes above 0."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        assert self.norm.running_mean is not None
        self.norm.running_mean.fill_(-1.0)
        self.body, self.head = nn.Conv2d(16, 16, 3, stride=2), nn.Linear(144, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.norm(self.stem(x).relu())).relu().flatten(1))
        return found


def test_a_run_takes_the_signs_of_its_trained_float_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all widths at 8 bits nothing is lost, as it is where negative halves are clipped."""
    monkeypatch.chdir(tmp_path)
    given = [key for key in SMALL if not key.startswith(("model", "space.weight", "space.act", "space.filters"))]
    given += [
        "model=custom", f"model.target={__name__}:Late", "space.weight_bits=[8]", "space.act_bits=[8]",
        "space.filters=[1.0]", "budget.bops=1.0", "search.train=needed", "retrain.epochs=0", "pretrain.epochs=10",
    ]  # fmt: skip

    def found(folder: str) -> dict[str, bool]:
        return signs(Space.from_json((tmp_path / folder / "space.json").read_text(encoding="utf-8")))

    assert dnas(monkeypatch, *given, "stage=preflight", "folder=run") == 0
    assert found("run") == {"stem": True, "body": False, "head": False}
    assert dnas(monkeypatch, "folder=run") == 0
    assert found("run") == {"stem": True, "body": True, "head": False}
    before = json.loads((tmp_path / "run" / "float.json").read_text(encoding="utf-8"))["validation_accuracy"]
    after = json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))["validation_accuracy"]
    assert after > before - 1.5  # batch norms are re-estimated, which these few steps of float training gain by
    assert dnas(monkeypatch, *given, "search_from=run", "folder=again") == 0
    assert found("again") == found("run")
