"""A checkpoint of something else than what is asked for is refused: it would be taken for trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnas.engine import Engine, EngineConfig
from dnas.realise import realise
from dnas.recipe import OptimiserConfig
from dnas.retrain import RetrainConfig, retrain
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from tests.networks import Residual, example

ENGINE = EngineConfig(device="cpu", progress=False)
CONFIG = RetrainConfig(epochs=1, batch_size=8, norm_images=8)


def networks() -> tuple[nn.Module, nn.Module]:
    """Of one shape, at 8 and at 2 bits."""
    torch.manual_seed(0)
    model = Residual()
    space = build_space(model, example(model), (2, 8), (2, 8), (1.0,))
    supernet = Supernet(model, space)
    supernet.calibrate(example(model)[0])
    found = []
    for bits in (8, 2):
        options: dict[str, Any] = {
            c.name: bits if c.kind in ("weight_bits", "act_bits") and bits in c.options else c.options[-1]
            for c in space.choices
        }
        found.append(realise(supernet, Architecture(space, options)))
    return found[0], found[1]


def trained(model: nn.Module, checkpoint: Path, seed: int = 0, config: RetrainConfig = CONFIG) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator))
    batches = [(images[0][:8], images[1][:8]), (images[0][8:], images[1][8:])]
    retrain(model, batches, batches, None, config, Engine(ENGINE), checkpoint, None, seed)


def test_a_checkpoint_of_other_widths_is_refused(tmp_path: Path) -> None:
    eight, two = networks()
    trained(eight, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"weight_bits is 8 there, 2 here.* remove it to train again"):
        trained(two, tmp_path / "model.ckpt")
    trained(networks()[0], tmp_path / "model.ckpt")  # the same network goes on


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "is of seed 0, this run of 1"),
        ({"config": replace(CONFIG, epochs=2)}, "epochs is 1 there, 2 here"),
        ({"config": replace(CONFIG, optimiser=OptimiserConfig(lr=0.5))}, "optimiser.lr is 0.05 there, 0.5 here"),
    ],
)
def test_a_checkpoint_of_another_seed_or_recipe_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    config = replace(CONFIG, optimiser=OptimiserConfig())
    trained(networks()[0], tmp_path / "model.ckpt", config=config)
    with pytest.raises(ValueError, match=message):
        trained(networks()[0], tmp_path / "model.ckpt", **{"config": config, **changed})
