"""Scores to the best architecture of every budget: frontier.json, and a picture in TensorBoard."""

import json
import time

from dnas.report.estimator import frontier_picture
from dnas.search.budget import Budget, BudgetError
from dnas.search.scores import Scores
from dnas.select.pareto_front import frontier as select_frontier
from dnas.select.reference import full_width_shares
from dnas.space.cost import reference_cost
from dnas.stages.context import Run


def frontier(run: Run) -> None:
    """Writes frontier.json: for `select.points` values of the first budget the architecture, its costs and its certificate."""
    if any(choice.by_filter for choice in run.space.searched()):
        _without(run, "single filters decide, and every selection would take a minute")
        return
    start = time.perf_counter()
    scores = Scores.from_json(run.folder.read("scores.json", "search"))
    name = next(iter(run.budget.caps))
    config = run.config.select
    others = {cost: cap for cost, cap in run.budget.caps.items() if cost != name}
    budget = Budget(functions=run.functions, **others) if others else None
    seconds = config.time_limit / config.points
    try:
        found = select_frontier(scores, run.space, name, config.points, budget, seconds, run.functions)
    except BudgetError as error:  # out of time: the selection itself has been made
        _without(run, str(error))
        return
    reference = reference_cost(run.space, name, functions=run.functions)
    points = []
    for architecture in found:
        certificate = architecture.certificate
        assert certificate is not None
        points.append(
            {
                "limit": certificate.limits[name], "costs": dict(certificate.costs),
                "relative": certificate.costs[name] / reference, "value": certificate.value, "bound": certificate.bound,
                "gap": certificate.gap, "method": certificate.method, "architecture": json.loads(architecture.to_json()),
            }
        )  # fmt: skip
    content = {"cost": name, "points": points, "seconds": time.perf_counter() - start}
    run.folder.write_json("frontier.json", content)
    board = run.board("frontier")
    board.purge(0)
    board.image("frontier", frontier_picture(content, None), 0)
    board.close()
    count = "1 architecture" if len(points) == 1 else f"{len(points)} architectures"
    run.console.print(
        f"frontier: {count} from {points[0]['relative']:.2%} to {points[-1]['relative']:.2%} of the 8-bit "
        f"network's {name}, in {content['seconds']:.1f} s; to train another of them: this command with its budget, another "
        f"folder and search_from={run.folder.path}",
        highlight=False,
    )
    trained, search = run.folder.read_json("search.json", "search").get("epochs"), run.config.search
    least = full_width_shares(run.space, Budget(functions=run.functions, **{name: 1.0}))
    if trained == 0 and search.rounds and search.epochs and least and points[0]["relative"] < least[name]:
        run.console.print(
            f"below {least[name]:.2%} filters have to go, of which this search, which trained nothing, knows little; a search "
            "for such a budget trains a supernet",
            highlight=False,
        )


def _without(run: Run, reason: str) -> None:
    run.console.print(f"frontier: left out: {reason}", highlight=False)
    run.folder.write_json("frontier.json", {"cost": None, "points": [], "reason": reason})
