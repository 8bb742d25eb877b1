"""What a newcomer wants to know of a network before training: its space, what that can reach, whether it exports."""

import copy
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dnas.realise import realise
from dnas.search.budget import Budget
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.exported import check_costs
from dnas.space.preflight import (
    CostRange,
    LayerRow,
    cost_ranges,
    fixed_by_reason,
    fixed_table,
    layer_rows,
    layer_table,
    range_table,
)
from dnas.space.trace import tensors_of
from quant.brevitas import quantised_layers
from quant.export import FORMATS, Format, export
from quant.graph import read_layers
from quant.integer import integer_reference
from quant.modules import copied
from quant.runtimes import cpu_session

REALISE = "realise"
TOLERANCE = 1e-3
"""How far a realised network may be from the masked supernet, relative to the largest output (at least 1)."""
NOISE = 1e-5
"""Relative noise on the input of every quantised layer; onnxruntime's sums differ from torch's by less."""
DRAWS = 4
_WORKS = {REALISE: "equals the masked supernet", "qcdq": "computes the same in onnxruntime", "qonnx": "is written"}


@dataclass(frozen=True)
class Trial:
    """One step of the dry run: `realise` or an export format, tried with the `smallest` or the `largest` network.

    problem: why it fails; empty where it works. error: the exception behind it, if there is one.
    """

    step: str
    network: str
    problem: str = ""
    error: Exception | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, repr=False)
class Description:
    """A network's space, what it can reach and what became of the dry run; prints as tables.

    layers: the layer table's rows. ranges: of every cost. limits: budgets in absolute units, by cost. fixed: for every
    reason what is not searched because of it. exports: the trials of the dry run.
    """

    space: Space
    layers: tuple[LayerRow, ...]
    ranges: tuple[CostRange, ...]
    limits: Mapping[str, float]
    fixed: Mapping[str, tuple[str, ...]]
    exports: tuple[Trial, ...]

    @property
    def works(self) -> bool:
        """Whether every budget can be met and every trial of the dry run works."""
        reachable = all(found.smallest <= self.limits.get(found.name, float("inf")) for found in self.ranges)
        return reachable and not any(trial.problem for trial in self.exports)

    def __rich__(self) -> Group:
        parts: list[Any] = [layer_table(self.layers), "", range_table(self.ranges, self.limits, self.space)]
        if self.fixed:
            parts += ["", fixed_table(self.fixed)]
        outcomes = Table.grid(padding=(0, 1))
        for step, outcome in _outcomes(self.exports):
            outcomes.add_row(step, outcome)
        return Group(*parts, "", Text("Dry run of the smallest and the largest network", style="bold"), outcomes)

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """The tables as plain text.

        Args:
            width: characters in a line; by default the terminal's (the environment's COLUMNS), or 80.
        """
        console = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False, legacy_windows=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def describe(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    budget: Budget | None = None,
    formats: Sequence[Format] = FORMATS,
    **options: Any,
) -> Description:
    """Builds a model's space, what it can reach, and tries to realise and export its smallest and its largest network.

    Args:
        model: any module; left as it was.
        example_inputs: real data, a small batch (dimension 0).
        budget: to be compared with what can be reached; its own cost functions are counted, too.
        formats: export formats to try.
        options: as `build_space` takes them.

    Returns:
        the description: print it. A failure of the dry run is a part of it.

    Raises:
        ValueError: as `build_space`.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return describe_space(model, build_space(model, inputs, **options), inputs, budget, formats)


def describe_space(
    model: nn.Module, space: Space, inputs: tuple[Any, ...], budget: Budget | None, formats: Sequence[Format] = FORMATS
) -> Description:
    """As `describe`, of a space that is built; `inputs` are those of the dry run, dimension 0 the batch."""
    functions = budget.functions if budget else {}
    return Description(
        space,
        tuple(layer_rows(space)),
        tuple(cost_ranges(space, functions)),
        budget.limits(space) if budget else {},
        fixed_by_reason(space),
        dry_run(model, space, inputs, formats),
    )


def dry_run(
    model: nn.Module, space: Space, inputs: tuple[Any, ...], formats: Sequence[Format] = FORMATS
) -> tuple[Trial, ...]:
    """Realises and exports the smallest and the largest network of a space, and runs what can be run.

    Args:
        model: the model that the space was built from; left as it was.
        space: its space.
        inputs: of the model, dimension 0 the batch.
        formats: to export; QCDQ is run in onnxruntime.

    Returns:
        for either network a trial of `realise`, compared with the masked supernet, and one of every format.
    """
    trials: list[Trial] = []
    supernet: Supernet | None = None
    for network in ("smallest", "largest"):
        try:
            supernet = supernet or Supernet(model, space)
            architecture = supernet.with_filters(Architecture.at(space, space.extreme(network == "largest")))
            small = realise(supernet, architecture).eval()
            problem = _difference(small, supernet, architecture, inputs)
        except Exception as error:
            trials.append(Trial(REALISE, network, reason(error), error))
            trials += [
                Trial(format, network, f"the network is not realised: {reason(error)}", error) for format in formats
            ]
            continue
        trials.append(Trial(REALISE, network, problem))
        trials += [_export(small, inputs, format, network) for format in formats]
    return tuple(trials)


def reason(error: Exception) -> str:
    """The first line of what an exception says, with its type where the text alone would not be understood."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and isinstance(error, ValueError | RuntimeError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _difference(small: nn.Module, supernet: Supernet, architecture: Architecture, inputs: tuple[Any, ...]) -> str:
    """How the realised network's outputs differ from the masked supernet's; empty where they are equal up to rounding.

    In float64, where a rounding tie cannot be taken for a wrong coupling; in float32 where the model's own code does not
    run in float64.
    """
    exact, masked = copy.deepcopy(small).double(), copy.deepcopy(supernet).double().eval()
    doubled = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    with torch.no_grad():
        try:
            with masked.evaluate_as(architecture):
                found, wanted = tensors_of(exact(*doubled)), tensors_of(masked(*doubled))
        except Exception:
            masked = copy.deepcopy(supernet).eval()
            with masked.evaluate_as(architecture):
                found, wanted = tensors_of(copy.deepcopy(small)(*inputs)), tensors_of(masked(*inputs))
    if not wanted:
        return "the network returns no tensor (in tuples, lists or dicts), so that nothing can be compared"
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return f"its output has shape {list(one.shape)}, the masked supernet's {list(other.shape)}"
        if one.numel():
            scale = max(float(other.abs().double().max()), 1.0)
            difference = float((one.double() - other.double()).abs().max())
            worst = max(worst, difference) if difference > TOLERANCE * scale else worst
            if difference != difference:
                return "its outputs, or the masked supernet's, are not finite"
    if worst:
        return (
            f"it differs from the masked supernet by {worst:.3g}: its filters are coupled in a way that was not traced"
        )
    return ""


