"""The seed thesis' own experiment, in miniature: `python benchmarks/thesis_grid.py /path/to/cifar10.zip`

Zur's thesis concluded from a grid that heterogeneous networks vary too much for a search to pay. In that grid only the first
convolution's filters vary over the joint (weight, activation) pairs (2,2), (2,4), (3,3), (8,8); everything else is at (3,3).
Here: random compositions of that layer, several retrainings each; and the same with the filters of every layer varied. A
filter's pair is its own width and that of its channel in the next activation tensor; filters that are added up there share
their pair, and those of the last layer take a pair's weight bits alone. Both parts hold only compositions that cost 96 to 100 %
of (3,3) everywhere, and every network has a seed of its own: seeds are nested in compositions, as the analysis takes them.
What part of the variance is the architecture's, what part the retraining's? ResNet-8, from the float network of the Pareto
benchmark. Resumes, from the committed rows as well; writes results/thesis_grid.json and thesis_grid.png.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cifar10_pareto import BUDGETS, setting_of
from pareto_runs import Setting, accuracies, alone, digest, float_network, processes, quoted, stamp
from pareto_verdict import components

from dnas.board import Board
from dnas.engine import derived_seed
from dnas.retrain import retrain
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from quant.files import write_atomically

HERE = Path(__file__).parent
RESULT, PICTURE = HERE / "results" / "thesis_grid.json", HERE / "results" / "thesis_grid.png"
PAIRS = ((2, 2), (2, 4), (3, 3), (8, 8))
OVERRIDES = (
    "space.granularity=filter", "space.act_granularity=filter", "space.weight_bits=[2,3,8]", "space.act_bits=[2,3,4,8]",
    "space.filters=[1.0]",
)  # fmt: skip
PARTS = ("first convolution", "every layer")
COMPOSITIONS, SEEDS, EPOCHS = 12, 3, 1
FIRST = "conv1"
SPENT = (0.96, 1.0)
"""Of what (3,3) everywhere costs."""
TRIES = 20_000


def composition(count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of `count` filters: shares drawn evenly from the simplex, dealt out at random."""
    taken = generator.choice(len(PAIRS), size=count, p=generator.dirichlet(np.ones(len(PAIRS))))
    return [PAIRS[i] for i in taken]


def next_tensors(space: Space) -> dict[str, str | None]:
    """For every layer the choice of the activation tensor in which its channels are quantised next; None of the last."""
    layers = space.layers
    return {
        layer.name: next((later.act_choice for later in layers[i + 1 :] if later.inputs == layer.outputs), None)
        for i, layer in enumerate(layers)
    }


def at_three(space: Space) -> dict[str, Any]:
    """Every width at 3 bits."""
    found: dict[str, Any] = {}
    for choice in space.choices:
        if choice.kind == "filters" or not choice.searched:
            found[choice.name] = (choice.options[-1],) * choice.count if choice.by_filter else choice.options[-1]
        else:
            found[choice.name] = (3,) * choice.count if choice.by_filter else 3
    return found


def pairs_of(space: Space, part: str, generator: np.random.Generator) -> dict[str, Any]:
    """Random pairs for the filters that a part varies, as widths of filters and of the channels that they make."""
    weights = {layer.name: space.choice(layer.weight_choice) for layer in space.layers}
    taken: dict[str | None, list[tuple[int, int]]] = {}
    found: dict[str, Any] = {}
    for layer, tensor in next_tensors(space).items():
        if part == PARTS[0] and layer != FIRST:
            continue
        pairs = taken.setdefault(tensor, composition(weights[layer].count, generator))
        found[weights[layer].name] = tuple(weight for weight, _ in pairs)
        if tensor is not None:
            found[tensor] = tuple(act for _, act in pairs)
    return found


def spent(architecture: Architecture) -> float:
    """BOPs, as a share of those of (3,3) everywhere."""
    even = Architecture(architecture.space, at_three(architecture.space))
    return float(architecture.cost("bops")) / float(even.cost("bops"))


def drawn(space: Space, part: str, number: int) -> Architecture:
    """Composition `number` of a part: the first of its draws at the cost of (3,3)."""
    generator = np.random.default_rng(number)
    for _ in range(TRIES):
        found = Architecture(space, at_three(space) | pairs_of(space, part, generator))
        if SPENT[0] <= spent(found) <= SPENT[1]:
            return found
    raise RuntimeError(f"{part}: none of {TRIES:,} compositions costs {SPENT[0]:.0%} to {SPENT[1]:.0%} of (3,3)")


def seed_of(part: str, number: int, turn: int) -> int:
    """Of the retraining `turn` of a composition; no two networks share one."""
    return 1000 * (1 + PARTS.index(part)) + number * SEEDS + turn


def row_file(setting: Setting, part: str, number: int, seed: int) -> Path:
    """Where the row of a network is."""
    return setting.runs / "grid_rows" / f"{part.replace(' ', '_')}-{number}-{seed}.json"


