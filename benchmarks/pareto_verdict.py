"""What the rows of the Pareto benchmark say: `python benchmarks/pareto_verdict.py` writes the verdict and the picture.

From benchmarks/results/cifar10_pareto.json alone, and of the earlier run beside it: paired differences by seed with 95 %
intervals (Student's t), what of the budget is spent, and accuracy over cost. p-values are Holm-corrected: ours and BINAS'
against uniform and against random networks over the budgets; where scores may come from over all methods that are compared with
uniform networks. Intervals, and whether one search for all budgets is not worse, are each budget's own.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pareto_plan import computed, made, narrow
from pareto_runs import ELSEWHERE
from pareto_targets import targets
from scipy import stats

from dnas.report.plots import Panel, Point, pareto_picture

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "cifar10_pareto.json"
EARLIER = RESULTS / "cifar10_pareto_24_epochs.json"
PICTURE, BRIDGED = RESULTS / "cifar10_pareto.png", RESULTS / "cifar10_bridges.json"
ESTIMATORS, THESIS, RANK = (
    RESULTS / name for name in ("estimators.json", "cifar10_resnet20_verdict.json", "cifar10_rank.json")
)
TARGETS = RESULTS / "cifar10_targets.json"
MARGIN = 0.7
"""Points by which one search for all budgets may be worse than one for each."""
METHODS = (
    "ours", "binas", "uniform", "random", "greedy", "scores", "sensitivities", "trained", "untrained", "score_function",
    "gumbel",
)  # fmt: skip


def by_seed(
    rows: Sequence[dict[str, Any]], method: str, budget_id: str, measured: str = "accuracy"
) -> dict[int, list[float]]:
    """Test accuracies, or others, of the rows that count, by retraining seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row["method"], row["budget_id"], row["role"]) == (method, budget_id, "main"):
            found.setdefault(row["retrain_seed"], []).append(row[measured])
    return found


def summary(rows: Sequence[dict[str, Any]], method: str, budget_id: str) -> dict[str, Any] | None:
    """Mean over seeds (of a seed's mean), spread between single networks, and what of the budget they spend."""
    found = by_seed(rows, method, budget_id)
    if not found:
        return None
    means, every = (
        [statistics.mean(values) for values in found.values()],
        [v for values in found.values() for v in values],
    )
    own = [r for r in rows if (r["method"], r["budget_id"], r["role"]) == (method, budget_id, "main")]
    spent = [r["costs"]["bops"] / r["budgets"]["bops"] for r in own]
    images = {key: statistics.mean(r[key] for r in own) for key in ("images_search", "images_retrain")}
    return {
        "mean": statistics.mean(means), "sd": statistics.stdev(every) if len(every) > 1 else None, "n": len(every),
        "seeds": len(found), "cost": statistics.mean(r["costs"]["bops"] for r in own), "spent": [min(spent), max(spent)],
        **images,
    }  # fmt: skip


def student(values: Sequence[float]) -> dict[str, Any]:
    """Mean of differences, 95 % interval and two-sided p of Student's t; None where there is but one, or all are the same."""
    mean, low, high, p = statistics.mean(values), None, None, None
    if len(set(values)) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        low, high, p = mean - half, mean + half, float(stats.ttest_1samp(values, 0.0).pvalue)
    return {"mean": mean, "low": low, "high": high, "n": len(values), "p": p, "values": list(values)}


def difference(
    rows: Sequence[dict[str, Any]], against: str, budget_id: str, measured: str = "accuracy"
) -> dict[str, Any] | None:
    """Ours minus another method, paired by seed, and how many of these pairs are one training; None below 2 seeds."""
    ours, theirs = (by_seed(rows, method, budget_id, measured) for method in ("ours", against))
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        return None
    own, others = (trainings(rows, method, budget_id) for method in ("ours", against))
    found = student([statistics.mean(ours[s]) - statistics.mean(theirs[s]) for s in seeds])
    return {**found, "seeds": seeds, "same": sum(own[s] == others[s] for s in seeds)}


