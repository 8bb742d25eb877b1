"""Latency of every layer's configurations on this machine, and how well their sum predicts whole networks: latency.json."""

import random
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dnas.realise import realise
from dnas.search.rank import rank_agreement
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import build_cost
from dnas.space.latency import LATENCY, LatencyTable, machine, measure_latency, microseconds, requantised_layers, runner
from dnas.stages.context import Run
from quant.export import export
from quant.files import write_atomically


def measure(run: Run) -> None:
    """Measures the space of a run."""
    measure_space(run, run.space)


def measure_space(run: Run, space: Space) -> LatencyTable:
    """Times the layers of a space, fits the correction, and writes latency.json.

    Args:
        run: its folder takes the file; a table that is there and valid on this machine is read instead.
        space: may be newer than what the folder holds.
    """
    config = run.config.measure
    file = run.folder.file("latency.json")
    if file.exists():
        return LatencyTable.from_json(file.read_text(encoding="utf-8"), machine(config))
    model, images = run.model().eval(), run.images("weights", 2)
    supernet = Supernet(model, space).eval()
    supernet.calibrate(images)
    full = {choice.name: choice.options[-1] for choice in space.choices}
    whole = _exported(supernet, Architecture(space, full), images[:1])
    table = measure_latency(model, images, space, config, requantised_layers(whole, space))
    if config.networks:
        table = corrected(table, supernet, images, run)
    run.folder.create()
    write_atomically(file, table.to_json())
    checked = table.checked or {}
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
    return table


def _exported(supernet: Supernet, architecture: Architecture, images: Any) -> bytes:
    """A QCDQ file of an architecture, batch normalisation folded, as for deployment."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(realise(supernet, architecture).eval(), images, path, "qcdq", fold_batch_norm=True)
        return path.read_bytes()


def corrected(table: LatencyTable, supernet: Supernet, images: Any, run: Run) -> LatencyTable:
    """The table with the line through whole networks: a third of them fits it, the others judge it."""
    config, space = run.config.measure, supernet.space
    cost = build_cost(space, LATENCY, {LATENCY: replace(table, slope=100.0).cost()})
    draw = random.Random(0)
    sums, files = [], []
    for _ in range(config.networks):
        architecture = Architecture(space, {c.name: draw.choice(c.options) for c in space.choices})
        sums.append(cost.at(architecture.positions()) / 100.0)
        files.append(_exported(supernet, architecture, images[:1].repeat(config.batch, 1, 1, 1)))
    runs = [runner(file, config.threads) for file in files]
    seconds = max(config.seconds, 0.02)
    first, second = (np.array(microseconds(runs, config.rounds, seconds)) for _ in range(2))
    both, fitted = np.minimum(first, second), config.networks // 3
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
