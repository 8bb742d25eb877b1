import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dnas.checkpoint import load_state, save_state
from quant.files import write_atomically


def assert_equal(found: object, wanted: object) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert isinstance(found, dict)
        assert list(found) == list(wanted)
        for key in wanted:
            assert_equal(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert isinstance(found, list | tuple)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert found == wanted or (isinstance(wanted, float) and math.isnan(wanted) and math.isnan(found))  # type: ignore[arg-type]


def test_round_trip_of_everything(tmp_path: Path, generator: torch.Generator) -> None:
    shared = torch.randn(3, generator=generator)
    state = {
        "tensors": [torch.randn(2, 3, generator=generator).t(), torch.zeros(()), torch.zeros(0, 2), shared, shared],
        "types": (torch.arange(3), torch.tensor([True]), torch.ones(2, dtype=torch.bfloat16), torch.ones(1).double()),
        "nested": {"tuple": (1, (2.5, ("a", None)), []), 3: {"empty": {}}, "tensor": {"dict": 1}},
        "numbers": [0.1, 1e-310, math.inf, math.nan, True, False, -(2**60)],
        "generator": generator.get_state(),
        "text": 'quotes " and\nlines and ü',
    }
    save_state(tmp_path / "state.ckpt", state)
    assert_equal(load_state(tmp_path / "state.ckpt"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["state.ckpt"]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_optimiser_goes_on_where_it_was(
    tmp_path: Path, kind: type[torch.optim.Optimizer], generator: torch.Generator
) -> None:
    def make() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 2)
        options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1, "betas": (0.5, 0.999)}
        return layer, kind(layer.parameters(), **options)

    def train(layer: nn.Linear, optimiser: torch.optim.Optimizer, batches: list[torch.Tensor]) -> None:
        for x in batches:
            optimiser.zero_grad()
            layer(x).square().sum().backward()
            optimiser.step()

    batches = [torch.randn(3, 4, generator=generator) for _ in range(6)]
    whole, first, second = make(), make(), make()
    train(*whole, batches)
    train(*first, batches[:3])
    save_state(tmp_path / "o.ckpt", {"layer": first[0].state_dict(), "optimiser": first[1].state_dict()})
    state = load_state(tmp_path / "o.ckpt")
    second[0].load_state_dict(state["layer"])
    second[1].load_state_dict(state["optimiser"])
    train(*second, batches[3:])
    assert torch.equal(second[0].weight, whole[0].weight)


def test_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    save_state(tmp_path / "g.ckpt", {"state": generator.get_state()})
    wanted = torch.rand(5, generator=generator)
    other = torch.Generator()
    other.set_state(load_state(tmp_path / "g.ckpt")["state"])
    assert torch.equal(torch.rand(5, generator=other), wanted)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "header", "missing", "foreign"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.ckpt"
    save_state(path, {"a": torch.randn(100), "b": (1, 2)})
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {"cut": content[:-7], "empty": b"", "text": b"hello", "header": b"\xff" * 8 + content[8:]}[damage]
        )
    with pytest.raises(ValueError, match=r"state.ckpt is not a checkpoint of dnas, or is damaged .*delete it"):
        load_state(path)


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, [b"bytes"], {"x": (lambda: 0)}])
def test_other_types_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="a checkpoint cannot hold a"):
        save_state(tmp_path / "state.ckpt", {"value": value})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_floats_survive_to_the_last_bit(tmp_path: Path) -> None:
    values = torch.randn(1000, dtype=torch.float64).tolist()
    save_state(tmp_path / "f.ckpt", {"values": values})
    assert load_state(tmp_path / "f.ckpt")["values"] == values
    assert json.loads(json.dumps(values)) == values