def _export(small: nn.Module, inputs: tuple[Any, ...], format: Format, network: str) -> Trial:
    try:
        others = sorted({type(x).__name__ for x in inputs if not isinstance(x, Tensor)})
        if others:
            raise ValueError(f"only tensors can be inputs of an exported network; found {', '.join(others)}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{format}.onnx"
            export(small, inputs, path, format)
            check_costs(small.architecture, read_layers(path))  # type: ignore[arg-type]
            if format == "qcdq":
                if len(inputs) == 1:
                    integer_reference(small)(*(x.cpu() for x in inputs))  # as verification runs it
                session = cpu_session(path)
                names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
                given = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs, strict=True)}
                found = session.run(None, {source.name: given[source.name] for source in session.get_inputs()})
                return Trial(format, network, _other_outputs(small, inputs, [torch.from_numpy(x) for x in found]))
    except Exception as error:
        return Trial(format, network, reason(error), error)
    return Trial(format, network)


@torch.no_grad()
def _other_outputs(model: nn.Module, given: tuple[Any, ...], found: Sequence[Tensor]) -> str:
    """What onnxruntime's outputs differ in from torch's, on the CPU, by more than rounding; empty where they do not.

    A value on a rounding boundary takes the other code, which may move the outputs by more than the tolerance: two
    executors may differ about as far as noise moves the outputs of one.
    """
    small, inputs = copied(model).cpu(), tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, given)
    wanted = tensors_of(small(*inputs))
    if len(found) != len(wanted):
        return f"onnxruntime has {len(found)} outputs, torch {len(wanted)}"
    moves = [0.0] * len(wanted)
    with torch.random.fork_rng(devices=[]), _noise(small):
        torch.manual_seed(0)
        for _ in range(DRAWS):
            runs = zip(tensors_of(small(*inputs)), wanted, strict=True)
            moves = [max(move, _apart(got, want)) for move, (got, want) in zip(moves, runs, strict=True)]
    for index, (got, want, move) in enumerate(zip(found, wanted, moves, strict=True)):
        if got.shape != want.shape:
            return f"output {index} has shape {list(got.shape)} in onnxruntime, {list(want.shape)} in torch"
        scale = max(float(want[want.isfinite()].abs().double().max()) if want.isfinite().any() else 0.0, 1.0)
        difference = _apart(got, want)
        allowed = max(TOLERANCE * scale, 3 * move) if want.is_floating_point() else 3 * move
        if not difference <= allowed:
            return f"output {index} differs by {difference:.3g} in onnxruntime; its largest value is {scale:.3g}"
    return ""


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; 0 where both are the same infinity or not a number, infinite where only one is."""
    if one.shape != other.shape or not one.numel():
        return 0.0
    one, other = one.double(), other.double()
    same = (one == other) | (one.isnan() & other.isnan())
    return float((one - other).abs().nan_to_num(float("inf"), float("inf")).masked_fill(same, 0.0).max())


@contextmanager
def _noise(model: nn.Module) -> Iterator[None]:
    """Noise on the input of every quantised layer."""

    def disturb(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * (1 + NOISE * torch.randn(args[0].shape).to(args[0])), *args[1:])

    handles = [layer.module.register_forward_pre_hook(disturb) for layer in quantised_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outcomes(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """For every step what became of it, as markup; of a failure for every reason."""
    outcomes = []
    for step in dict.fromkeys(trial.step for trial in trials):
        of_step = [trial for trial in trials if trial.step == step]
        problems: dict[str, list[str]] = {}
        for trial in of_step:
            if trial.problem:
                problems.setdefault(trial.problem, []).append(trial.network)
        if not problems:
            outcomes.append((f"{step}:", f"[green]works[/], {_WORKS[step]}"))
        for problem, networks in problems.items():
            which = "" if len(networks) == len(of_step) else f" for the {networks[0]} network"
            outcomes.append((f"{step}:", f"[red]fails[/]{which}, because {escape(problem)}"))
    return outcomes
