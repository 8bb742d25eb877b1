import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from dnas.board import Board
from dnas.checkpoint import load_state
from dnas.engine import Engine, EngineConfig, NumericsError, derived_seed
from dnas.recipe import Optimiser, OptimiserConfig

QUIET = EngineConfig(device="cpu", progress=False)


class Killed(BaseException):
    """What ends a process at once."""


class Toy:
    """Regression with dropout, so that torch's global generator matters; may be killed or poisoned at a step."""

    name = "toy"

    def __init__(
        self, engine: Engine, epochs: int = 4, kill: int | None = None, poison: dict[int, str] | None = None
    ) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.forward = engine.fabric.setup_module(self.model)
        self.optimiser = Optimiser(self.model.named_parameters(), [], OptimiserConfig())
        self.epochs, self.kill, self.poison, self.count = epochs, kill, poison or {}, 0

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps()):
            x = torch.randn(8, 4, generator=generator)
            yield x, x.sum(1, keepdim=True)

    def steps(self) -> int:
        return 3

    def step(self, batch: tuple[Tensor, Tensor], fraction: float) -> dict[str, Tensor]:
        x, y = batch
        if self.kill == self.count:
            raise Killed
        poison = self.poison.get(self.count)
        if poison == "weight":
            with torch.no_grad():
                self.model[3].weight[0, 0] = float("nan")
        if poison == "images":
            x[0, 0] = float("inf")
        loss = F.mse_loss(self.forward(x), y)
        self.count += 1
        if poison == "loss":
            loss = loss * float("nan")
        self.optimiser.step(loss, fraction)
        other = torch.tensor(float("nan") if poison == "other" else 1.0)
        return {"loss": loss.detach(), "other": other}

    def evaluate(self, epoch: int) -> dict[str, float]:
        return {"accuracy": float(epoch)}

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.sgd.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.sgd.load_state_dict(state["optimiser"])


