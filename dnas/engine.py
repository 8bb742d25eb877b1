"""The only training loop: epochs, precision, checkpoints, progress, numerics. What is trained is a `Training`."""

import atexit
import contextlib
import copy
import hashlib
import os
import resource
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from dnas.board import Board
from dnas.checkpoint import load_state, save_state
from quant.kernel import cache_folder, kernel_available

COMPILE_FROM = 5000
"""Training steps that pay for compiling a network: it takes 10 to 40 s and saves a few milliseconds a step."""

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]
"""(images, labels): float32 (n, ...) and int64 (n,)."""


EXPLODED = 1e6
"""A loss above this is no training any more."""


class NumericsError(RuntimeError):
    """A loss or gradient that is not finite: training stopped, the last good checkpoint is kept."""


@dataclass(frozen=True)
class EngineConfig:
    """Where and how to compute.

    device: `auto`, `cpu`, `cuda` or `cuda:N`. precision: `fp32` or `bf16` (autocast). threads: None leaves torch's own.
    processes: how many torchrun starts on this machine.
    channels_last: lay images out with channels innermost.
    compile: `auto` compiles the trained network where a training is long enough to pay for it; `always`, `never`.
    """

    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    processes: int = 1
    channels_last: bool = True
    compile: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"engine.precision is {self.precision!r}; allowed: 'fp32', 'bf16'")
        if self.compile not in ("auto", "always", "never"):
            raise ValueError(f"engine.compile is {self.compile!r}; allowed: 'auto', 'always', 'never'")
        if self.device != "auto" and self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"engine.device is {self.device!r}; allowed: 'auto', 'cpu', 'cuda', 'cuda:N'")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"engine.threads is {self.threads}; allowed: 1 or more, or null for torch's own choice")


class Training(Protocol):
    """What the engine trains: one `step` per batch, one `evaluate` per epoch, all state in `state`.

    model: what is put into training mode. network: what `torch.compile` compiles, the model or a part of it.
    """

    name: str
    epochs: int
    model: nn.Module
    network: nn.Module

    def batches(self, epoch: int) -> Iterable[Any]:
        """The epoch's batches; a function of the seed and the epoch alone."""

    def steps(self) -> int:
        """Batches in an epoch."""

    def step(self, batch: Any, fraction: float) -> dict[str, Tensor]:
        """Forward, backward and optimiser step; returns numbers to average, `loss` among them."""

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Numbers to log after an epoch."""

    def state(self) -> dict[str, Any]:
        """Everything that training changes."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores it."""


