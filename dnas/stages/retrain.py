"""The searched network and its baselines, all trained by the same recipe from the same weights."""

import json
from typing import Any

from dnas.engine import derived_seed
from dnas.recipe import evaluate, evaluate_by_batch
from dnas.retrain import retrain as train_realised
from dnas.run import RunError
from dnas.search.budget import BudgetError
from dnas.select.reference import random_architecture, uniform_candidates
from dnas.space.architecture import Architecture
from dnas.space.slicing import kept_channels
from dnas.stages.context import Run, save_weights
from quant.files import write_atomically


def retrain(run: Run) -> None:
    """Writes model.safetensors, the baselines' weights, and retrain.json with their accuracies on validation."""
    _train(run, "ours", "model", run.architecture())
    if "random" in run.config.retrain.baselines:
        try:
            drawn = random_architecture(run.space, run.budget, run.config.seed)
        except BudgetError as error:  # a space of few architectures may have none that spends the budget
            run.console.print(f"no random baseline: {error}", highlight=False)
        else:
            _train(run, "random", "baselines/random", drawn)
    if "uniform" in run.config.retrain.baselines:
        for i, architecture in enumerate(promising_uniform(run)):
            _train(run, "uniform", f"baselines/uniform{i}", architecture)


def promising_uniform(run: Run) -> list[Architecture]:
    """The uniform networks that are trained: those of lowest validation loss in the supernet, before training."""
    candidates = uniform_candidates(run.space, run.budget)
    supernet, validation = run.supernet(), run.batches("validation", 500, False)

    def loss(architecture: Architecture) -> float:
        with supernet.evaluate_as(architecture):
            return evaluate_by_batch(supernet, validation.epoch(0))[1]

    return sorted(candidates, key=loss)[: run.config.retrain.uniform_candidates]


def _train(run: Run, method: str, file: str, architecture: Architecture) -> None:
    """Trains one network unless its record is there already.

    Raises:
        RunError: the record of ours is of another network than the selected one.
    """
    record = run.folder.file(f"{file}.json")
    if record.exists():
        stored = json.loads(record.read_text(encoding="utf-8"))["architecture"]
        before = Architecture.from_json(json.dumps(stored), run.space).identity() if method == "ours" else {}
        if before and any(before.get(name) != value for name, value in architecture.identity().items()):
            raise RunError(
                f"{record} is of another network than architecture.json; remove it and {file}.ckpt to train the selected one"
            )
        return
    config = run.config.retrain
    supernet = run.starting_supernet()
    architecture = supernet.with_filters(architecture)
    model = run.realised(architecture, None, supernet)
    train = run.batches(run.data.training(), config.batch_size, True, "retrain")
    validation = run.batches("validation", 500, False)
    board = run.board(f"retrain/{file.split('/')[-1]}")
    seed = derived_seed(run.config.seed, "retrain")
    history = train_realised(
        model,
        train,
        validation,
        run.float_model(),
        config,
        run.engine,
        run.folder.file(f"{file}.ckpt"),
        board,
        seed,
        method,
    )
    accuracy, _ = evaluate(model, validation.epoch(0))
    board.close()
    save_weights(run.folder.file(f"{file}.safetensors"), model)
    content: dict[str, Any] = {
        "method": method,
        "text": summary(architecture),
        "architecture": json.loads(architecture.to_json()),
        "validation_accuracy": accuracy,
        "seconds": sum(numbers["seconds"] for numbers in history),
        "images": len(train) * train.batch_size * config.epochs * run.engine.world_size,
        "history": history,
    }
    write_atomically(record, json.dumps(content, indent=1))


def summary(architecture: Architecture) -> str:
    """A short text for tables: widths and share of filters, or their means where they differ."""
    space, positions = architecture.space, architecture.positions()

    kept = {i: set((architecture.kept or {}).get(g.choice, range(g.size))) for i, g in enumerate(space.groups)}

    def show(kind: str) -> str:
        """Over decisions, not over filters, unless they decide; removed ones do not count, fixed ones if all are."""
        chosen: list[int] = []
        fixed: list[int] = []
        for layer in space.layers:
            if not space.runs(layer.name, positions):
                continue
            name, side, bits = (
                (layer.weight_choice, layer.outputs, architecture.weight_bits(layer))
                if kind == "weight_bits"
                else (layer.act_choice, layer.inputs, architecture.act_bits(layer))
            )
            choice = space.choice(name)
            if choice.searched:
                found = [bits[i] for i in kept_channels(side, kept)]
                chosen += found if choice.by_filter else found[:1]
            else:
                fixed += bits[:1]
        chosen = chosen or fixed
        return str(chosen[0]) if len(set(chosen)) == 1 else f"~{sum(chosen) / len(chosen):.1f}"

    sizes = {group.choice: group.size for group in space.groups}
    searched = [c.name for c in space.searched() if c.kind == "filters"]
    shares = [architecture[name] / sizes[name] for name in searched] or [1.0]
    mean = sum(shares) / len(shares)
    width = f"{mean:.2g}" if len({round(share, 2) for share in shares}) == 1 else f"~{mean:.2f}"
    return f"W{show('weight_bits')} A{show('act_bits')} filters x{width}{_structure(architecture)}"


def _structure(architecture: Architecture) -> str:
    """The options of kernels, depths and branches, or their means."""
    text = ""
    for kind in ("kernel", "depth", "branch"):
        chosen = [architecture[choice.name] for choice in architecture.space.searched() if choice.kind == kind]
        if chosen:
            text += f" {kind} {chosen[0] if len(set(chosen)) == 1 else f'~{sum(chosen) / len(chosen):.1f}'}"
    return text