def trainings(rows: Sequence[dict[str, Any]], method: str, budget_id: str) -> dict[int, set[str]]:
    """By retraining seed the trainings behind a method's rows that count, whichever row they were made for."""
    found: dict[int, set[str]] = {}
    for number, row in enumerate(rows):
        if (row["method"], row["budget_id"], row["role"]) == (method, budget_id, "main"):
            known = row.get("trained_as", row.get("key", f"{method} {number}"))
            found.setdefault(row["retrain_seed"], set()).add(known)
    return found


def mixed(rows: Sequence[dict[str, Any]], methods: Sequence[str], budget_id: str) -> bool:
    """Whether the rows that count of these methods were not all `computed` alike."""
    own = [r for r in rows if r["method"] in methods and (r["budget_id"], r["role"]) == (budget_id, "main")]
    return len({computed(row) for row in own}) > 1


def one_search(rows: Sequence[dict[str, Any]], budget_id: str) -> dict[str, Any] | None:
    """One search for all budgets minus a search of its own, paired by seed; see `non_inferior`."""
    shared = [{**r, "method": "ours", "role": "main"} for r in rows if r["role"] == "frontier"]
    own = [{**r, "method": "own"} for r in of_trained(rows, budget_id)]
    found = difference([*shared, *own], "own", budget_id)
    return found and non_inferior(found)


def non_inferior(pair: dict[str, Any]) -> dict[str, Any]:
    """Whether a paired difference is shown to be no worse than MARGIN, from one side at 95 %: `not_worse`."""
    low = pair["mean"] - float(stats.t.ppf(0.95, pair["n"] - 1) * stats.sem(pair["values"]))
    return {**pair, "margin": MARGIN, "not_worse": low > -MARGIN}