def compiled_step(training: Training, batch: Any, fraction: float) -> dict[str, Tensor] | None:
    """Compiles a training's network and takes its first step; None, with a warning and all as before, where that fails.

    Raises:
        NumericsError: the step itself.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    kernel_available()  # a graph uses it only where it is loaded
    torch._dynamo.reset()  # graphs of trainings that are over count towards the limit of graphs per function
    before, generator = copy.deepcopy(training.state()), torch.get_rng_state()
    try:
        training.network.compile(dynamic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own compiler
            return training.step(batch, fraction)
    except NumericsError:
        raise
    except Exception as error:  # a compiler is allowed to fail on any network: training goes on without it
        forget_compiled(training.network)
        training.load_state(before)
        torch.set_rng_state(generator)
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"{training.name}: torch.compile failed ({reason[:200]}); the network is trained without it (a run that was "
            "compiled before it was killed then rounds differently). Set engine.compile=never to do so without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


class _Steps:
    """The steps of a training; the first one compiles, where that is wanted. What was compiled ends with the context."""

    def __init__(self, training: Training, compiled: bool) -> None:
        self.training, self.compiled, self.tried = training, compiled, not compiled

    def step(self, batch: Any, fraction: float) -> dict[str, Tensor]:
        if not self.tried:
            self.tried = True
            numbers = compiled_step(self.training, batch, fraction)
            if numbers is not None:
                return numbers
            self.compiled = False
        return self.training.step(batch, fraction)

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *error: object) -> None:
        if self.compiled:
            forget_compiled(self.training.network)


def forget_compiled(network: nn.Module) -> None:
    """Undoes `nn.Module.compile`, for which torch has no call."""
    network._compiled_call_impl = None


def derived_seed(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:6], "big")


def reset_peak_memory() -> None:
    """Starts the measurement of `peak_memory_mb` anew, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Largest resident memory of this process since the last reset, in MB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def leave_processes() -> None:
    """Ends the connection to the other processes; without it gloo may abort a process that has finished (PyTorch 190489)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Bfloat16(MixedPrecision):
    """Autocast to bf16. It needs no gradient scaler, so that trainings may call `loss.backward()` themselves."""

    backward = Precision.backward


class Engine:
    """Device, precision and the loop. One object serves all trainings of a run."""

    def __init__(self, config: EngineConfig, console: Console | None = None) -> None:
        """Sets up the device.

        Lightning Fabric places modules and runs autocast (and DDP under torchrun), so that no loop knows of devices.

        Args:
            config: see `EngineConfig`.
            console: where progress goes.

        Raises:
            ValueError: CUDA is asked for and there is none.
        """
        self.config = config
        kind, _, index = config.device.partition(":")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"engine.device={config.device}, but torch finds no CUDA device; use engine.device=cpu")
        accelerator = "cuda" if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()) else "cpu"
        started = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if config.processes != started:
            raise ValueError(
                f"engine.processes={config.processes}, but {started} started; start with "
                f"torchrun --nproc_per_node={config.processes} -m dnas ..., or set engine.processes={started}"
            )
        devices: Any = [int(index)] if index else started
        plugins: list[Any] = [_Bfloat16("bf16-mixed", accelerator)] if config.precision == "bf16" else []
        if config.threads:
            torch.set_num_threads(config.threads)
        strategy = "ddp_find_unused_parameters_true" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto"
        self.fabric = Fabric(accelerator=accelerator, devices=devices, plugins=plugins, strategy=strategy)
        self.fabric.launch()
        if self.world_size > 1:
            atexit.register(leave_processes)
        self.console = console or Console()

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return self.fabric.device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.fabric.global_rank)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.fabric.world_size)

    def same(self, value: T) -> T:
        """What process 0 found, in every process: what each measures on images of its own differs."""
        return value if self.world_size == 1 else self.fabric.broadcast(value)

    def share(self, model: nn.Module) -> None:
        """Gives the model of every process what that of process 0 holds: running statistics are of each one's own images."""
        if self.world_size > 1:
            tensors = [*model.parameters(), *model.buffers()]
            found = self.same([tensor.detach().cpu() for tensor in tensors])
            with torch.no_grad():
                for tensor, value in zip(tensors, found, strict=True):
                    tensor.copy_(value)

    def fit(self, training: Training, checkpoint: Path | None, board: Board, seed: int) -> list[dict[str, float]]:
        """Runs a training to its end, resuming from `checkpoint` if that exists.

        Every epoch starts from the checkpointed state and a seed of (seed, name, epoch): a run that was killed at any
        moment ends with the same weights as one that was not.

        Args:
            training: what to train.
            checkpoint: written after every epoch, atomically; None keeps nothing.
            board: TensorBoard.
            seed: of the run.

        Returns:
            one dict of averaged and evaluated numbers per epoch; `seconds` is an epoch's wall time.

        Raises:
            NumericsError: a loss or gradient that is not finite.
            ValueError: `checkpoint` is of another seed or of another training.
        """
        history: list[dict[str, float]] = []
        compiled = self._compiles(training)
        if checkpoint is not None and checkpoint.exists():
            state = load_state(checkpoint)
            if state.get("seed", seed) != seed:
                raise ValueError(
                    f"{checkpoint} is of seed {state['seed']}, this run of {seed}; remove it to train again, or give another "
                    "file"
                )
            training.load_state(state["training"])
            history, board_state = state["history"], state["board"]
            compiled = bool(state.get("compiled", False))  # decided once: compiled and eager steps round differently
            board.load_state(board_state)
        if checkpoint is not None:
            board.purge(len(history) + 1)
        bar = Progress(
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=self.console, disable=not self.config.progress or self.rank > 0,
        )  # fmt: skip
        steps = _Steps(training, compiled)
        with bar, steps:
            task = bar.add_task(
                training.name,
                total=training.epochs * training.steps(),
                completed=len(history) * training.steps(),
                note="",
            )
            for epoch in range(len(history), training.epochs):
                torch.manual_seed(derived_seed(seed, training.name, epoch))
                start = time.perf_counter()
                numbers = self._epoch(training, epoch, bar, task, steps)
                numbers |= training.evaluate(epoch)
                numbers["seconds"] = time.perf_counter() - start
                history.append(numbers)
                board.scalars({f"{training.name}/{k}": v for k, v in numbers.items()}, epoch + 1)
                bar.update(task, note=_note(numbers))
                if checkpoint is not None and self.rank == 0:
                    state = {"training": training.state(), "history": history, "board": board.state(), "seed": seed}
                    save_state(checkpoint, state | {"compiled": steps.compiled})
        if self.world_size > 1:
            self.fabric.barrier()  # the others may read the checkpoint
        self.share(training.model)
        return self.same(history)

    def _compiles(self, training: Training) -> bool:
        if self.config.compile == "auto":
            return self.world_size == 1 and training.epochs * training.steps() >= COMPILE_FROM
        return self.config.compile == "always"

    def _epoch(self, training: Training, epoch: int, bar: Progress, task: Any, steps: _Steps) -> dict[str, float]:
        training.model.train()
        sums: dict[str, Tensor] = {}
        count, total = 0, max(training.epochs * training.steps(), 1)
        for i, batch in enumerate(training.batches(epoch)):
            fraction = (epoch * training.steps() + i) / total
            try:
                numbers = steps.step(batch, fraction)
                bad = [key for key, value in numbers.items() if not abs(float(value)) <= EXPLODED]
                if bad:
                    raise NumericsError(f"{bad[0]} is {float(numbers[bad[0]])}")
            except NumericsError as error:
                raise NumericsError(
                    f"{training.name}: {error} at epoch {epoch}, step {i}; first not finite: "
                    f"{first_not_finite(training.model, batch)}; the checkpoint of the last good epoch is kept. "
                    "Lower the learning rate (optimiser.lr) or clip gradients more (optimiser.clip)"
                ) from error
            for key, value in numbers.items():
                sums[key] = sums[key] + value.detach() if key in sums else value.detach().clone()
            count += 1
            bar.update(task, advance=1)
        return {key: float(value) / max(count, 1) for key, value in sums.items()}


def _note(numbers: Mapping[str, float]) -> str:
    shown = ("loss", "accuracy", "cost")
    return "  ".join(f"{key} {numbers[key]:.3f}" for key in shown if key in numbers)


def first_not_finite(model: nn.Module, batch: Any) -> str:
    """Names what is the first not to be finite: the inputs, a parameter, a module's output, or else a gradient."""
    while not isinstance(batch[0], Tensor):
        batch = batch[0]
    if not bool(torch.isfinite(batch[0]).all()):
        return "the images of the batch"
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name}"
    found: list[str] = []

    def hook(name: str) -> Any:
        def check(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(f"output of {name or type(module).__name__}")

        return check

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(batch[0])
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in gradients if not bool(torch.isfinite(gradient).all())]
    return f"gradient of {bad[-1]}" if bad else "the loss itself"
