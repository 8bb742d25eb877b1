"""The preset of BINAS' paper at its own resolution: what it costs, a certified selection, and one step of training."""

from collections.abc import Sequence

import hydra
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dnas.board import Board
from dnas.cli import configuration_folder
from dnas.config import parse_config
from dnas.engine import Engine
from dnas.models import elastic_mobilenet
from dnas.search.budget import Budget
from dnas.search.one_shot import OneShotTraining
from dnas.search.sampling import Sampler
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from tests.dnas.test_neighbourhood import ENGINE, Counted

SIDE = 224
"""Of the paper's images."""


def macs(model: nn.Module) -> int:
    """Multiplications of convolutions and linear layers for one image, counted as they run."""
    total = 0

    def count(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()  # type: ignore[operator,index]

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return total


@pytest.fixture(scope="module")
def built() -> tuple[nn.Module, Space]:
    torch.manual_seed(0)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base=None):
        config = parse_config(
            hydra.compose("config", ["model=elastic_mobilenet", "space=binas_imagenet", "budget.macs=0.5"])
        )
    assert config.model.name == "ElasticMobileNet"
    model = elastic_mobilenet(**config.model.arguments).eval()
    return model, build_space(model, torch.randn(2, 3, SIDE, SIDE), **config.space.options)


def test_it_costs_what_its_largest_and_its_smallest_network_cost(built: tuple[nn.Module, Space]) -> None:
    model, space = built
    largest = Architecture.at(space, space.extreme(dearest=True))
    smallest = Architecture.at(space, space.extreme(dearest=False))
    assert largest.cost("macs") == macs(model)
    small = elastic_mobilenet(expansion=3, kernel=3, depth=2).eval()
    for stage in small.stages:
        for block in stage:  # type: ignore[union-attr]
            block.se = nn.Identity()
    assert smallest.cost("macs") == macs(small)
    kinds = {
        kind: sum(choice.kind == kind for choice in space.searched())
        for kind in ("filters", "kernel", "branch", "depth")
    }
    assert kinds == {"filters": 20, "kernel": 20, "branch": 20, "depth": 5}
    assert {len(choice.options) for choice in space.searched() if choice.kind == "depth"} == {3}  # 2, 3 or 4 blocks


def test_half_of_its_macs_are_met_with_a_certificate(built: tuple[nn.Module, Space]) -> None:
    _, space = built
    generator = np.random.default_rng(0)
    scores = Scores(
        {c.name: tuple(np.sort(generator.gamma(1.0, 1.0, len(c.options))).tolist()) for c in space.choices}, "random"
    )
    found = select(scores, space, Budget(macs=0.5))
    assert found.certificate is not None
    assert found.certificate.gap <= 1e-9 * found.certificate.value
    assert 0.9 < found.cost("macs", relative=True) / 0.5 <= 1.0


class Images(Counted):
    """Two images at full size."""

    def __init__(self) -> None:
        self.read = []
        self.batches = [(torch.randn(2, 3, SIDE, SIDE), torch.randint(1000, (2,)))]


def test_a_batch_trains_its_supernet(built: tuple[nn.Module, Space]) -> None:
    model, space = built
    supernet = Supernet(model, space, seed=0)
    supernet.calibrate(torch.randn(2, 3, SIDE, SIDE))
    config = SearchConfig(searcher="binas", distill=0.0, paths=1)
    training = OneShotTraining(
        supernet, Sampler(space, 0), Images(), Images(), None, config, Engine(ENGINE), Board(None)
    )
    before = {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}
    supernet.train()
    numbers = training.step(next(training.batches(0)), 0.5)
    assert torch.isfinite(numbers["loss"])
    changed = [n for n, p in supernet.named_parameters() if n.endswith("weight") and not torch.equal(p, before[n])]
    assert len(changed) >= 100  # the largest network is among those that are trained: every layer learns