def restore(setting: Setting, network: str) -> None:
    """Takes the committed rows from this float network for finished."""
    content = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"rows": []}
    (setting.runs / "grid_rows").mkdir(parents=True, exist_ok=True)
    for row in content["rows"]:
        file = row_file(setting, row["part"], row["composition"], row["retrain_seed"])
        if row["float"] == network and not file.exists():
            write_atomically(file, json.dumps(row, indent=1))


def train(setting: Setting, part: str, number: int, turn: int) -> dict[str, Any]:
    """Trains one network, unless its row is there; its row."""
    seed = seed_of(part, number, turn)
    file = row_file(setting, part, number, seed)
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    start = time.perf_counter()
    run = setting.open(setting.runs / "grid")
    own = replace(run, config=replace(run.config, seed=seed))
    supernet = run.supernet(trained=False)
    supernet.calibrate(run.images("weights", run.config.space.calibration_images))
    architecture = supernet.with_filters(drawn(run.space, part, number))
    model, config = run.realised(architecture, None, supernet), replace(run.config.retrain, epochs=EPOCHS)
    batches = own.batches(own.data.training(), config.batch_size, True, "retrain")
    retrain(
        model, batches, own.batches("validation", 500, False), run.float_model(), config, run.engine, None, Board(None),
        derived_seed(seed, "retrain"),
    )  # fmt: skip
    row = {
        "model": setting.model, "part": part, "composition": number, "retrain_seed": seed, **accuracies(run, model),
        "costs": {"bops": float(architecture.cost("bops", relative=True))}, "spent": spent(architecture),
        "images_retrain": len(batches) * config.batch_size * EPOCHS, "float": digest(run.folder.file("float.safetensors")),
        **stamp(start),
    }  # fmt: skip
    write_atomically(file, json.dumps(row, indent=1))
    return row


def grouped(rows: Sequence[dict[str, Any]], part: str, measured: str = "accuracy") -> dict[int, list[float]]:
    """Accuracies, on test images unless told, by composition; only those with all seeds."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(row["composition"], []).append(row[measured])
    return {number: values for number, values in found.items() if len(values) == SEEDS}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Variance components and the spread of costs as shares of those of (3,3), by part."""
    found = {}
    for part in PARTS:
        groups, costs = list(grouped(rows, part).values()), [r["spent"] for r in rows if r["part"] == part]
        if len(groups) >= 2:
            split, validation = (
                {"architecture": one["search"], "retraining": one["retraining"], "p": one["p"]}
                for one in map(components, (groups, list(grouped(rows, part, "validation_accuracy").values())))
            )
            found[part] = {
                **split, "validation": validation, "n": len(groups),
                "seeds": SEEDS, "spent": [min(costs), max(costs)],
                "means": [min(map(statistics.mean, groups)), max(map(statistics.mean, groups))],
            }  # fmt: skip
    return found


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Compositions in the order of their means, a point for every seed."""
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True, layout="constrained")
    for panel, part in zip(panels, PARTS, strict=True):
        groups = sorted(grouped(rows, part).values(), key=statistics.mean)
        for i, values in enumerate(groups):
            panel.plot([i, i], [min(values), max(values)], color="#b0b7bf", linewidth=1.5, zorder=1)
            panel.scatter([i] * len(values), values, s=12, color="#0072b2", linewidths=0, zorder=2)
            panel.scatter([i], [statistics.mean(values)], s=34, color="#d55e00", marker="_", zorder=3)
        panel.set_title(f"{part} varied", fontsize=10)
        panel.set_xlabel("composition, in the order of its mean")
        panel.set_xticks([])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_pareto")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    with alone(given.runs / "lock", RESULT.with_suffix(".lock")):
        setting = setting_of(given.data, given.runs)
        float_network(setting, BUDGETS["w2a2"])
        run_all(replace(setting, overrides=OVERRIDES), given.jobs)


def run_all(setting: Setting, count: int) -> None:
    """Trains what is missing, with so many processes, and writes the result and its picture."""
    weights = setting.runs / "float" / "float.safetensors"
    restore(setting, digest(weights))
    setting.stages(setting.runs / "grid", ("preflight",), "budget.bops=1.0", f"model.checkpoint={quoted(weights)}")
    shared = setting.runs / "grid" / "float.safetensors"
    if not shared.exists():
        shared.write_bytes(weights.read_bytes())
    if digest(shared) != digest(weights):
        raise RuntimeError(
            f"{shared} is another float network than {weights}; remove the grid's folders, or give another --runs"
        )
    jobs = [(part, number, turn) for number in range(COMPOSITIONS) for turn in range(SEEDS) for part in PARTS]
    rows: list[dict[str, Any]] = []
    with processes(count) as pool:
        for done in as_completed([pool.submit(train, setting, *job) for job in jobs]):
            rows.append(done.result())
            print({key: rows[-1][key] for key in ("part", "composition", "retrain_seed", "accuracy")}, flush=True)
            order = sorted(rows, key=lambda r: (r["part"], r["composition"], r["retrain_seed"]))
            content = {"type": "dnas.ThesisGrid", "version": 1, "summary": summary(order), "rows": order}
            RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    picture(rows, PICTURE)


if __name__ == "__main__":
    main()
