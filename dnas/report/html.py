"""One self-contained HTML file from a report."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.pictures import layer_rows, layers_picture, percent
from dnas.report.estimator import estimator_pictures, frontier_picture
from dnas.report.page import (
    Markup,
    bits_cell,
    escape,
    facts,
    figure,
    join,
    page,
    plain,
    section,
    table,
    tag,
)
from dnas.report.plots import (
    Panel,
    Point,
    cost_label,
    draw_scores,
    method_label,
    pareto_picture,
    short,
    training_picture,
)
from dnas.report.rows import (
    BASELINES,
    accuracy_text,
    best_row,
    budgets_text,
    bytes_text,
    cost_text,
    rows_of,
    runs_text,
    seconds_text,
    stand_in,
)
from dnas.search.judge import HELD
from dnas.space.architecture import FRONTIER
from quant.files import write_atomically

_BASELINE_NAMES = {"uniform": "the best uniform network", "random": "random networks at equal cost"}
UNTRAINED = "No weights were trained here: the options were measured in the network as it was."


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """Writes the page, atomically; parts that the report does not have are left out.

    Args:
        report: the content of report.json.
        path: of the file.
    """
    write_atomically(path, render(report))


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    name = str(report.get("name") or "Report")
    about = [f"{report[key]}" for key in ("model", "data") if report.get(key)]
    subtitle = " on ".join(about) + (f", seed {report['seed']}" if report.get("seed") is not None else "")
    makers = (
        _results, _pareto, _training, _layers, _estimator, _scores, _gap, _certificate, _frontier, _verify, _fixed, _stages,
        _config, _versions,
    )  # fmt: skip
    parts = [maker(report) for maker in makers]
    return page(name, tag("h1", name), tag("p", subtitle, "sub") if subtitle else None, headline(report), *parts)


def headline(report: Mapping[str, Any]) -> Markup | None:
    """What was reached, against the budget and against every baseline, in plain words."""
    rows = report.get("rows") or []
    ours = best_row(rows_of(rows, "ours"))
    if ours is None:
        return tag("div", tag("p", "This report holds no searched network."), "headline") if rows else None
    shares = ", ".join(
        f"{cost_label(name)} of {cost_text(ours, name)}"
        for name in report.get("budgets") or {} or ours.get("costs") or {}
    )
    first = f"The searched network reaches {accuracy_text(ours, ' %')} test accuracy"
    first += f" with {shares}" if shares else ""
    lost = False
    if report.get("budgets"):
        within = bool(ours.get("within_budget", True))
        lost = not within
        first += f", {'within' if within else 'OVER'} the budget ({budgets_text(report['budgets'])})"
    lines = [first + "."]
    for method in ("float", *BASELINES):
        other = stand_in(rows, method)
        if other is not None:
            line, worse = _comparison(ours, other, method)
            lost = lost or (worse and method != "float")
            lines.append(line)
    taken = report.get("taken_from")
    if taken:
        lines.append(
            f"Its search was that of {taken['folder']} ({budgets_text(taken['budgets'])}; commit "
            f"{taken['commit'] or 'not known'}), in whose report its cost stands."
        )
    if int(ours.get("seeds") or 1) < 2:
        lines.append("One seed: how far these numbers spread from seed to seed is not known from this run.")
    return tag("div", join(*(tag("p", line) for line in lines)), "headline lost" if lost else "headline")


def _comparison(ours: Mapping[str, Any], other: Mapping[str, Any], method: str) -> tuple[str, bool]:
    """A sentence, and whether ours is worse; the sign is that of the numbers as they are printed."""
    difference = round(float(ours["accuracy"]), 2) - round(float(other["accuracy"]), 2)
    size, value = f"{abs(difference):.2f} points", accuracy_text(other, " %")
    if method == "float":
        where = "equal to" if abs(difference) < 0.005 else f"{size} {'above' if difference > 0 else 'below'}"
        return f"That is {where} the float network ({value}).", difference < -0.005
    name, share = _BASELINE_NAMES[method], next(iter((other.get("relative") or {}).values()), None)
    about = value + ("" if share is None else f" at {percent(share)}")
    about += "" if other.get("within_budget", True) else ", over the budget"
    if other["draws"] > 1:
        about += f", mean of {other['draws']} draws"
    sds = [row.get("accuracy_sd") for row in (ours, other)]
    noise = ""
    if None not in sds:
        error = math.sqrt(sum(float(row["accuracy_sd"]) ** 2 / int(row.get("seeds") or 1) for row in (ours, other)))
        noise = " (less than two standard errors: not distinguishable)" if abs(difference) < 2 * error else ""
    if abs(difference) < 0.005:
        return f"It equals {name} ({about}).", False
    if difference < 0:
        return f"It loses to {name} by {size} ({about}){noise}.", True
    return f"It beats {name} by {size} ({about}){noise}.", False


def _results(report: Mapping[str, Any]) -> Markup | None:
    rows = report.get("rows") or []
    if not rows:
        return None
    order = dict.fromkeys([*(report.get("budgets") or {}), *(n for row in rows for n in row.get("costs") or {})])
    names = [name for name in order if any(name in (row.get("costs") or {}) for row in rows)]
    header = ["Network", "Architecture", "Test accuracy, %", "Validation, %", *[_head(n) for n in names]]
    header += ["Weight bytes", "Search time, QAT runs", "Time", "Within budget"]
    lines = []
    for row in rows:
        within = row.get("within_budget")
        verdict = None if within is None or row.get("method") == "float" else within
        mark = tag("span", "yes" if verdict else "no", "good" if verdict else "bad") if verdict is not None else None
        validation = row.get("validation_accuracy")
        lines.append([
            method_label(str(row.get("method"))), row.get("architecture"), accuracy_text(row),
            None if validation is None else f"{float(validation):.2f}", *[_cost_cell(row, name) for name in names],
            bytes_text(row.get("weight_bytes")), runs_text(row.get("search_cost")), seconds_text(row.get("seconds")),
            mark,
        ])  # fmt: skip
    kinds = ["", "name", "num", "num", *["num"] * len(names), "num", "num", "num", ""]
    notes = ["Below a cost: its share of the same network at full width with 8-bit weights and activations."]
    notes += [str(report["convention"])] if report.get("convention") else []
    if report.get("start") == "float":
        notes.append("Retrained from the float network's weights, not from the supernet's.")
    marks = ["ours" if row.get("method") == "ours" else "" for row in rows]
    return section("Results", table(header, lines, kinds, marks), *[tag("p", note, "note") for note in notes])


def _head(cost: str) -> str:
    label = cost_label(cost)
    return label[:1].upper() + label[1:]


def _cost_cell(row: Mapping[str, Any], name: str) -> Markup:
    """A cost with its share below it."""
    share = (row.get("relative") or {}).get(name)
    cost = escape(cost_text({"costs": row.get("costs")}, name))
    return Markup(cost if share is None else f"{cost}<small>{escape(percent(float(share)))}</small>")


def _pareto(report: Mapping[str, Any]) -> Markup | None:
    rows = [row for row in report.get("rows") or [] if row.get("accuracy") is not None]
    cost = next(iter(report.get("budgets") or {}), "bops")
    points = []
    for row in rows:
        share = (row.get("relative") or {}).get(cost)
        if share is not None and row.get("method") != "float":
            points.append(
                Point(
                    str(row.get("method")), float(share), float(row["accuracy"]), row.get("accuracy_sd"),
                    int(row.get("seeds") or 1), bool(row.get("within_budget", True)),
                )
            )  # fmt: skip
    if not points:
        return None
    limit, reference = (report.get("limits") or {}).get(cost), (report.get("reference") or {}).get(cost)
    floats = rows_of(rows, "float")
    title = " on ".join(str(report[key]) for key in ("model", "data") if report.get(key))
    panel = Panel(
        title, points, cost, True, [limit / reference] if limit and reference else [],
        float(floats[0]["accuracy"]) if floats else None,
    )  # fmt: skip
    return section("Accuracy against cost", figure(pareto_picture([panel]), "pareto"))


def _training(report: Mapping[str, Any]) -> Markup | None:
    parts: list[Any] = []
    for stage, history in (report.get("history") or {}).items():
        if history:
            unit = "Round" if any("images" in record for record in history) else "Epoch"  # rounds count their images
            picture = training_picture(history, report.get("budgets"), unit)
            parts.append(tag("h3", str(stage).capitalize()))
            if stage == "search" and report.get("untrained"):
                parts.append(tag("p", UNTRAINED, "note"))
            parts.append(figure(picture, f"training-{len(parts)}"))
    return section("Training", *parts) if parts else None


def _layers(report: Mapping[str, Any]) -> Markup | None:
    layers = report.get("layers") or []
    if not layers:
        return None
    header = ["Layer", "Kind", "Weight bits", "Activation bits", "In", "Out", "MACs", "BOPs"]
    lines = [
        [
            layer.get("name"), layer.get("kind"),
            *[bits_cell(layer[key]) for key in ("weight_bits", "act_bits")],
            *[f"{layer[side]} / {layer[f'{side}_full']}" if f"{side}_full" in layer else layer.get(side)
              for side in ("in", "out")],
            *[None if layer.get(cost) is None else short(float(layer[cost])) for cost in ("macs", "bops")],
        ]
        for layer in layers
    ]  # fmt: skip
    kinds = ["name", "", "bits", "bits", "num", "num", "num", "num"]
    return section(
        "Layers",
        figure(layers_picture(layer_rows(layers)), "layers", "Layers in the order in which they run."),
        Markup(f"<details><summary>Table of the {len(layers)} layers</summary>{table(header, lines, kinds)}</details>"),
    )


def _scores(report: Mapping[str, Any]) -> Markup | None:
    scores, choices = report.get("scores") or {}, report.get("choices") or {}
    values = {name: found for name, found in (scores.get("values") or {}).items() if name in choices}
    if not any(len(choices[name]["options"]) > 1 for name in values):
        return None
    caption = f"Method: {plain(scores.get('method'))}. Higher scores are better; the price of an option is not in them."
    return section("Scores", figure(draw_scores(values, choices), "scores", caption))


def _estimator(report: Mapping[str, Any]) -> Markup | None:
    found = report.get("estimator")
    if not found:
        return None
    captions = {
        "effects": "What every option adds, where its block runs; bars: one standard error.",
        "effects per saved MBOP": "What an option loses against the dearest one, per million of bit operations saved.",
        "effects per saved ms": "The same per millisecond of measured latency; widths up to 8 bits save none.",
        "interactions": "How far two choices together differ from the sum of both.",
        "interactions of neighbours": "The same of layers that follow each other, by an estimator that has such effects, too.",
        "agreement": "Sub-networks that were left out of the fit (the line: equal); bars: 95 % by bootstrap. Middle costs: the "
        "half of them in the middle of the costs.",
    }
    explained, judged = 100 * float(found["r2"]), found["judged"]
    text = (
        f"Effect-coded ridge regression on one-shot accuracies. It explains {explained:.0f} % of the variance between left-out "
        f"records; of the rest the images' noise is {found['noise_variance']:.2f} and the misfit "
        f"{found['misfit_variance']:.2f} (points squared). {judged['enough']:,} of {judged['sizes'][-1]['records']:,} "
        f"records are needed for this ranking of left-out sub-networks, within {HELD} of Kendall's tau."
    )
    sentences = [tag("p", sentence) for sentence in (*found["findings"], *_promised(report))]
    pictures = [figure(p, name.replace(" ", "-"), captions[name]) for name, p in estimator_pictures(found).items()]
    return section("Estimator", tag("p", text, "note"), *sentences, *pictures)


def _promised(report: Mapping[str, Any]) -> list[str]:
    """What the estimator says of the selected network, beside what that is in the supernet and after retraining.

    The total of an estimator's scores is its prediction less the intercept (`Estimator.scores`).
    """
    found, certificate = report["estimator"], report.get("certificate")
    ours = best_row(rows_of(report.get("rows") or [], "ours"))
    selected = [entry for entry in report.get("gap") or [] if entry["network"] == "selected"]
    if certificate is None or ours is None or ours.get("validation_accuracy") is None or not selected:
        return []
    missed = [a - b for a, b in zip(found["judged"]["predicted"], found["judged"]["measured"], strict=True)]
    error = math.sqrt(sum(miss * miss for miss in missed) / len(missed))
    predicted = float(found["intercept"]) + float(certificate["value"])
    return [
        f"Selected network: {predicted:.1f} % predicted (for left-out sub-networks it is {error:.1f} points off, root mean "
        f"square), {float(selected[0]['accuracy']):.1f} % in the supernet, {float(ours['validation_accuracy']):.1f} % "
        "retrained, both on the validation images."
    ]


def _frontier(report: Mapping[str, Any]) -> Markup | None:
    found = report.get("frontier")
    if not found or not found["points"]:
        return None
    cost = (report.get("certificate") or {}).get("costs", {}).get(found["cost"])
    reference = (report.get("reference") or {}).get(found["cost"])
    chosen = float(cost) / float(reference) if cost and reference else None
    largest = max(float(point["gap"]) for point in found["points"])
    seconds = float(found["seconds"])
    caption = f"{len(found['points'])} selections from the same scores in {seconds:.1f} s; largest gap {largest:.2g}."
    return section("Frontier", figure(frontier_picture(found, chosen), "frontier", caption))


def _gap(report: Mapping[str, Any]) -> Markup | None:
    gap = report.get("gap") or []
    if not gap:
        return None
    names = list(dict.fromkeys(name for entry in gap for name in entry.get("relative") or {}))
    lines = [
        [
            str(entry.get("network")).capitalize(), *[cost_text({"relative": entry.get("relative")}, n) for n in names],
            None if entry.get("accuracy") is None else f"{float(entry['accuracy']):.2f}",
        ]
        for entry in gap
    ]  # fmt: skip
    text = (
        "Validation accuracy in the supernet, before retraining: with all options mixed by their probabilities (relaxed), "
        "with single ones drawn by them, as a search by samples trains (sampled, the mean), with the most probable one of "
        "each choice (argmax), and with those that the budget allows (selected)."
    )
    header = ["Network", *[f"{_head(name)}, of 8 bits" for name in names], "Validation accuracy, %"]
    return section(
        "Discretisation gap", tag("p", text, "note"), table(header, lines, ["", *["num"] * (len(names) + 1)])
    )


def _certificate(report: Mapping[str, Any]) -> Markup | None:
    found = report.get("certificate")
    if not found:
        return None
    gap, parts = found.get("gap"), []
    if gap is not None:
        scale = max(abs(float(found.get("value") or 0)), abs(float(found.get("bound") or 0)), 1e-12)
        proof = "the selected architecture is the best-scored one within the budget, proven"
        nested = found.get("method") == FRONTIER
        which = "architecture that keeps filters in the order of their benefit" if nested else "architecture"
        rest = f"no {which} within the budget scores more than {float(gap):.3g} above the selected one"
        parts.append(tag("p", f"For these scores, {proof if abs(float(gap)) <= 1e-9 * scale else rest}."))
    shown = {key: found[key] for key in ("value", "bound", "gap", "method") if key in found}
    parts.append(facts({**shown, "time": seconds_text(found.get("seconds"))}))
    limits, costs = found.get("limits") or {}, found.get("costs") or {}
    lines = [
        [cost_label(name), costs.get(name), limit, percent(costs[name] / limit) if name in costs and limit else None]
        for name, limit in limits.items()
    ]
    if lines:
        parts.append(table(["Cost", "Selected", "Limit", "Used"], lines, ["", "num", "num", "num"]))
    return section("Certificate of the selection", *parts)


def _verify(report: Mapping[str, Any]) -> Markup | None:
    found = report.get("verify")
    text = "What the exported files compute, compared with the trained network."
    files = report.get("files") or []
    names = tag("p", join("Files: ", Markup(", ".join(tag("code", name) for name in files)))) if files else None
    if not found and not files:
        return None
    return section("Export", tag("p", text, "note") if found else None, facts(found) if found else None, names)


def _fixed(report: Mapping[str, Any]) -> Markup | None:
    found = report.get("fixed") or []
    lines = [[entry.get("name"), entry.get("reason")] for entry in found]
    return section("What is not searched, and why", table(["Place", "Reason"], lines, ["name"])) if lines else None


def _stages(report: Mapping[str, Any]) -> Markup | None:
    found = report.get("stages") or []
    lines = []
    for entry in found:
        memory = entry.get("peak_memory_mb")
        shown = None if memory is None else f"{float(memory):,.0f} MB".replace(",", "\u202f")
        lines.append([entry.get("stage"), seconds_text(entry.get("seconds")), shown])
    return section("Stages", table(["Stage", "Time", "Peak memory"], lines, ["", "num", "num"])) if lines else None


def _config(report: Mapping[str, Any]) -> Markup | None:
    text = report.get("config")
    return section("Configuration", Markup(f"<pre>{escape(text)}</pre>")) if text else None


def _versions(report: Mapping[str, Any]) -> Markup | None:
    found = {key: report[key] for key in ("machine", "commit") if report.get(key)} | dict(report.get("versions") or {})
    return section("Versions and machine", facts(found)) if found else None
