"""Joint choices of weight and activation bits: only legal pairs, one cost table, the same network in every form."""

import math
from typing import Any

import pytest
import torch
from equivalence import assert_close
from networks import NETWORKS, example, randomise
from torch import nn

import dnas
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.select.program import enumerate_positions
from dnas.space.architecture import Architecture
from dnas.space.cost import build_cost
from dnas.space.target import Target
from quant.brevitas import quantised_layers

THESIS = ((2, 2), (2, 4), (3, 3), (8, 8))


def built(**options: Any) -> tuple[Supernet, tuple[Any, ...]]:
    model = randomise(NETWORKS["residual"]()).eval()
    inputs = example(model)
    space = dnas.build_space(model, inputs, filters=(1.0,), **{"pairs": THESIS, **options})
    return Supernet(model, space).eval(), inputs


def test_every_layer_has_a_legal_pair() -> None:
    supernet, inputs = built()
    space = supernet.space
    joint = [choice for choice in space.choices if choice.kind == "pair_bits"]
    assert joint
    assert {choice.options for choice in joint} == {(22, 24, 33, 88)}
    given = next(layer for layer in space.layers if not space.choice(layer.act_choice).searched)
    assert space.choice(given.weight_choice).options == (2, 3, 8)  # its input has 8 bits whatever is chosen
    for seed in range(3):
        architecture = dnas.random_architecture(space, dnas.Budget(bops=0.2), seed)
        realised = dnas.realise(supernet, architecture).eval()
        with torch.no_grad(), supernet.evaluate_as(architecture):
            assert_close(realised(*inputs), supernet(*inputs), 1e-5)
        for layer in quantised_layers(realised):
            if layer.name != given.name:
                assert (layer.weights[0].bits, layer.activations[0].bits) in THESIS


def test_the_expected_cost_is_that_of_enumeration(generator: torch.Generator) -> None:
    supernet, _ = built(pairs=((2, 4), (8, 8)))
    space, cost = supernet.space, build_cost(supernet.space, "bops")
    with torch.no_grad():
        supernet.choices.logits.copy_(torch.randn(supernet.choices.logits.shape, generator=generator))
    chances, want = supernet.probabilities(), 0.0
    for positions in enumerate_positions(space):
        weight = math.prod(float(chances[name].detach()[position]) for name, position in positions.items())
        want += weight * cost.at(positions)
    assert float(supernet.cost("bops").detach()) == pytest.approx(want, rel=1e-5)


def test_selection_and_uniform_networks() -> None:
    supernet, _ = built()
    space, budget = supernet.space, dnas.Budget(bops=0.15)
    scores = dnas.Scores({c.name: tuple(map(float, range(len(c.options)))) for c in space.choices}, "rank")
    assert dnas.select(scores, space, budget).cost("bops", relative=True) <= 0.15
    uniform = dnas.uniform_architecture(space, 2, 4)
    assert {uniform.options[c.name] for c in space.searched() if c.kind == "pair_bits"} == {24}
    with pytest.raises(ValueError, match="4 is not an option"):
        dnas.uniform_architecture(space, 4, 4)


def test_bad_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"space\.pairs has \[2, 9\]"):
        built(pairs=((2, 9),))
    with pytest.raises(ValueError, match="can run none of them"):
        built(target=Target("int8", pairs=((8, 8),)), pairs=((2, 2),))
    with pytest.raises(ValueError, match="joint choices of whole layers"):
        built(granularity="filter")


def test_an_architecture_of_pairs_travels_as_json() -> None:
    supernet, _ = built()
    found = Architecture.at(supernet.space, supernet.space.extreme(dearest=False))
    assert Architecture.from_json(found.to_json(), supernet.space) == found


def test_measured_scores_of_pairs_keep_their_order() -> None:
    """W3A3 does not contain W2A4: where a pair that costs more is worth less, that is no noise."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    space = dnas.build_space(
        net, torch.rand(4, 3, 8, 8), filters=(1.0,), pairs=[(2, 4), (3, 3), (2, 8), (8, 2), (8, 8)]
    )
    choice = next(c for c in space.choices if c.kind == "pair_bits")
    values = {c.name: (0.0,) * c.width for c in space.choices} | {choice.name: (-0.3, -0.3, -0.1, -0.9, 0.0)}
    assert Scores(values, "measured").monotone(space).values == values
