"""Before epoch 0: the space, what it can reach, and whether its smallest and largest network export and run."""

import copy
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from dnas.realise import realise
from dnas.run import source_commit
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.preflight import cost_ranges, layer_table, memory_estimate_mb, range_table
from dnas.space.target import TargetError, unsupported
from dnas.stages.context import Run
from quant.export import export
from quant.files import write_atomically


def preflight(run: Run) -> None:
    """Writes space.json and preflight.json.

    Raises:
        BudgetError: the budget is missing or out of reach.
        TargetError: the target has no legal widths for some layer.
        RuntimeError: the smallest or the largest network does not export and run.
    """
    config = run.config
    budget = run.budget
    model = run.model().eval()
    images = run.images("weights", config.space.calibration_images)
    space = build_space(
        model,
        images,
        config.space.weight_bits,
        config.space.act_bits,
        config.space.filters,
        config.space.exclude,
        config.target,
        config.quant.weight_narrow,
    )
    impossible = unsupported(space, config.target)
    if impossible:
        raise TargetError(
            f"the target cannot run {len(impossible)} layers: {'; '.join(impossible[:5])}; search these layers (space.exclude) "
            "or use another target (conf/target/*.yaml)"
        )
    budget.check(space)
    nothing = Scores({choice.name: (0.0,) * len(choice.options) for choice in space.choices}, "none")
    select(
        nothing, space, budget, config.select.time_limit
    )  # all budgets and legal pairs together, before any training
    ranges = cost_ranges(space, run.functions)
    memory = memory_estimate_mb(space, model, config.search.batch_size)
    run.console.print(layer_table(space))
    run.console.print(range_table(ranges, budget.limits(space)))
    for fixed in space.fixed:
        run.console.print(f"fixed: {fixed.name}: {fixed.reason}", highlight=False)
    supernet = Supernet(model, space, config.relax, functions=run.functions)
    for name, index in (("smallest", 0), ("largest", -1)):
        options = {choice.name: choice.options[index] for choice in space.choices}
        _dry_run(run, supernet, space, options, name)
    run.console.print(f"a search step at batch {config.search.batch_size} needs about {memory:.0f} MB")
    run.folder.create()
    write_atomically(run.folder.file("space.json"), space.to_json())
    run.folder.write_json(
        "preflight.json",
        {
            "ranges": [asdict(found) for found in ranges],
            "limits": budget.limits(space),
            "commit": source_commit(),
            "memory_estimate_mb": memory,
            "fixed": [asdict(fixed) for fixed in space.fixed],
            "image_shape": list(run.data.image_shape),
            "classes": len(run.data.classes),
        },
    )


def _dry_run(run: Run, supernet: Supernet, space: Space, options: dict[str, int], name: str) -> None:
    """Realises, exports and runs one architecture on two images.

    Raises:
        RuntimeError: any of it fails, or onnxruntime disagrees with the supernet by more than rounding does.
    """
    images = run.images("weights", 2)
    architecture = supernet.with_filters(Architecture(space, options))
    try:
        small = realise(supernet, architecture).eval()
        exact, masked = copy.deepcopy(small).double(), copy.deepcopy(supernet).double().eval()
        with (
            torch.no_grad(),
            masked.evaluate_as(architecture),
        ):  # in float64: a float32 rounding tie is no wrong coupling
            found, wanted = exact(images.double()), masked(images.double())
        with tempfile.TemporaryDirectory() as folder:
            for format in run.config.export.formats:
                path = Path(folder) / f"{format}.onnx"
                export(small, images, path, format)  # type: ignore[arg-type]
                if format == "qcdq":
                    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                    session.run(None, {session.get_inputs()[0].name: images.cpu().numpy().astype(np.float32)})
    except Exception as error:
        raise RuntimeError(
            f"preflight: the {name} network of this space cannot be built, exported and run: {error}; exclude the layer it "
            "names (space.exclude) or keep filters (space.filters=[1.0])"
        ) from error
    difference = float((found - wanted).abs().max())
    scale = max(float(wanted.abs().max()), 1.0)
    if not difference <= 1e-3 * scale:
        raise RuntimeError(
            f"preflight: the {name} network differs from the masked supernet by {difference:.3g}; its filters are coupled in a "
            "way that was not traced: keep filters (space.filters=[1.0]) or exclude the layers concerned (space.exclude)"
        )
    run.console.print(f"dry run: the {name} network builds, exports ({', '.join(run.config.export.formats)}) and runs")
