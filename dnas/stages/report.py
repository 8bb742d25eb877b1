"""The test set, read once; report.json, report.html, hparams, and the table."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from dnas.recipe import evaluate
from dnas.report.html import write_html
from dnas.report.pareto import collect, pareto_table
from dnas.search.scores import Scores
from dnas.space.architecture import Architecture, read_options
from dnas.space.cost import kept_channels, layer_cost, reference_cost
from dnas.space.energy import ENERGY
from dnas.space.slicing import kept_channels as kept_indices
from dnas.stages.context import Run
from quant.pack import packed_bytes

SHOWN_COSTS = ("bops", "macs", "weight_bits")
PACKAGES = ("torch", "brevitas", "onnx", "onnxruntime", "qonnx", "scipy", "numpy", "hydra-core")
CONVENTION = (
    "BOPs = MACs x weight bits x activation bits, summed over every layer, the first (8-bit input) and the last included; "
    "biases, normalisations and additions are not counted. Relative: to the same network at full width with 8-bit weights "
    "and activations."
)


def report(run: Run) -> dict[str, Any]:
    """Evaluates every network of the run on the test set, once, and writes the report."""
    names = list(dict.fromkeys([*SHOWN_COSTS, *run.budget.caps]))
    rows = [_float_row(run)]
    records = [_record(path) for path in sorted(run.folder.file("baselines").glob("*.json"))]
    uniform = [record for record in records if record["method"] == "uniform"]
    if uniform:
        rows.append(_row(run, max(uniform, key=lambda record: record["validation_accuracy"]), names))
    rows += [_row(run, record, names) for record in records if record["method"] == "random"]
    rows.append(_row(run, _record(run.folder.file("model.json")), names))
    content = _content(run, rows, names)
    board = run.board("report")
    board.purge(0)
    board.hparams(_hparams(run), {"test_accuracy": rows[-1]["accuracy"], **rows[-1]["relative"]})
    board.close()
    write_html(content, run.folder.file("report.html"))
    run.folder.write_json("report.json", content)
    return content


def show(run: Run) -> None:
    """Prints the table of a finished run and where its files are."""
    run.console.print(pareto_table(collect([run.folder.path])))
    run.console.print(f"run folder   {run.folder.path}", highlight=False)
    run.console.print(f"report       {run.folder.file('report.html')}", highlight=False)
    for path in sorted(run.folder.path.glob("*.onnx")):
        run.console.print(f"ONNX         {path}", highlight=False)
    run.console.print(f"TensorBoard  tensorboard --logdir {run.folder.file('tensorboard')}", highlight=False)


def _record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found | {"weights": str(path.with_suffix(".safetensors"))}


def _test_accuracy(run: Run, model: nn.Module) -> float:
    return evaluate(model, run.batches("test", 500, False).epoch(0))[0]


def _float_row(run: Run) -> dict[str, Any]:
    model = run.float_model()
    found = run.folder.read_json("float.json", "search")
    macs = reference_cost(run.space, "macs")
    float_bops, float_bits = reference_cost(run.space, "bops", 32), reference_cost(run.space, "weight_bits", 32)
    return {
        "method": "float",
        "architecture": "float32",
        "accuracy": _test_accuracy(run, model),
        "validation_accuracy": found["validation_accuracy"],
        "costs": {"bops": float_bops, "macs": macs, "weight_bits": float_bits},
        "relative": {"bops": float_bops / reference_cost(run.space, "bops")},
        "weight_bytes": int(float_bits // 8),
        "search_cost": None,
        "seconds": sum(numbers["seconds"] for numbers in found["history"]),
        "within_budget": False,
    }


def _row(run: Run, record: dict[str, Any], names: list[str]) -> dict[str, Any]:
    stored = record["architecture"]
    kept = {name: tuple(indices) for name, indices in stored["kept"].items()}
    architecture = Architecture(run.space, read_options(stored["options"]), kept, None, run.functions)
    model = run.realised(architecture, Path(record["weights"]))
    one = _record(run.folder.file("model.json"))["seconds"]
    search = run.folder.read_json("search.json", "search")
    searching = 0 if "taken_from" in search else search["seconds"]  # its cost stands in the report of that run
    return {
        "method": record["method"],
        "architecture": record["text"],
        "accuracy": _test_accuracy(run, model),
        "validation_accuracy": record["validation_accuracy"],
        "costs": {name: architecture.cost(name) for name in names},
        "relative": {name: architecture.cost(name, relative=True) for name in names},
        "weight_bytes": packed_bytes(model).weights,
        "search_cost": searching / one if record["method"] == "ours" and one and searching else None,
        "seconds": record["seconds"],
        "within_budget": run.budget.holds(architecture),
    }


def _content(run: Run, rows: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    config, space, architecture = run.config, run.space, run.architecture()
    scores = Scores.from_json(run.folder.read("scores.json", "search"))
    certificate, selection = architecture.certificate, run.folder.read_json("select.json", "select")
    verified = run.folder.read_json("verify.json", "export")
    return {
        "type": "dnas.Report",
        "version": 1,
        "name": config.report.title or run.folder.path.name,
        "model": config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "budgets": dict(run.budget.caps),
        "limits": run.budget.limits(space),
        "reference": {name: reference_cost(space, name, functions=run.functions) for name in names},
        "convention": CONVENTION + (f" Energy: {config.cost.energy}." if ENERGY in run.budget.caps else ""),
        "start": config.retrain.start,
        "rows": rows,
        "layers": _layers(run, architecture),
        "scores": {"method": scores.method, "values": {c.name: scores.total(c) for c in space.choices}},
        "choices": {
            c.name: {"kind": c.kind, "options": c.labels, "chosen": None if c.by_filter else architecture[c.name]}
            for c in space.searched()
        },
        "gap": selection["gap"],
        "taken_from": _taken(run),
        "untrained": run.folder.read_json("search.json", "search").get("epochs") == 0,
        "frontier": _optional(run, "frontier.json"),
        "estimator": _optional(run, "estimator.json"),
        "certificate": asdict(certificate) | {"seconds": selection.get("seconds")} if certificate else None,
        "fixed": [asdict(fixed) for fixed in space.fixed],
        "verify": {key: verified[key] for key in ("runtimes", "packed", "file_bytes", "costs")},
        "stages": run.folder.stages(),
        "config": run.folder.read("config.yaml", "preflight"),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {run.engine.device}",
        "commit": run.folder.read_json("preflight.json", "preflight")["commit"],
        "history": _histories(run),
        "files": sorted(
            path.name for path in run.folder.path.glob("model.*") if path.suffix in (".onnx", ".safetensors")
        ),
    }


def _optional(run: Run, name: str) -> dict[str, Any] | None:
    """A file that only some runs have."""
    path = run.folder.file(name)
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def _histories(run: Run) -> dict[str, Any]:
    """Numbers of every epoch, by training."""
    files = {
        "float": ("float.json", "search"),
        "search": ("search.json", "search"),
        "retrain": ("model.json", "retrain"),
    }
    found = {name: run.folder.read_json(file, stage)["history"] for name, (file, stage) in files.items()}
    if _taken(run):  # what of that run's budget was spent says nothing of this one's
        found["search"] = [
            {key: value for key, value in numbers.items() if not key.endswith("_over_budget")}
            for numbers in found["search"]
        ]
    return found


def _taken(run: Run) -> dict[str, Any] | None:
    """The run whose search this is, if it is another one's."""
    found: dict[str, Any] | None = run.folder.read_json("search.json", "search").get("taken_from")
    return found


