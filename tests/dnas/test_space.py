"""Spaces: couplings by hand, what is not searched and why, options, restrictions, and a model left as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Attention, Chain, Functional, Head, Residual, Shared, TwoInputs, conv, example
from torch import Tensor, nn

from dnas.space.architecture import Architecture
from dnas.space.attention import separate_attention
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.target import Target, TargetError

COUPLINGS: dict[str, dict[tuple[str, ...], int]] = {
    "chain": {("a",): 8, ("b",): 12},
    "residual": {("stem", "b"): 8, ("a",): 8, ("c",): 12, ("short", "d"): 12},
    "separable": {("stem", "project"): 8, ("expand", "depth"): 16},
    "concat": {("stem",): 4, ("left",): 4, ("right",): 8, ("join",): 8},
    "twice": {("a",): 8, ("b",): 8},
    "flat": {("a",): 8, ("fc1",): 12},
    "grouped": {("c",): 8},
    "transposed": {("down",): 8, ("up", "smooth"): 12, ("last",): 8},
    "shared": {("stem", "twice", "one"): 8},
    "two_inputs": {("a", "b"): 8, ("c",): 8},
    "functional": {("b",): 8},
    "attention": {("embed", "attention.out_proj", "down"): 8, ("up",): 16},
    "narrow": {("b",): 8},
}
"""For every network the members and sizes of the groups that are searched."""


def space_of(model: nn.Module, **named: Any) -> Space:
    return build_space(model, example(model), **named)


def searched(space: Space) -> dict[tuple[str, ...], int]:
    return {group.members: group.size for group in space.groups if space.choice(group.choice).searched}


def reasons(space: Space) -> dict[str, str]:
    return {fixed.name: fixed.reason for fixed in space.fixed}


@pytest.mark.parametrize("name", sorted(COUPLINGS))
def test_couplings(name: str) -> None:
    found = {tuple(sorted(k)): v for k, v in searched(space_of(NETWORKS[name]())).items()}
    assert found == {tuple(sorted(k)): v for k, v in COUPLINGS[name].items()}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_channel_has_one_place(name: str) -> None:
    model = NETWORKS[name]()
    space = space_of(model)
    for layer in space.layers:
        weight = separate_attention(model).get_submodule(layer.name).weight
        transposed = "Transpose" in layer.kind
        assert len(layer.outputs) == weight.shape[1 if transposed else 0] * (layer.groups if transposed else 1)
        assert len(layer.inputs) == weight.shape[0 if transposed else 1] * (1 if transposed else layer.groups)
        for side in (layer.inputs, layer.outputs):
            for group, position in zip(side.group, side.position, strict=True):
                assert position < space.groups[group].size
        for group in set(layer.outputs.group):
            if space.choice(space.groups[group].choice).searched:
                assert layer.name in space.groups[group].members
    for item in space.through:
        assert len(item.channels) == model.get_submodule(item.name).weight.numel()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_json_round_trip(name: str) -> None:
    space = space_of(NETWORKS[name](), target=Target(pairs=((4, 4), (8, 8))), weight_narrow=True)
    again = Space.from_json(space.to_json())
    assert again == space
    assert again.digest == space.digest
    assert again.to_json() == space.to_json()
    assert '"version": 2' in space.to_json()  # run folders of earlier releases are read, and their digests stay
    with pytest.raises(ValueError, match=r"dnas\.Space"):
        Space.from_json(space.to_json().replace('"version": 2', '"version": 1'))
    with pytest.raises(ValueError, match="not JSON"):
        Space.from_json("{")


def test_an_architecture_belongs_to_its_space() -> None:
    space, other = space_of(Chain()), space_of(Residual())
    found = Architecture(space, {c.name: c.options[0] for c in space.choices})
    assert Architecture.from_json(found.to_json(), space) == found
    with pytest.raises(ValueError, match="chosen from space"):
        Architecture.from_json(found.to_json(), other)
    with pytest.raises(ValueError, match="missing"):
        Architecture(space, {})
    with pytest.raises(ValueError, match="not an option"):
        Architecture(space, {**found.options, "a.weight_bits": 7})
    with pytest.raises(ValueError, match="filters are kept"):
        Architecture(space, found.options, kept={"a.filters": (0,)})


def test_excluded_layers_keep_width_and_bits() -> None:
    space = space_of(Residual(), exclude=("s*", "head.fc"), weight_bits=(2, 4), act_bits=(2, 4))
    for name in ("stem", "short", "head.fc"):
        assert space.choice(f"{name}.weight_bits").options == (8,)
        assert space.choice(space.layer(name).act_choice).options == (8,)
        assert "space.exclude" in reasons(space)[name]
    assert searched(space) == {("a",): 8, ("c",): 12}
    # c reads the tensor that short reads: an excluded layer has 8 bits, whoever shares its input
    assert space.layer("c").act_choice == space.layer("short").act_choice
    assert space.choice("d.act_bits").options == (2, 4)


def test_a_glob_that_matches_nothing() -> None:
    with pytest.raises(ValueError, match="'stm' matches no layer"):
        space_of(Residual(), exclude=("stm",))


def test_targets_restrict_options() -> None:
    target = Target("dsp", weight_bits=(4, 8), pairs=((4, 8), (8, 8)), channel_multiple=4)
    space = space_of(Residual(), target=target, filters=(0.25, 0.4, 0.6, 1.0))
    assert space.choice("a.weight_bits").options == (4, 8)
    assert space.choice("a.act_bits").options == (8,)
    assert space.pairs == ((4, 8), (8, 8))
    for group in space.groups:
        choice = space.choice(group.choice)
        assert all(count % 4 == 0 or count == group.size for count in choice.options)
        assert choice.options[-1] == group.size
    with pytest.raises(TargetError, match="nothing in common"):
        space_of(Residual(), target=Target("odd", weight_bits=(5,)), weight_bits=(4,))
    with pytest.raises(TargetError, match="channel_multiple"):
        Target(channel_multiple=0)


def test_filter_counts() -> None:
    assert Target().filter_counts(10, (0.01, 0.25, 0.5, 1.0)) == (1, 2, 5, 10)
    assert Target(channel_multiple=8).filter_counts(20, (0.1, 0.5, 0.9, 1.0)) == (8, 16, 20)
    assert Target(channel_multiple=32).filter_counts(20, (0.5,)) == (20,)
    for bad in (0.0, -0.5, 1.5):
        with pytest.raises(TargetError, match="shares above 0"):
            Target().filter_counts(8, (bad,))


def test_what_is_not_searched_is_listed_and_counted() -> None:
    functional = space_of(Functional())
    (operation,) = [fixed for fixed in functional.fixed if fixed.macs]
    assert operation.macs == 8 * 8 * 64
    assert "not a layer of its own" in operation.reason
    assert "Parameter" in reasons(functional)["a.filters"]
    attention = space_of(Attention())
    counted = sum(fixed.macs for fixed in attention.fixed)
    assert counted == 2 * (7 * 7 * 8)  # two products of heads; the projections are layers
    assert {layer.name for layer in attention.layers} >= {f"attention.{name}" for name in ("q", "k", "v", "out_proj")}
    for name in ("q", "k", "v"):
        assert "splits channels over several dimensions" in reasons(attention)[f"attention.{name}.filters"]
    unused = Chain()
    unused.spare = nn.Conv2d(3, 3, 1)
    assert "did not run" in reasons(space_of(unused))["spare"]


def test_layers_that_read_one_tensor_share_its_choice() -> None:
    space = space_of(Residual())
    assert space.layer("short").act_choice == space.layer("c").act_choice
    assert space.layer("a").act_choice != space.layer("b").act_choice
    shared = space_of(Shared())
    assert shared.layer("twice").act_choice == "twice.act_bits"
    two = space_of(TwoInputs())
    assert two.choice("a.act_bits").options == two.choice("b.act_bits").options == (8,)
    assert two.ranges["a.act_bits"].signed
    assert not two.ranges["c.act_bits"].signed


def test_the_model_is_left_as_it_was() -> None:
    model = Residual()
    model.n0.eval()
    model.a.weight.requires_grad_(False)
    model.b.weight.grad = torch.ones_like(model.b.weight)
    calls: list[int] = []
    model.c.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    fused, state = torch.backends.mha.get_fastpath_enabled(), torch.random.get_rng_state()
    space_of(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert torch.equal(model.b.weight.grad, torch.ones_like(model.b.weight))
    assert model.stem.weight.grad is None
    assert {len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules() if m is not model.c} == {0}
    assert len(model.c._forward_hooks) == 1
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ({"weight_bits": ()}, "space.weight_bits"),
        ({"weight_bits": (1, 2)}, "2 to 8"),
        ({"weight_bits": (4, 9)}, "2 to 8"),
        ({"act_bits": (2.5,)}, "whole numbers"),
        ({"act_bits": (True,)}, "whole numbers"),
        ({"filters": ()}, "space.filters is empty"),
        ({"filters": (0.0, 1.0)}, "shares above 0"),
        ({"filters": (1.2,)}, "shares above 0"),
    ],
)
def test_options_out_of_range(named: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        space_of(Chain(), **named)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="failed on example_inputs"):
        build_space(Chain(), torch.randn(2, 4, 8, 8))
    with pytest.raises(ValueError, match="nothing to search"):
        build_space(nn.Sequential(nn.Flatten()), torch.randn(2, 4))


def test_options_are_sorted_whole_numbers() -> None:
    space = space_of(Chain(), weight_bits=(8, 4.0, 4), act_bits=(3, 2))
    assert space.choice("b.weight_bits").options == (4, 8)
    assert all(type(option) is int for choice in space.choices for option in choice.options)
    assert space.choice("b.act_bits").options == (2, 3)


class Around(nn.Module):
    """Two convolutions and a head around an operation between them."""

    def __init__(self, operation: Callable[[Tensor], Tensor], wide: int = 8, middle: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.operation = conv(3, wide), conv(middle, 8), operation
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.operation(self.a(x).relu())).relu())


MIXING: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "softmax over channels": (lambda x: x.softmax(1), 8, 8),
    "mean over channels": (lambda x: x - x.mean((1, 2, 3), keepdim=True), 8, 8),
    "flip": (lambda x: x.flip(1), 8, 8),
    "sort": (lambda x: x.sort(1)[0], 8, 8),
    "hard-coded size": (lambda x: x.view(-1, 8, 8, 8), 8, 8),
    "constant per channel": (lambda x: x * torch.arange(1.0, 9.0).reshape(1, 8, 1, 1), 8, 8),
    "first half": (lambda x: x[:, :4], 8, 4),
    "gated linear unit": (lambda x: F.glu(x, 1), 16, 8),
    "maximum of halves": (lambda x: torch.maximum(*x.chunk(2, 1)), 16, 8),
    "uneven split": (lambda x: x.split([2, 6], 1)[1], 8, 6),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), 16, 4),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 8, 32),
    "channel shuffle": (lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8), 8, 8),
    "padding of channels": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 8, 12),
}


@pytest.mark.parametrize("name", sorted(MIXING))
def test_what_cannot_be_removed_stays_whole(name: str) -> None:
    operation, wide, middle = MIXING[name]
    space = space_of_images(Around(operation, wide, middle))
    for group in space.groups:
        if "a" in group.members:
            assert space.choice(group.choice).options == (group.size,)
            assert any(fixed.name == group.choice and fixed.reason for fixed in space.fixed)
    assert ("b",) in searched(space) or name == "padding of channels"


def space_of_images(model: nn.Module) -> Space:
    return build_space(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_a_depthwise_layer_on_the_input_keeps_the_inputs_channels() -> None:
    space = space_of_images(nn.Sequential(conv(3, 3, groups=3), nn.ReLU(), conv(3, 8), nn.ReLU(), Head(8)))
    assert searched(space) == {("2",): 8}
    assert "input" in reasons(space)["0.filters"]


def test_a_normalisation_over_input_and_features() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.head = conv(3, 8), nn.BatchNorm2d(11), conv(11, 8), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.norm(torch.cat([self.a(x), x], 1))).relu())

    space = space_of_images(Joined())
    (through,) = [item for item in space.through if item.name == "norm"]
    assert len(through.channels) == 11


def test_layers_whose_weight_is_computed_are_searched_as_plain_ones() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 8)), nn.ReLU(), conv(8, 8), Head(8))
    space = space_of_images(model)
    assert [layer.name for layer in space.layers] == ["0.layer", "2", "3.fc"]
    assert not sum(fixed.macs for fixed in space.fixed)


def test_the_same_space_in_every_process() -> None:
    names = [item.name for item in space_of(Residual()).through]  # not in the order of a set of strings
    assert names == sorted(names)
    assert len(names) == 6
