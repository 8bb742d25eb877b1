"""Space and costs do not depend on how many examples are given, whatever a layer's first dimension holds; steps use all."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.models import resnet8
from dnas.realise import realise
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.batch_norm import batch_statistics
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.examples import first_examples, input_samples, trace_few
from dnas.space.exported import check_costs
from dnas.space.trace import unfused
from quant.export import export
from quant.graph import read_layers
from quant.quantizer import drawn
from tests.networks import Residual, example

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SIDE = 49


class Table(nn.Module):
    """A small network over a table of coordinates, not over images, as position biases have."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.register_buffer("coordinates", torch.randn(rows, SIDE, 2))
        self.bias = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1, stride=4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.bias(self.coordinates).mean((0, 1))
        found: Tensor = self.head(F.relu(self.stem(x)).mean((2, 3)) + added)
        return found


class Windows(nn.Module):
    """Two windows of each image in the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x)).permute(0, 2, 3, 1)
        y = F.relu(self.mix(y.reshape(-1, 32, y.shape[-1])))
        found: Tensor = self.head(y.reshape(-1, 64, y.shape[-1]).mean(1))
        return found


class Views(nn.Module):
    """Two views of each image in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.stem(torch.cat([x, x.flip(3)]))).mean((2, 3)).chunk(2)
        found: Tensor = self.head(torch.cat([one, other], 1))
        return found


class Routed(nn.Module):
    """A layer that only runs where some image is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        if float(x.max()) > 10:
            y = F.relu(self.more(y))
        found: Tensor = self.head(y.mean((2, 3)))
        return found


class OneSize(nn.Module):
    """Written for batches of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.relu(self.stem(x)).reshape(8, 8, -1).mean(2))
        return found


def built(model: nn.Module, count: int) -> Space:
    return build_space(model.eval(), IMAGES[:count], (2, 8), (2, 8), (0.5, 1.0))


@pytest.mark.parametrize(
    ("network", "positions"),
    [
        (lambda: Table(1), [4, SIDE, SIDE, 1]),
        (lambda: Table(2), [4, 2 * SIDE, 2 * SIDE, 1]),  # as many rows as examples
        (Windows, [64, 64, 1]),
        (Views, [2 * 64, 1]),
    ],
)
def test_positions_are_those_of_one_image(network: type[nn.Module], positions: list[int], tmp_path: Path) -> None:
    for count in (1, 2, 8, 64):
        torch.manual_seed(0)
        model = network()
        space = built(model, count)
        assert sorted(layer.positions for layer in space.layers) == sorted(positions)
        if count == 2:
            whole = Architecture(space, {choice.name: choice.options[-1] for choice in space.choices})
            small = realise(Supernet(model, space), whole).eval()
            export(small, IMAGES[:2], tmp_path / "model.onnx", "qcdq")
            assert check_costs(whole, read_layers(tmp_path / "model.onnx"))["macs"] == whole.cost("macs")


def test_channels_may_be_innermost() -> None:
    """Poolings then write their result another way; the command trains like this."""
    torch.manual_seed(0)
    model = resnet8(3, 5).eval()
    images = torch.randn(8, 3, 32, 32)
    wanted = build_space(model, images, (2, 8), (2, 8), (0.5, 1.0))
    model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    for count in (1, 2, 8):
        found = build_space(model, images[:count], (2, 8), (2, 8), (0.5, 1.0))
        assert found.choices == wanted.choices
        assert found.fixed == wanted.fixed
        assert found.layers == wanted.layers


def test_steps_are_fitted_to_entries_of_all_examples() -> None:
    """The same as with every input kept whole: where it fits, and where entries are drawn."""
    torch.manual_seed(0)
    model = Residual().eval()
    (images,) = example(model)
    images = torch.randn(96, *images.shape[1:])
    images[50, 0, 0, 0] = -30.0
    trace, few = trace_few(model, (images,))
    assert len(few[0]) == 2
    whole: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: whole.append(args[0].clone()))
        for name in {call.layer for call in trace.calls}
    ]
    with torch.no_grad(), unfused(), batch_statistics(model):  # its batch norms have seen nothing yet
        model(images)
    for hook in hooks:
        hook.remove()
    shared = {"each": trace.calls[:1], "several": trace.calls[1:4]}
    found = input_samples(model, (images,), trace, shared)
    for act, tensors in (("each", whole[:1]), ("several", whole[1:4])):
        values = torch.cat([x.flatten() for x in tensors])
        assert torch.equal(found[act][1], drawn(values)), act
        assert found[act][0] == bool((values < 0).any())


def test_layers_that_only_some_examples_run_are_found() -> None:
    images = IMAGES.clone()
    images[40] = 20.0
    trace, used = trace_few(Routed().eval(), (images,))
    assert [call.layer for call in trace.calls] == ["stem", "more", "head"]
    assert len(used[0]) == 64


def test_a_network_for_one_size_of_batch() -> None:
    space = built(OneSize(), 8)
    assert [layer.positions for layer in space.layers] == [36, 1]


def test_only_what_is_as_long_as_the_batch_is_cut() -> None:
    table = torch.randn(7, 3)
    found = first_examples((IMAGES, {"table": table, "scale": 2.0}), 2)
    assert found[0].shape == (2, 3, 8, 8)
    assert found[1]["table"] is table