def plain(value: Any) -> Any:
    """State as something that == compares."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def losses(history: list[dict[str, float]]) -> list[float]:
    return [numbers["loss"] for numbers in history]


@pytest.mark.parametrize("kills", [[0], [2], [3, 0, 4], [1, 3, 3, 3]])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, kills: list[int]) -> None:
    engine = Engine(QUIET)
    whole = Toy(engine)
    wanted = engine.fit(whole, None, Board(None), 5)
    path = tmp_path / "toy.ckpt"
    for kill in kills:
        torch.rand(kill + 1)  # wherever the global generator stands
        with pytest.raises(Killed):
            engine.fit(Toy(engine, kill=kill), path, Board(tmp_path / "board"), 5)
    toy = Toy(engine)
    history = engine.fit(toy, path, Board(tmp_path / "board"), 5)
    assert losses(history) == losses(wanted)
    assert plain(toy.state()) == plain(whole.state())
    again = Toy(engine)
    assert engine.fit(again, path, Board(None), 5) == history
    assert again.count == 0
    assert plain(again.state()) == plain(whole.state())


def test_the_same_seed_twice_and_another_one() -> None:
    engine = Engine(QUIET)
    one, same, other = (losses(engine.fit(Toy(engine), None, Board(None), seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert derived_seed(1, "a") != derived_seed(1, "b") != derived_seed(2, "a")
    assert derived_seed(1, "a") == derived_seed("1", "a") < 2**48


def test_a_killed_epoch_leaves_no_double_steps(tmp_path: Path) -> None:
    """Killed after the events of an epoch are on the disk and before its checkpoint is."""
    engine = Engine(QUIET)
    path, folder = tmp_path / "toy.ckpt", tmp_path / "board"
    with pytest.MonkeyPatch.context() as patch:
        saved = []

        def save(*args: Any) -> None:
            saved.append(args)
            if len(saved) == 3:
                raise Killed
            from dnas.checkpoint import save_state

            save_state(*args)

        patch.setattr("dnas.engine.save_state", save)
        board = Board(folder)
        with pytest.raises(Killed):
            engine.fit(Toy(engine), path, board, 5)
        board.close()
    assert len(load_state(path)["history"]) == 2
    board = Board(folder)
    engine.fit(Toy(engine), path, board, 5)
    board.close()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("toy/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("poison", "place"),
    [
        ("weight", "parameter 3.weight"),
        ("images", "the images of the batch"),
        ("loss", "gradient of"),
        ("other", "the loss itself"),
    ],
)
def test_what_is_not_finite_is_named(tmp_path: Path, poison: str, place: str) -> None:
    engine, path = Engine(QUIET), tmp_path / "toy.ckpt"
    with pytest.raises(
        NumericsError, match=rf"toy: .*at epoch 1, step 2; first not finite: {place}.*last good epoch is kept"
    ):
        engine.fit(Toy(engine, poison={5: poison}), path, Board(None), 5)
    state = load_state(path)
    assert len(state["history"]) == 1
    assert torch.isfinite(state["training"]["model"]["3.weight"]).all()
    toy = Toy(engine)  # and training goes on from it
    wanted = Toy(engine)
    engine.fit(wanted, None, Board(None), 5)
    engine.fit(toy, path, Board(None), 5)
    assert plain(toy.state()) == plain(wanted.state())


def test_the_first_output_is_named() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    engine = Engine(QUIET)
    toy = Toy(engine)
    toy.model.insert(1, Root())
    toy.forward = engine.fabric.setup_module(toy.model)
    with pytest.raises(NumericsError, match="step 0; first not finite: output of 1;"):
        engine.fit(toy, None, Board(None), 5)


def test_reduced_precision_trains() -> None:
    engine = Engine(EngineConfig(device="cpu", precision="bf16", progress=False))
    kinds = []
    toy = Toy(engine, epochs=2)
    toy.model[0].register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    found = losses(engine.fit(toy, None, Board(None), 5))
    exact = Engine(QUIET)
    wanted = losses(exact.fit(Toy(exact, epochs=2), None, Board(None), 5))
    assert set(kinds) == {torch.bfloat16}
    assert found != wanted
    assert found == pytest.approx(wanted, rel=0.1)
    assert {p.dtype for p in toy.model.parameters()} == {torch.float32}


def test_progress_names_the_training(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        engine = Engine(EngineConfig(device="cpu"), Console(file=file, width=120))
        engine.fit(Toy(engine, epochs=2), None, Board(None), 5)
    assert "toy" in (tmp_path / "out").read_text()
    assert "6/6" in (tmp_path / "out").read_text()


def test_nothing_to_train(tmp_path: Path) -> None:
    engine = Engine(QUIET)
    assert engine.fit(Toy(engine, epochs=0), tmp_path / "toy.ckpt", Board(None), 5) == []


def test_a_damaged_checkpoint_is_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "toy.ckpt").write_bytes(b"not a checkpoint")
    engine = Engine(QUIET)
    with pytest.raises(ValueError, match="delete it to start again"):
        engine.fit(Toy(engine), tmp_path / "toy.ckpt", Board(None), 5)


def test_numbers_are_those_of_the_whole_epoch(tmp_path: Path) -> None:
    engine = Engine(QUIET)
    history = engine.fit(Toy(engine, epochs=2), tmp_path / "toy.ckpt", Board(None), 5)
    assert [set(numbers) for numbers in history] == [{"loss", "other", "accuracy", "seconds"}] * 2
    assert [numbers["accuracy"] for numbers in history] == [0.0, 1.0]
    assert json.loads(json.dumps(load_state(tmp_path / "toy.ckpt")["history"])) == history


@pytest.mark.parametrize("wrong", [{"precision": "fp16"}, {"device": "tpu"}, {"threads": 0}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"engine.{next(iter(wrong))}"):
        EngineConfig(**wrong)