def _layers(run: Run, architecture: Architecture) -> list[dict[str, Any]]:
    space, positions, found = run.space, architecture.positions(), []
    kept = {index: set((architecture.kept or {})[group.choice]) for index, group in enumerate(space.groups)}
    for layer in space.layers:
        own = {name: layer_cost(space, layer, name, positions) for name in ("macs", "bops")}
        if not space.runs(layer.name, positions):
            full = {"in_full": len(layer.inputs), "out_full": len(layer.outputs)}
            name = {"name": layer.name, "kind": layer.kind}
            found.append({**name, "weight_bits": [], "act_bits": [], "in": 0, "out": 0, **full, **own})
            continue
        found.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "weight_bits": _widths(architecture.weight_bits(layer), kept_indices(layer.outputs, kept)),
                "act_bits": _widths(architecture.act_bits(layer), kept_indices(layer.inputs, kept)),
                "in": kept_channels(space, layer.inputs, positions),
                "in_full": len(layer.inputs),
                "out": kept_channels(space, layer.outputs, positions),
                "out_full": len(layer.outputs),
                **({"kernel": architecture[layer.kernel_choice]} if layer.kernel_choice else {}),
                **own,
            }
        )
    return found


def _widths(bits: Sequence[int], kept: Sequence[int]) -> int | list[int]:
    """One width, or where they differ that of every channel that stays."""
    found = [bits[i] for i in kept]
    return found[0] if len(set(found)) == 1 else found


def _hparams(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "seed": config.seed, "model": config.model.name, "data": config.data.name, "relax": config.relax.mode,
        "search_epochs": run.folder.read_json("search.json", "search")["epochs"], "search_lr": config.search.optimiser.lr,
        "choice_lr": config.search.choice_lr, "retrain_epochs": config.retrain.epochs,
        **{f"budget_{name}": cap for name, cap in run.budget.caps.items()},
    }  # fmt: skip
