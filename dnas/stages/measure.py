"""Latency of every layer's configurations on this machine, and how well their sum predicts whole networks: latency.json."""

import random
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor, nn

from dnas.realise import realise
from dnas.run import RunError
from dnas.search.rank import rank_agreement
from dnas.search.supernet import Supernet
from dnas.select.reference import dearest_architecture
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.latency import (
    LATENCY,
    LatencyError,
    LatencyTable,
    MeasureConfig,
    machine,
    measure_latency,
    microseconds,
    requantised_layers,
    runner,
)
from dnas.space.profile import layer_times, refined, table_entries
from dnas.stages.context import Run
from quant.export import export
from quant.files import write_atomically
from quant.float_file import without_quantisers

BUSY = 0.1
"""Relative difference of two timings of the same network from which a table says more of the machine's load than of it."""


def measure(run: Run) -> None:
    """Measures the space of a run, or checks the table that is there; writes latency.json."""
    write_table(run, provide_table(run, run.space))


def provide_table(run: Run, space: Space) -> LatencyTable:
    """The table of a space: that of the folder, that of `cost.latency`, or a new measurement.

    Raises:
        LatencyError: a table of another machine, other settings or another network, or a space that cannot be timed.
        RunError: `cost.latency` does not exist.
    """
    config, cost = run.config.measure, run.config.cost
    file = run.folder.file("latency.json")
    if not file.exists() and cost.latency is not None:
        file = Path(cost.latency).expanduser()
        if not file.exists():
            raise RunError(f"cost.latency={file} does not exist; give a latency.json that stage=measure wrote, or null")
    if file.exists():
        here = None if cost.any_machine else machine(config)
        table = LatencyTable.from_json(file.read_text(encoding="utf-8"), here)
        other = [name for name, found in geometry(space).items() if table.geometry.get(name, found) != found]
        if other:
            raise LatencyError(
                f"{file} is of another network or other images: {other[0]} has (positions, kernel elements, groups) "
                f"{table.geometry[other[0]]} there, {geometry(space)[other[0]]} here; measure here (cost.latency=null)"
            )
        return table
    if not run.config.export.fold_batch_norm:
        raise LatencyError(
            f"budget.{LATENCY} is that of networks whose batch normalisation is folded, but export.fold_batch_norm is false; "
            "set export.fold_batch_norm=true"
        )
    table = measure_network(run.model().eval(), run.images("weights", 2), space, config)
    checked = table.checked
    run.console.print(
        f"latency: {len(table.times)} configurations on {table.machine['processor']}"
        + (
            f"; whole networks are predicted with a median error of {checked['median_error']:.1%}, Kendall tau "
            f"{checked['tau']:.2f} (timed twice they differ by {checked['noise']:.1%})"
            if checked
            else ""
        ),
        highlight=False,
    )
    warn_if_busy(table)
    return table


def warn_if_busy(table: LatencyTable) -> None:
    """Says so where the machine did something else meanwhile."""
    if table.checked and table.checked["noise"] > BUSY:
        warnings.warn(
            f"latency.json: networks that were timed twice differ by {table.checked['noise']:.0%} in the median, as on a "
            f"machine that does other things too (up to {BUSY:.0%} is usual). Delete latency.json and measure again when it is "
            "quiet, or raise measure.rounds and measure.seconds",
            RuntimeWarning,
            stacklevel=2,
        )


def write_table(run: Run, table: LatencyTable) -> None:
    """Keeps a table in the folder of a run, whose later stages read it on any machine."""
    write_atomically(run.folder.file("latency.json"), table.to_json())


