"""What every awkward graph must satisfy: the masked supernet computes what the physically smaller network computes."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import example, randomise
from random_parts import BATCH, Depends, RandomNetwork, TorchAttention
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import dnas
from dnas.search.relax import Relaxation
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.attention import separate_attention
from dnas.space.choice import Position, Space
from dnas.space.cost import COSTS, build_cost, reference_cost
from dnas.space.optional import LeftOut
from dnas.space.slicing import shrink_kernel, slice_model
from dnas.space.trace import unfused
from quant.brevitas import quantised_layers
from quant.modules import replace_module
from quant.verify import verify

ROUNDING = 1e-6
"""An activation step below this is one of numbers that are zero but for rounding."""
OPTIONS: dict[str, Any] = {"weight_bits": (2, 4, 8), "act_bits": (3, 8), "filters": (0.25, 0.5, 0.75, 1.0)}


def build(
    make: Callable[[], nn.Module], dtype: torch.dtype, inputs: tuple[Any, ...] | None, options: dict[str, Any]
) -> tuple[nn.Module, tuple[Any, ...], Supernet]:
    """The user's model with random statistics in evaluation mode, its inputs, and its supernet."""
    model = randomise(make()).eval().to(dtype)
    inputs = example(model) if inputs is None else inputs
    inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
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
            plain = separate_attention(model)  # which tests/dnas/test_separate_attention.py compares with torch's own
            for got, want in zip(tree_leaves(supernet(*given)), tree_leaves(plain(*given)), strict=True):
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
        if not space.runs(layer.name, architecture.positions()):
            assert not any(name == layer.name for name, _ in realised.named_modules())
            continue
        elements += realised.get_submodule(layer.name).weight.numel() * architecture[layer.weight_choice]
    assert elements == architecture.cost("weight_bits")


def cut(model: nn.Module, space: Space, architecture: Architecture) -> nn.Module:
    """The plain network of an architecture: fewer filters, smaller kernels, blocks left out; no quantisers."""
    assert architecture.kept is not None
    small, positions = copy.deepcopy(model), architecture.positions()
    kept = {i: set(architecture.kept[group.choice]) for i, group in enumerate(space.groups)}
    slice_model(small, space.layers, space.through, kept)
    for layer in space.layers:
        if layer.kernel_choice:
            shrink_kernel(small.get_submodule(layer.name), architecture[layer.kernel_choice])
    leave_out(small, space, positions)
    return small


def leave_out(model: nn.Module, space: Space, positions: Mapping[str, Position]) -> None:
    """Takes the blocks out of a plain network that do not run at one option (by position) per choice."""
    for gate in sorted(space.gates, key=lambda gate: gate.module, reverse=True):
        if not space.is_open(gate, positions):
            replace_module(model, gate.module, LeftOut())


@torch.no_grad()
def check_elastic(make: Callable[[], nn.Module], draws: int = 6, **options: Any) -> Supernet:
    """As `check`; and every cost is that of the plain network that is cut down and measured anew, at 8 bits."""
    supernet = check(make, draws=draws, **options)
    model, given, supernet = build(make, torch.float64, None, {**options, "weight_bits": (8,), "act_bits": (8,)})
    space = supernet.space
    assert Space.from_json(space.to_json()) == space
    for architecture in architectures(space, draws):
        architecture = supernet.with_filters(architecture)
        small = cut(model, space, architecture)
        anew = dnas.build_space(small, given, weight_bits=(8,), act_bits=(8,), filters=(1.0,))
        with FlopCounterMode(display=False) as counter, unfused():
            small(*given)
        assert architecture.cost("macs") * len(given[0]) * 2 == counter.get_total_flops()
        for name in COSTS:
            assert architecture.cost(name) == reference_cost(anew, name), name
    return supernet


@dataclass(frozen=True)
class Examined:
    """What is known of a network that holds: its groups, those that can shrink, why others stay, what its file gave."""

    groups: int
    shrinking: int
    fixed: tuple[str, ...]
    exported: str


