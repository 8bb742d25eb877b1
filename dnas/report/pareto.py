"""Many runs side by side: means over seeds, paired differences, one table and one picture."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table
from scipy.stats import t as student

from dnas.report.page import NONE, Markup, join, page, section, table, tag
from dnas.report.plots import Panel, Point, cost_label, method_label, pareto_picture
from dnas.report.rows import (
    BASELINES,
    accuracy_text,
    budgets_text,
    bytes_text,
    cost_text,
    mean_each,
    mean_or_none,
    runs_text,
    stand_in,
)
from dnas.run import identity
from quant.files import write_atomically

LEVEL = 0.95
"""Of the intervals."""


KEY = ("model", "data", "convention", "start")
"""What tells networks apart, beside their configuration."""
MOST_NAMED = 4
"""Keys that a title names."""
ASIDE = ("seed", "budget", "search_from")
"""Sections of a configuration in which runs of one network may differ."""


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """Reads every folder's report.json and groups what it finds.

    Networks differ in model, data, cost convention, the weights that retraining starts from, or the rest of their configuration
    but for seed and budgets; groups in budgets and method.
    Each seed counts once: `random` with the mean of its draws, any other method with the row that validation accuracy picks
    (`rows.stand_in`). A row that is a mean over seeds itself goes in with its number of seeds and its spread, and is one pair.

    Args:
        folders: run folders.

    Returns:
        JSON-able: `networks`, each with `differs` (keys of the configuration that tell it from others of its name), `float`,
        `groups` and `paired` (ours minus a baseline, seed by seed, with
        a 95 % t-interval from two seeds on); `unfinished`, folders without a readable report; `repeated`, rows left
        out because their seed was there already.
    """
    networks: dict[tuple[str, ...], dict[str, Any]] = {}
    seen: dict[tuple[Any, ...], dict[Any, dict[str, Any]]] = {}
    recipes: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Any]]] = {}
    unfinished, repeated, runs = [], [], []
    for folder in folders:
        try:
            report = read_report(folder)
        except (OSError, ValueError) as error:
            unfinished.append({"folder": str(folder), "reason": str(error)})
            continue
        runs.append({key: report.get(key) for key in ("name", "seed", "versions", "machine", "commit", "stages")})
        name = tuple(str(report.get(part) or "") for part in KEY)
        recipe = _recipe(report)
        key = (*name, json.dumps(recipe, sort_keys=True))
        network = networks.setdefault(key, {**dict(zip(KEY, name, strict=True)), "limits": {}})
        recipes.setdefault(name, {})[key] = recipe
        budgets = {str(name): float(value) for name, value in sorted((report.get("budgets") or {}).items())}
        for name, value in (report.get("limits") or {}).items():
            network["limits"].setdefault(name, []).append(_share(value, (report.get("reference") or {}).get(name)))
        for method in dict.fromkeys(str(row.get("method")) for row in report.get("rows") or []):
            row = stand_in(report["rows"], method)
            if row is None:
                continue
            group = seen.setdefault((key, () if method == "float" else tuple(budgets.items()), method), {})
            if report.get("seed") not in group:
                group[report.get("seed")] = row
            elif method != "float":  # a float network is the same under every budget
                repeated.append({"folder": str(folder), "method": method, "seed": report.get("seed")})
    for key, network in networks.items():
        mine = {(budgets, method): rows for (owner, budgets, method), rows in seen.items() if owner == key}
        network["limits"] = {name: sorted({v for v in vs if v is not None}) for name, vs in network["limits"].items()}
        floats = mine.pop(((), "float"), None)
        network["float"] = _summary("float", {}, floats) if floats else None
        network["groups"] = [_summary(method, dict(budgets), rows) for (budgets, method), rows in sorted(
            mine.items(), key=lambda item: (item[0][0], _rank(item[0][1]))
        )]  # fmt: skip
        network["paired"] = [
            paired(dict(budgets), method, mine[budgets, "ours"], rows)
            for (budgets, method), rows in sorted(mine.items(), key=lambda item: (item[0][0], _rank(item[0][1])))
            if method in BASELINES and set(mine.get((budgets, "ours"), ())) & set(rows)
        ]
    for own in recipes.values():
        telling = sorted(k for k in set().union(*own.values()) if len({repr(one.get(k)) for one in own.values()}) > 1)
        for key, recipe in own.items():
            networks[key]["differs"] = {k: recipe.get(k) for k in telling}
    found = [networks[key] for key in sorted(networks)]
    return {
        "type": "dnas.Pareto",
        "version": 1,
        "networks": found,
        "unfinished": unfinished,
        "repeated": repeated,
        "runs": runs,
    }


def read_report(folder: Path) -> dict[str, Any]:
    """A run's report.

    Raises:
        OSError: there is none.
        ValueError: it is not one.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise FileNotFoundError("no report.json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"report.json is not JSON: {error}") from error
    kind = (report.get("type"), report.get("version")) if isinstance(report, dict) else None
    if kind != ("dnas.Report", 1):
        raise ValueError(f"report.json is of type and version {kind}, expected ('dnas.Report', 1)")
    return dict(report)


def pooled(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float | None, int]:
    """Mean, standard deviation (ddof 1; None for one value) and number of all seeds behind some rows."""
    counts = np.array([int(row.get("seeds") or 1) for row in rows], dtype=float)
    means = np.array([float(row["accuracy"]) for row in rows])
    sds = np.array([float(row.get("accuracy_sd") or 0.0) for row in rows])
    n = int(counts.sum())
    mean = float((counts * means).sum() / n)
    squares = float(((counts - 1) * sds**2 + counts * (means - mean) ** 2).sum())
    return mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n


def paired(
    budgets: dict[str, float], minus: str, ours: Mapping[Any, Mapping[str, Any]], other: Mapping[Any, Mapping[str, Any]]
) -> dict[str, Any]:
    """Differences in accuracy, seed by seed: mean, standard deviation, and a 95 % t-interval from two seeds on."""
    seeds = [seed for seed in ours if seed in other]
    values = [float(ours[seed]["accuracy"]) - float(other[seed]["accuracy"]) for seed in seeds]
    n, mean = len(values), float(np.mean(values))
    result: dict[str, Any] = {"budgets": budgets, "minus": minus, "n": n, "seeds": seeds, "differences": values}
    result |= {"mean": mean, "sd": None, "low": None, "high": None}
    if n > 1:
        sd = float(np.std(values, ddof=1))
        half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
        result |= {"sd": sd, "low": mean - half, "high": mean + half}
    return result


def _summary(method: str, budgets: dict[str, float], rows: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    found = list(rows.values())
    mean, sd, n = pooled(found)
    return {
        "method": method,
        "budgets": budgets,
        "seeds": list(rows),
        "n": n,
        "draws": sum(int(row["draws"]) for row in found),
        "accuracy": mean,
        "accuracy_sd": sd,
        "architectures": list(dict.fromkeys(str(row.get("architecture")) for row in found)),
        "costs": mean_each([row.get("costs") or {} for row in found]),
        "relative": mean_each([row.get("relative") or {} for row in found]),
        "within_budget": all(bool(row.get("within_budget", True)) for row in found),
        **{key: mean_or_none([row.get(key) for row in found]) for key in ("weight_bytes", "search_cost", "seconds")},
    }


def _rank(method: str) -> tuple[int, str]:
    order = ("ours", *BASELINES)
    return (order.index(method) if method in order else len(order), method)


def _share(limit: Any, reference: Any) -> float | None:
    return float(limit) / float(reference) if limit and reference else None


def _entries(network: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The float network, once, and the groups."""
    return [*([network["float"]] if network["float"] else []), *network["groups"]]


def _recipe(report: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of the part of a run's configuration that its networks have in common, whatever the seed and the budgets."""
    content = OmegaConf.create(str(report.get("config") or "{}"))
    found = identity(content) if isinstance(content, DictConfig) else {}
    left = {key: value for key, value in found.items() if key not in ASIDE}
    return {path: value for path, value in _leaves(left) if path not in ("retrain.start", "model.name", "data.name")}


def _leaves(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, here)
        else:
            yield here, value


def _title(network: Mapping[str, Any]) -> str:
    title = " on ".join(part for part in (network["model"], network["data"]) if part) or "network"
    title = f"{title}, retrained from float weights" if network["start"] == "float" else title
    differs = [f"{key}={value}" for key, value in network["differs"].items()]
    return ", ".join([title, *differs[:MOST_NAMED], *(["..."] if len(differs) > MOST_NAMED else [])])


def _name(entry: Mapping[str, Any]) -> str:
    """Method, budgets, and what it is where all seeds agree."""
    name = method_label(entry["method"])
    name += f", {budgets_text(entry['budgets'])}" if entry["budgets"] else ""
    if entry["draws"] > len(entry["seeds"]):
        name += f", {entry['draws']} draws"
    elif len(entry["architectures"]) == 1 and entry["method"] != "float":
        name += f" ({entry['architectures'][0]})"
    return name + ("" if entry["within_budget"] or entry["method"] == "float" else ", OVER BUDGET")


def _cost_names(collected: Mapping[str, Any]) -> list[str]:
    groups = [group for network in collected["networks"] for group in network["groups"]]
    return list(dict.fromkeys(["bops", *(name for group in groups for name in group["budgets"])]))


def _cells(entry: Mapping[str, Any], costs: Sequence[str]) -> list[str]:
    return [
        accuracy_text(entry), *[cost_text(entry, cost) for cost in costs], bytes_text(entry["weight_bytes"]),
        runs_text(entry["search_cost"]),
    ]  # fmt: skip


def _difference(pair: Mapping[str, Any], minus: str = "\u2212") -> tuple[str, str]:
    """What is compared, and the numbers."""
    what = f"{method_label('ours')} {minus} {method_label(pair['minus']).lower()}, {budgets_text(pair['budgets'])}"
    text = f"{pair['mean']:+.2f} points (n = {pair['n']}"
    if pair["low"] is not None:
        text += f", 95 % interval {pair['low']:+.2f} to {pair['high']:+.2f}"
    return what, (text + ")").replace("-", minus)


def pareto_table(collected: Mapping[str, Any]) -> Table:
    """The collected runs for the terminal."""
    costs, shown = _cost_names(collected), Table(title_justify="left", caption_justify="left")
    shown.add_column("network")
    for column in ("accuracy % (mean ± sd, n)", *[cost_label(cost) for cost in costs], "weight bytes"):
        shown.add_column(column, justify="right")
    shown.add_column("search time (QAT runs)", justify="right")
    several = len(collected["networks"]) > 1
    notes = []
    for network in collected["networks"]:
        if several:
            shown.add_section()
            shown.add_row(f"[bold]{escape(_title(network))}[/bold]")
        else:
            shown.title = escape(_title(network))
        for entry in _entries(network):
            style = "bold" if entry["method"] == "ours" else None
            shown.add_row(escape(_name(entry)), *_cells(entry, costs), style=style)
        lead = f"{_title(network)}: " if several else ""
        notes += [lead + ": ".join(_difference(pair)) for pair in network["paired"]]
    notes += [f"unfinished: {entry['folder']}: {entry['reason']}" for entry in collected["unfinished"]]
    notes += [
        f"left out, seed {e['seed']} is there already: {e['method']} of {e['folder']}" for e in collected["repeated"]
    ]
    shown.caption = escape("\n".join(notes)) if notes else None
    return shown


def write_pareto(folders: Sequence[Path], out: Path) -> None:
    """Writes pareto.json, pareto.html and pareto.png into a folder, each atomically.

    Args:
        folders: run folders.
        out: the folder to write to; made if it is not there.
    """
    collected = collect(folders)
    panels = [panel for network in collected["networks"] if (panel := _panel(network)) is not None]
    write_atomically(out / "pareto.png", pareto_picture(panels).png())
    write_atomically(out / "pareto.html", _html(collected))
    write_atomically(out / "pareto.json", json.dumps(collected, indent=1))


def _panel(network: Mapping[str, Any]) -> Panel | None:
    """Against the cost that most groups have a budget on, as shares of the 8-bit network where all have them."""
    named = [name for group in network["groups"] for name in group["budgets"]]
    cost = max(dict.fromkeys(named), key=named.count, default="bops")
    points = [
        Point(
            group["method"], float(group["relative"][cost]), group["accuracy"], group["accuracy_sd"], group["n"],
            group["within_budget"],
        )
        for group in network["groups"] if group["relative"].get(cost) is not None
    ]  # fmt: skip
    floating = network["float"]["accuracy"] if network["float"] else None
    limits = network["limits"].get(cost, [])
    return Panel(_title(network), points, cost, True, limits, floating, True) if points else None


def _html(collected: Mapping[str, Any]) -> str:
    costs, parts = _cost_names(collected), []
    header = [
        "Network",
        "Test accuracy, %",
        *[cost_label(cost) for cost in costs],
        "Weight bytes",
        "Search time, QAT runs",
    ]
    for index, network in enumerate(collected["networks"]):
        entries = _entries(network)
        lines = [[_name(entry), *_cells(entry, costs)] for entry in entries]
        marks = ["ours" if entry["method"] == "ours" else "" for entry in entries]
        panel, differences = _panel(network), [list(_difference(pair)) for pair in network["paired"]]
        note = "Mean ± standard deviation over n seeds; in brackets, share of the 8-bit network at full width."
        moved = "Bars: one standard deviation over seeds. Methods are moved apart by a few points, to the left only."
        picture = None
        if panel is not None:
            svg = pareto_picture([panel]).svg(f"pareto-{index}")
            picture = Markup(f"<figure>{svg}{tag('figcaption', moved)}</figure>")
        parts.append(section(
            _title(network),
            table(header, lines, ["name", *["num"] * (len(header) - 1)], marks), tag("p", note, "note"),
            tag("p", network["convention"], "note") if network["convention"] else None, picture,
            join(tag("h3", "Paired differences in test accuracy, seed by seed"), table(["", "Difference"], differences))
            if differences else None,
        ))  # fmt: skip
    left = [[entry["folder"], entry["reason"]] for entry in collected["unfinished"]]
    left += [[e["folder"], f"{e['method']}: seed {e['seed']} is there already"] for e in collected["repeated"]]
    if left:
        parts.append(section("Left out", table(["Folder", "Why"], left, ["name"])))
    seeds = max((entry["n"] for network in collected["networks"] for entry in _entries(network)), default=0)
    count = f"{len(collected['networks'])} network(s), up to {seeds} seeds" if seeds else f"nothing finished {NONE} yet"
    return page("Accuracy against cost", tag("h1", "Accuracy against cost"), tag("p", count, "sub"), *parts)
