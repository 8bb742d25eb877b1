"""What every awkward graph must satisfy: the masked supernet computes what the physically smaller network computes."""

from collections.abc import Callable
from typing import Any

import torch
from networks import example, randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dnas
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import build_cost, reference_cost

OPTIONS: dict[str, Any] = {"weight_bits": (2, 4, 8), "act_bits": (3, 8), "filters": (0.25, 0.5, 0.75, 1.0)}


def build(
    make: Callable[[], nn.Module], dtype: torch.dtype, inputs: tuple[Any, ...] | None, options: dict[str, Any]
) -> tuple[nn.Module, tuple[Any, ...], Supernet]:
    """The user's model with random statistics in evaluation mode, its inputs, and its supernet."""
    model = randomise(make()).eval().to(dtype)
    inputs = example(model) if inputs is None else inputs
    inputs = tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
    supernet = Supernet(model, dnas.build_space(model, inputs, **{**OPTIONS, **options})).eval()
    return model, inputs, supernet


def architectures(space: Space, draws: int) -> list[Architecture]:
    """The smallest, the largest, and random ones between them."""
    smallest = Architecture(space, {c.name: c.options[0] for c in space.choices})
    largest = Architecture(space, {c.name: c.options[-1] for c in space.choices})
    cost = build_cost(space, "weight_bits")
    low, high = (cost.at(a.positions()) / reference_cost(space, "weight_bits") for a in (smallest, largest))
    budget = dnas.Budget(weight_bits=(low * high) ** 0.5)
    return [smallest, largest, *(dnas.random_architecture(space, budget, seed, lowest=0.5) for seed in range(draws))]


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    """Every tensor of the trees, relative to its largest magnitude."""
    pairs = list(zip(tree_leaves(found), tree_leaves(wanted), strict=True))
    assert pairs
    for got, want in pairs:
        assert got.shape == want.shape
        assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())


@torch.no_grad()
def check(
    make: Callable[[], nn.Module], inputs: tuple[Any, ...] | None = None, draws: int = 2, **options: Any
) -> Supernet:
    """Masked equals realised in double and in single precision, and a supernet without quantisers is the model.

    Returns:
        the supernet in single precision.
    """
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model, given, supernet = build(make, dtype, inputs, options)
        with supernet.quantisers_off():
            for got, want in zip(tree_leaves(supernet(*given)), tree_leaves(model(*given)), strict=True):
                assert torch.equal(got, want)
        outputs = []
        for architecture in architectures(supernet.space, draws):
            architecture = supernet.with_filters(architecture)
            with supernet.evaluate_as(architecture):
                wanted = supernet(*given)
            realised = dnas.realise(supernet, architecture).eval()
            assert_close(realised(*given), wanted, tolerance)
            check_shapes(realised, supernet.space, architecture)
            outputs.append(tree_leaves(wanted)[0])
        assert not torch.allclose(outputs[0], outputs[1])  # the smallest and the largest differ: something was masked
    return supernet


def check_shapes(realised: nn.Module, space: Space, architecture: Architecture) -> None:
    """The realised network's weights have as many elements as the cost says, and its removed filters are gone."""
    elements = 0.0
    for layer in space.layers:
        elements += realised.get_submodule(layer.name).weight.numel() * architecture[layer.weight_choice]
    assert elements == architecture.cost("weight_bits")