@torch.no_grad()
def examine(network: RandomNetwork, seed: int, folder: Path | None = None, draws: int = 1) -> Examined:
    """Everything that must hold of any network, at random architectures.

    With its quantisers off the supernet is the network; it trains with soft choices where the network trains; masked
    equals realised in double precision; the MACs that the cost says are those that torch counts in the plain network
    when it is cut; with a folder, onnxruntime computes from the exported file what torch computes.

    Args:
        network: grown at random; its weights and statistics are drawn anew.
        seed: of weights, inputs and architectures.
        folder: where a file may be written; none is without.
        draws: random architectures beside the smallest.
    """
    torch.manual_seed(seed)
    plain = separate_attention(randomise(network, seed).eval().double())
    inputs = _double(network.example(seed))
    space = dnas.build_space(network, inputs, **OPTIONS)
    supernet = Supernet(network, space).eval()
    with supernet.quantisers_off():
        assert_close(supernet(*inputs), plain(*inputs), 1e-12)
    if trains(copy.deepcopy(plain), inputs):  # some networks change in place what their own gradient needs
        assert trains(Supernet(network, space, Relaxation("softmax")), inputs)
    generator = torch.Generator().manual_seed(seed)
    realised: nn.Module = supernet
    for turn in range(draws + 1):
        options = {
            choice.name: choice.options[
                int(torch.randint(len(choice.options), (1,), generator=generator)) if turn else 0
            ]
            for choice in space.choices
        }
        architecture = supernet.with_filters(Architecture(space, options))
        with supernet.evaluate_as(architecture):
            wanted = supernet(*inputs)
        realised = dnas.realise(supernet, architecture).eval()
        assert_close(realised(*inputs), wanted, 1e-10)
        check_shapes(realised, space, architecture)
        assert architecture.cost("macs") * 2 * BATCH == counted_operations(plain, space, architecture, inputs)
    searched = [group for group in space.groups if space.choice(group.choice).searched]
    exported = "" if folder is None else export_and_verify(realised, inputs, folder)
    reasons = tuple(f.reason for f in space.fixed if f.name.endswith(".filters"))
    produced = [group for group in space.groups if group.members]
    return Examined(len(produced), len(searched), reasons, exported)


def _double(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.double(), tree)


def trains(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a training step runs and every gradient is finite."""
    with torch.enable_grad():
        outputs = [leaf.square().mean() for leaf in tree_leaves(model.train()(*inputs))]
        try:
            torch.stack(outputs).sum().backward()
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            return False
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def counted_operations(plain: nn.Module, space: Space, architecture: Architecture, inputs: tuple[Any, ...]) -> int:
    """Floating-point operations of the plain network cut to an architecture's filters, as torch counts them."""
    smaller = copy.deepcopy(plain)
    kept = {i: set((architecture.kept or {})[group.choice]) for i, group in enumerate(space.groups)}
    slice_model(smaller, space.layers, space.through, kept)
    with FlopCounterMode(display=False) as counter, unfused():
        smaller(*inputs)
    return counter.get_total_flops()


class Packed(nn.Module):
    """A network with one tensor in (whatever it takes, flattened and joined) and one out: what `verify` runs."""

    def __init__(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, packed: Tensor) -> Tensor:
        parts = iter(packed.split([leaf[0].numel() for leaf in tree_leaves(self.inputs)], 1))
        inputs = tree_map(lambda leaf: next(parts).view(-1, *leaf.shape[1:]), self.inputs)
        logits: Tensor = tree_leaves(self.network(*inputs))[0]
        return logits


def export_and_verify(realised: nn.Module, inputs: tuple[Any, ...], folder: Path) -> str:
    """Exports to QCDQ and compares code by code with onnxruntime and the integer reference.

    Returns:
        "verified"; or why torch's exporter refuses the network or `verify` cannot check it.
    """
    for module in realised.modules():
        if isinstance(module, Depends):
            return "control flow on values: a file holds one path"
        if isinstance(module, TorchAttention) and not module.batch_first:
            return "a layer's input has the batch in another dimension than the first"
    if any(float(layer.activation_step) < ROUNDING for layer in quantised_layers(realised)):
        return "a layer reads rounding errors alone: the mean of what an instance norm centred"
    single = tree_map(lambda leaf: leaf.float(), inputs)
    network, path = Packed(realised.float(), single).eval(), folder / "network.onnx"
    packed = torch.cat([leaf.flatten(1) for leaf in tree_leaves(single)], 1)
    try:
        dnas.export(network, packed, path, "qcdq")
    except (
        torch.onnx.errors.OnnxExporterError,
        AssertionError,
    ) as error:  # assertions of its own, on shapes that it lost
        return f"torch's exporter: {str(error).splitlines()[0].split('. Please')[0].split('  [')[0]}"
    try:
        verify(network, packed, packed, {"qcdq": path})
    except ValueError as error:
        if "shape inference does not know" not in str(error):
            raise
        return "onnx's shape inference does not know the positions of a layer's input"
    return "verified"
