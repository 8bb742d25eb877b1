"""Before epoch 0: the space, what it can reach, and whether its smallest and largest network export and run."""

from dataclasses import asdict

from dnas.data import digests
from dnas.describe import Description, describe_space
from dnas.models import ModelError
from dnas.run import source_commit
from dnas.searcher import path_sampler
from dnas.select.select import any_architecture
from dnas.space.build import build_space
from dnas.space.latency import LATENCY
from dnas.space.preflight import memory_estimate_mb
from dnas.space.target import TargetError, unsupported
from dnas.stages.context import Run
from dnas.stages.measure import provide_table, write_table
from dnas.stages.search_from import check_source, check_space
from quant.files import write_atomically


def preflight(run: Run) -> None:
    """Writes space.json and preflight.json.

    Raises:
        BudgetError: the budget is missing or out of reach.
        ModelError: keys of a checkpoint are to be skipped, but there is none.
        TargetError: the target has no legal widths for some layer.
        RunError: `search_from` names no finished search of this configuration.
        RuntimeError: the smallest or the largest network does not export and run.
    """
    config = run.config
    source = check_source(run)
    if config.model.checkpoint_skip and config.model.checkpoint is None:
        raise ModelError(
            f"model.checkpoint_skip is {config.model.checkpoint_skip}, but no checkpoint is loaded; give model.checkpoint, or "
            "leave checkpoint_skip empty"
        )
    model = run.model().eval()
    images = run.images("weights", config.space.calibration_images)
    space = build_space(
        model, images, target=config.target, weight_narrow=config.quant.weight_narrow, **config.space.options
    )
    if source is not None:
        check_space(source, space)
    impossible = unsupported(space, config.target)
    if impossible:
        raise TargetError(
            f"the target cannot run {len(impossible)} layers: {'; '.join(impossible[:5])}; search these layers (space.exclude) "
            "or use another target (conf/target/*.yaml)"
        )
    if LATENCY in config.budget.caps():
        run.table = run.engine.same(
            provide_table(run, space) if run.engine.rank == 0 else None
        )  # times differ by process
    budget = run.budget
    budget.check(space)
    # all budgets and legal pairs together, before any training; and whether the solver is there
    any_architecture(space, budget, config.select.time_limit, config.select.solver)
    if config.search.searcher == "binas" and source is None:
        path_sampler(space, budget, config.search, config.seed)
    description = describe_space(model, space, (run.images("weights", 2),), budget, config.export.formats)  # type: ignore[arg-type]
    memory = memory_estimate_mb(space, model, config.search.batch_size)
    run.console.print(description)
    _check_dry_run(description)
    run.console.print(f"a search step at batch {config.search.batch_size} needs about {memory:.0f} MB")
    run.folder.create()
    write_atomically(run.folder.file("space.json"), space.to_json())
    if run.table is not None:
        write_table(run, run.table)
    run.folder.write_json(
        "preflight.json",
        {
            "ranges": [asdict(found) for found in description.ranges],
            "limits": dict(description.limits),
            "commit": source_commit(),
            "memory_estimate_mb": memory,
            "fixed": [asdict(fixed) for fixed in space.fixed],
            "image_shape": list(run.data.image_shape),
            "classes": len(run.data.classes),
            "data": digests(run.data),
        },
    )


def _check_dry_run(description: Description) -> None:
    """Raises RuntimeError for the first trial that failed."""
    for trial in description.exports:
        if trial.problem:
            raise RuntimeError(
                f"preflight: {trial.step} of the {trial.network} network of this space fails: {trial.problem}; exclude the "
                "layers concerned (space.exclude) or keep filters (space.filters=[1.0])"
            ) from trial.error
