"""Scores and budget to architecture.json, and the discretisation gap."""

from dataclasses import replace

import torch

from dnas.recipe import evaluate_by_batch
from dnas.search.relax import HARD
from dnas.search.scores import Scores
from dnas.select.select import select as select_architecture
from dnas.space.architecture import Architecture
from dnas.space.cost import reference_cost
from dnas.stages.context import Run
from quant.files import write_atomically

SAMPLED = 4
"""Passes over the validation images that judge samples, each batch another one."""


def select(run: Run) -> None:
    """Selects the architecture and compares it, in the supernet, with the relaxed one, with samples and with the argmax."""
    supernet = run.supernet()
    scores = Scores.from_json(run.folder.read("scores.json", "search"))
    given = run.config.select
    selected = select_architecture(scores, run.space, run.budget, given.time_limit, given.solver)
    if run.engine.world_size > 1:  # a time limit may end each process's selection elsewhere
        text = run.engine.same(selected.to_json())
        selected = replace(Architecture.from_json(text, run.space), functions=run.functions)
    certificate = selected.certificate
    assert certificate is not None
    # the solver's wall time stands in select.json: the architecture is the same file whenever it is selected
    chosen = supernet.with_filters(replace(selected, certificate=replace(certificate, seconds=0.0)))
    likely = supernet.most_probable()
    validation = run.batches("validation", 500, False)
    names = list(run.budget.caps)

    def accuracy() -> float:
        return evaluate_by_batch(supernet, validation.epoch(0))[0]

    def relative(architecture: Architecture) -> dict[str, float]:
        return {name: float(architecture.cost(name, relative=True)) for name in names}

    with torch.no_grad():
        expected = {
            name: float(supernet.cost(name)) / reference_cost(run.space, name, functions=run.functions)
            for name in names
        }
    with supernet.evaluate_relaxed():
        gap = [{"network": "relaxed", "relative": expected, "accuracy": accuracy()}]
    if supernet.relaxation.mode in HARD:
        with supernet.evaluate_sampled():
            passes = [accuracy() for _ in range(SAMPLED)]
        gap.append({"network": "sampled", "relative": expected, "accuracy": sum(passes) / SAMPLED})
    gap.append({"network": "argmax", "relative": relative(likely), "accuracy": accuracy()})
    with supernet.evaluate_as(chosen):
        gap.append({"network": "selected", "relative": relative(chosen), "accuracy": accuracy()})
    board = run.board("select")
    board.purge(0)
    board.architecture(chosen, round(run.config.search.epochs))
    board.close()
    run.console.print(chosen.describe(), highlight=False)
    run.folder.write_json("select.json", {"gap": gap, "seconds": certificate.seconds})
    write_atomically(run.folder.file("architecture.json"), chosen.to_json())