def over_budgets(pairs: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One search for all budgets, as `one_search` says of each: the mean over budgets, seed by seed; None below 2 of either."""
    found = [dict(zip(pair["seeds"], pair["values"], strict=True)) for pair in pairs if pair]
    seeds = sorted(set.intersection(*map(set, found))) if found else []
    if min(len(found), len(seeds)) < 2:
        return None
    return non_inferior(student([statistics.mean(values[seed] for values in found) for seed in seeds]))


def of_trained(rows: Sequence[dict[str, Any]], budget_id: str) -> list[dict[str, Any]]:
    """The rows that count of searches that trained a supernet for this budget, whichever the default does there."""
    own = [r for r in rows if (r["budget_id"], r["role"]) == (budget_id, "main")]
    return [r for r in own if r["method"] == "trained"] or [
        r for r in own if r["method"] == "ours" and r["start"] == "supernet"
    ]


def renamed(rows: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """The rows with another method in the place of ours."""
    return [
        {**r, "method": "ours"} if r["method"] == method else r
        for r in rows
        if method == "ours" or r["method"] != "ours"
    ]


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        found[i] = largest
    return found


def correct(pairs: Sequence[dict[str, Any] | None]) -> None:
    """Gives the differences of one family their p-values corrected for their number."""
    given = [pair for pair in pairs if pair and pair["p"] is not None]
    for pair, p in zip(given, holm([pair["p"] for pair in given]), strict=True):
        pair["p_holm"] = p


def components(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Variance components of a balanced nested design: search seeds, and retraining seeds within each.

    Args:
        groups: for every search seed the accuracies of its retrainings, equally many (2 or more).

    Returns:
        `retraining` and `search`: standard deviation and its 95 % interval (of the second the interval of the ratio of both
        variances, times the first: Searle et al. 1992, section 3.6; None where no ratio of 0 or more is in that interval, as
        the means of searches differ less than their retrainings alone would make them); `p`: of no variance between searches.
    """
    count, size = len(groups), len(groups[0])
    within = statistics.mean(statistics.variance(group) for group in groups)
    between = size * statistics.variance([statistics.mean(group) for group in groups])
    inner, outer = count * (size - 1), count - 1
    ratio = between / within
    low, high = ((ratio / float(stats.f.ppf(q, outer, inner)) - 1) / size * within for q in (0.975, 0.025))
    ends = None if high < 0 else [max(0.0, low) ** 0.5, high**0.5]
    edges = [(inner * within / float(stats.chi2.ppf(q, inner))) ** 0.5 for q in (0.975, 0.025)]
    return {
        "retraining": {"sd": within**0.5, "interval": edges},
        "search": {"sd": max(0.0, (between - within) / size) ** 0.5, "interval": ends},
        "p": float(stats.f.sf(ratio, outer, inner)), "searches": count, "retrainings": size,
    }  # fmt: skip


def nested(rows: Sequence[dict[str, Any]], budget_id: str, method: str = "ours") -> dict[str, Any] | None:
    """The components of a method at a budget, from searches that were retrained twice or more; None below 2 of these.

    Of a search seed those retrainings count that start from the same supernet (that of another processor is another one), or of
    one architecture where that starts from float weights, and that one kind of processor did (`narrow`).
    """
    found: dict[int, dict[tuple[Any, ...], dict[int, float]]] = {}
    for row in rows:
        if (row["method"], row["budget_id"]) == (method, budget_id) and row["role"] in ("main", "variance", ELSEWHERE):
            networks = found.setdefault(row["search_seed"], {})
            networks.setdefault(made(row), {})[row["retrain_seed"]] = row["accuracy"]
    groups = [max(networks.values(), key=len) for networks in found.values()]
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2:
        return None
    size = min(len(group) for group in groups)
    return components([[group[seed] for seed in sorted(group)[:size]] for group in groups])


def between(values: Sequence[float], inside: float) -> dict[str, Any] | None:
    """Standard deviation between random architectures, trained once each, less that of retraining; None below 2 of them.

    Its 95 % interval is that of the sum of both (chi-squared), less the second.
    """
    if len(values) < 2:
        return None
    freedom, total = len(values) - 1, statistics.variance(values)
    ends = [freedom * total / float(stats.chi2.ppf(q, freedom)) for q in (0.975, 0.025)]
    low, middle, high = (max(0.0, variance - inside**2) ** 0.5 for variance in (ends[0], total, ends[1]))
    return {"sd": middle, "interval": [low, high], "n": len(values)}


def elsewhere(rows: Sequence[dict[str, Any]], budget_id: str) -> dict[str, Any] | None:
    """A method minus what the same search and training reached on another processor, paired by seed; None below 2 seeds."""
    own = [r for r in rows if (r["budget_id"], r["role"]) == (budget_id, ELSEWHERE)]
    for method in dict.fromkeys(r["method"] for r in own):
        before = [{**r, "method": ELSEWHERE, "role": "main"} for r in own if r["method"] == method]
        found = difference([*renamed(rows, method), *before], ELSEWHERE, budget_id)
        if found:
            here = [r for r in rows if (r["method"], r["budget_id"], r["role"]) == (method, budget_id, "main")]
            return {**found, "method": method, "here": processors(here), "processors": processors(before)}
    return None


def processors(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where rows were trained."""
    names = {(row.get("processor") or "another processor", narrow(row)) for row in rows}
    return sorted(f"{name} {'without' if without else 'with'} AVX-512" for name, without in names)


def pooled(rows: Sequence[dict[str, Any]], budgets: Sequence[str], methods: Sequence[str]) -> dict[str, Any] | None:
    """The spread between seeds that methods share at all budgets: five seeds of one cell may lie together by chance.

    Returns:
        `sd`, its degrees of freedom, the `least` and the `most` of a cell, and `half`: that of a paired difference's 95 %
        interval, if both sides have it and seeds share nothing.
    """
    cells = [
        [statistics.mean(values) for values in by_seed(rows, method, budget).values()]
        for method in methods
        for budget in budgets
    ]
    cells = [cell for cell in cells if len(cell) > 1]
    if not cells:
        return None
    freedom = sum(len(cell) - 1 for cell in cells)
    sd = (sum((len(cell) - 1) * statistics.variance(cell) for cell in cells) / freedom) ** 0.5
    seeds, own = min(len(cell) for cell in cells), [statistics.stdev(cell) for cell in cells]
    return {
        "sd": sd,
        "least": min(own),
        "most": max(own),
        "freedom": freedom,
        "half": float(stats.t.ppf(0.975, freedom)) * sd * (2 / seeds) ** 0.5,
    }


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the tables show."""
    budgets = list(dict.fromkeys(r["budget_id"] for r in rows if r["budget_id"]))
    budgets.sort(key=lambda b: next(r["budgets"]["bops"] for r in rows if r["budget_id"] == b))
    found: dict[str, Any] = {"type": "dnas.Verdict", "version": 1, "model": rows[0]["model"], "budgets": {}}
    found["float"] = statistics.mean(r["accuracy"] for r in rows if r["method"] == "float")
    for budget in budgets:
        methods = {method: summary(rows, method, budget) for method in METHODS}
        chosen = [
            r["architecture"] for r in rows if (r["method"], r["budget_id"], r["role"]) == ("uniform", budget, "main")
        ]
        pairs = {f"ours - {other}": difference(rows, other, budget) for other in ("uniform", "random")}
        drawn = [value for values in by_seed(rows, "random", budget).values() for value in values]
        split = nested(rows, budget)
        rounds = nested(rows, budget, "untrained")
        found["budgets"][budget] = {
            "bops": next(r["budgets"]["bops"] for r in rows if r["budget_id"] == budget),
            "uniform": sorted(set(chosen)), "methods": methods, "differences": pairs,
            "mixed": {other: mixed(rows, ("ours", other), budget) for other in ("uniform", "random", "within")},
            "variance": split,
            "variance of rounds": rounds,
            "random architectures": between(drawn, either["retraining"]["sd"]) if (either := split or rounds) else None,
            "validation": difference(rows, "uniform", budget, "validation_accuracy"),
            "gaps": {method: discretisation(rows, budget, method) for method in ("ours", "trained")},
            "one search": one_search(rows, budget),
            "elsewhere": elsewhere(rows, budget),
            "ours - within": difference(rows, "within", budget),
            "ours - within, validation": difference(rows, "within", budget, "validation_accuracy"),
            "binas - uniform": difference(renamed(rows, "binas"), "uniform", budget),
            "binas - random": difference(renamed(rows, "binas"), "random", budget),
        }  # fmt: skip
    found["one search"] = over_budgets([content["one search"] for content in found["budgets"].values()])
    found["pooled"] = pooled(rows, budgets, ("ours", "uniform"))
    for other in ("uniform", "random"):
        correct([content["differences"][f"ours - {other}"] for content in found["budgets"].values()])
        correct([content[f"binas - {other}"] for content in found["budgets"].values()])
    return found


ROUNDS = "rounds of measuring, nothing trained (search.epochs=0)"
BRIDGES = {
    "ours": "**dnas**' default",
    "trained": "a supernet trained (search.train=always)",
    "untrained": ROUNDS,
    "binas": "BINAS' estimator, one for all budgets",
    "score_function": "score function, logits",
    "gumbel": "Gumbel-softmax search",
    "sensitivities": "sensitivities on 512 images (search=sensitivities)",
    "scores": "sensitivities on 512 images, not shrunk, 6 epochs",
    "greedy": "sensitivities, not shrunk, selected greedily, 6 epochs",
    "uniform": "best uniform",
    "random": "random",
}


def discretisation(rows: Sequence[dict[str, Any]], budget_id: str, method: str) -> dict[str, Any] | None:
    """Supernet accuracy on validation images, before retraining, of the relaxed network and of the selected one.

    Returns:
        their mean, least and largest difference, and for every network (drawn options, too, where all rows have them) mean
        accuracy and BOPs: what is compared differs in cost.
    """
    own = [r for r in rows if (r["method"], r["budget_id"], r["role"]) == (method, budget_id, "main") and "gap" in r]
    if not own:
        return None
    tables = [{entry["network"]: entry for entry in row["gap"]} for row in own]
    gaps = [table["relaxed"]["accuracy"] - table["selected"]["accuracy"] for table in tables]
    networks = {
        name: {
            "accuracy": statistics.mean(table[name]["accuracy"] for table in tables),
            "bops": statistics.mean(table[name]["relative"]["bops"] for table in tables),
        }
        for name in ("relaxed", "sampled", "selected")
        if all(name in table for table in tables)
    }
    return {"mean": statistics.mean(gaps), "least": min(gaps), "most": max(gaps), "n": len(gaps), "networks": networks}


def bridges(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where scores may come from: accuracy after retraining, and the images that each has seen, at every budget that tells."""
    found = []
    for budget_id in dict.fromkeys(r["budget_id"] for r in sorted(rows, key=lambda r: r["budgets"].get("bops", 0.0))):
        own = [_bridged(rows, method, budget_id) for method in BRIDGES]
        shown = [one for one in own if one]
        if any(one["method"] not in ("ours", "uniform", "random") for one in shown):
            correct([one["minus uniform"] for one in shown])
            correct([one["ours minus it"] for one in shown])
            bops = next(r["budgets"]["bops"] for r in rows if r["budget_id"] == budget_id)
            found.append({"budget": budget_id, "bops": bops, "rows": shown})
    return {"type": "dnas.Bridges", "version": 2, "budgets": found}


def _bridged(rows: Sequence[dict[str, Any]], method: str, budget_id: str) -> dict[str, Any] | None:
    """What a method reaches at a budget, beside the best uniform network and ours; None without rows."""
    one = summary(rows, method, budget_id)
    if one is None:
        return None
    if method == "uniform":  # what chose them: trainings of one epoch, and of what was not chosen
        cell = [r for r in rows if (r["method"], r["budget_id"]) == ("uniform", budget_id)]
        tried = [r for r in cell if r["role"] not in ("main", ELSEWHERE) and r["retrain_seed"] == 0]
        one["images_search"] += sum(r["images_search"] + r["images_retrain"] for r in tried)
    return {
        "method": method, "label": BRIDGES[method], **one,
        "minus uniform": difference(renamed(rows, method), "uniform", budget_id) if method != "uniform" else None,
        "ours minus it": difference(rows, method, budget_id) if method != "ours" else None,
        "validation": difference(rows, method, budget_id, "validation_accuracy") if method != "ours" else None,
        "mixed": [mixed(rows, (method, "uniform"), budget_id), mixed(rows, (method, "ours"), budget_id)],
    }  # fmt: skip


NAMES = {
    "binas": "BINAS", "scores": "Sensitivities, not shrunk", "greedy": "Greedy", "score_function": "Score function",
    "gumbel": "Gumbel",
}  # fmt: skip
SHOWN = tuple(method for method in METHODS if method not in ("sensitivities", "trained", "untrained"))
"""In pictures; the others are in the table of bridges."""


def panel(found: dict[str, Any], budgets: Sequence[str], title: str, shown: Sequence[str] = SHOWN) -> Panel:
    """Mean accuracy over BOPs at some budgets of a verdict, with the spread between single networks."""
    contents = [found["budgets"][name] for name in budgets]
    points = [
        Point(NAMES.get(method, method), one["cost"], one["mean"], one["sd"], one["n"])
        for content in contents
        for method, one in content["methods"].items()
        if one and method in shown
    ]
    marks = tuple(content["bops"] for content in contents)
    return Panel(title, points, budgets=marks, float_accuracy=found["float"], connect=len(marks) > 1)


def picture(panels: Sequence[Panel], path: Path) -> None:
    """Writes panels side by side, as the project's reports draw them."""
    path.write_bytes(pareto_picture(panels).png())


def judged(path: Path) -> dict[str, Any]:
    """The verdict of a file of rows, written beside it."""
    found = verdict(json.loads(path.read_text(encoding="utf-8")))
    path.with_name(f"{path.stem}_verdict.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """The command."""
    judged(EARLIER)
    found, rows = judged(ROWS), json.loads(ROWS.read_text(encoding="utf-8"))
    picture([panel(found, list(found["budgets"]), "CIFAR-10, ResNet-8")], PICTURE)
    BRIDGED.write_text(json.dumps(bridges(rows), indent=1) + "\n", encoding="utf-8")
    others = [
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else None for file in (ESTIMATORS, THESIS, RANK)
    ]
    TARGETS.write_text(json.dumps(targets(found, *others), indent=1) + "\n", encoding="utf-8")
    for budget, content in found["budgets"].items():
        print(budget, {k: v and round(v["mean"], 2) for k, v in content["methods"].items()}, content["differences"])


if __name__ == "__main__":
    main()