def measure_network(model: nn.Module, images: Tensor, space: Space, config: MeasureConfig) -> LatencyTable:
    """Times the layers of a network as they run when it is exported, and fits the correction.

    Args:
        model: the user's, in evaluation mode.
        images: a small batch.
        space: its space.
        config: how.
    """
    supernet = Supernet(model, space).eval()
    supernet.calibrate(images)
    full = dearest_architecture(space)
    requantised = _requantised(supernet, full, images)  # which refuses networks that cannot be timed by layers
    beside: dict[str, str] = {}
    if config.precision == "float":
        requantised = set()
    for choice in space.searched():
        if choice.kind == "branch" and config.precision == "int8":
            without = replace(full, options={**full.options, choice.name: 0})
            changed = requantised ^ _requantised(supernet, without, images)
            beside |= {name: choice.name for name in changed if space.runs(name, without.positions())}
    table = replace(measure_latency(model, images, space, config, requantised, beside), geometry=geometry(space))
    return corrected(table, supernet, images, config) if config.networks else table


def geometry(space: Space) -> dict[str, list[int]]:
    """Positions (which images of other sizes and other strides change), kernel elements and groups of every layer."""
    return {layer.name: [layer.positions, layer.kernel, layer.groups] for layer in space.layers}


def _requantised(supernet: Supernet, architecture: Architecture, images: Tensor) -> set[str]:
    space, positions = supernet.space, architecture.positions()
    layers = [layer.name for layer in space.layers if space.runs(layer.name, positions)]
    return requantised_layers(exported_file(supernet, architecture, images[:1], "int8"), layers)


def exported_file(supernet: Supernet, architecture: Architecture, images: Tensor, precision: str) -> bytes:
    """A QCDQ file of an architecture, batch normalisation folded, as for deployment; or the same network in floats."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(realise(supernet, architecture).eval(), images, path, "qcdq", fold_batch_norm=True)
        content = path.read_bytes()
    return without_quantisers(content) if precision == "float" else content


def corrected(table: LatencyTable, supernet: Supernet, images: Tensor, config: MeasureConfig) -> LatencyTable:
    """The table with what runs between layers, and the line through whole networks: a third of them fits, the others judge."""
    space, draw = supernet.space, random.Random(0)
    architectures: list[Architecture] = []
    files: list[bytes] = []
    for _ in range(config.networks):
        architectures.append(Architecture(space, {c.name: draw.choice(c.options) for c in space.choices}))
        files.append(exported_file(supernet, architectures[-1], images[:1], config.precision))
    runs = [runner(file, config.threads, config.batch) for file in files]
    seconds = max(config.seconds, 0.02)
    first, second = (np.array(microseconds(runs, config.rounds, seconds)) for _ in range(2))
    both, fitted = np.minimum(first, second), config.networks // 3
    entries = [table_entries(table, architecture) for architecture in architectures]
    layers = [layer.name for layer in space.layers]
    profiles = [
        layer_times(file, layers, config.threads, float(whole), config.batch)
        for file, whole in zip(files[:fitted], both, strict=False)
    ]
    unseen = {layer for keys, profile in zip(entries, profiles, strict=False) for layer in set(keys) - set(profile)}
    if unseen:
        warnings.warn(
            f"latency.json: onnxruntime's profile has no time for {', '.join(sorted(unseen))}, which it runs as part of "
            "something else; they count with what they take alone. How well sums predict whole networks is in the table",
            RuntimeWarning,
            stacklevel=2,
        )
    table = refined(table, entries[:fitted], profiles)
    sums = [sum(table.times[key] for key in keys.values()) for keys in entries]
    slope, intercept = np.polyfit(sums[:fitted], both[:fitted], 1)
    if slope <= 0:  # networks so alike that their order is noise
        slope, intercept = 1.0, float(np.mean(both[:fitted]) - np.mean(sums[:fitted]))
    predicted = slope * np.array(sums[fitted:]) + intercept
    errors = np.abs(predicted - both[fitted:]) / both[fitted:]
    agreement = rank_agreement(predicted, both[fitted:])
    checked = {
        **asdict(agreement), "median_error": float(np.median(errors)), "noise": float(np.median(np.abs(first - second) / both)),
        "noise_tau": rank_agreement(first, second).tau, "predicted": predicted.tolist(), "measured": both[fitted:].tolist(),
    }  # fmt: skip
    return replace(table, slope=float(slope), intercept=float(intercept), checked=checked)
