"""Pictures of BINAS' estimator and of the frontier: effects, what they cost, where options meet, how well it ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dnas.pictures import GRID, INK, KINDS, MUTED, Picture, bit_colour, literal, place, shorten
from dnas.report.plots import OTHERS, STYLES, dress

COLOURS = [style[1] for method, style in STYLES.items() if method != "float"] + [colour for colour, _ in OTHERS]
WIDTH = 9.0
UNITS = {"bops": (1e6, "MBOP"), "latency_us": (1e3, "ms")}
"""Of costs that pictures of effects are per unit of: how much one is, and its name."""


def estimator_pictures(content: Mapping[str, Any]) -> dict[str, Picture]:
    """All pictures of an estimator.json, by name."""
    measured = {name for entry in content["effects"] for name in entry["saved"]}
    return {
        "effects": effects_picture(content["effects"]),
        **{
            f"effects per saved {UNITS[cost][1]}": effects_picture(content["effects"], cost)
            for cost in UNITS
            if cost in measured
        },
        "interactions": interactions_picture(content["joint"]),
        **(
            {"interactions of neighbours": neighbours_picture(content["neighbours"])}
            if content.get("neighbours")
            else {}
        ),
        "agreement": agreement_picture(content["judged"]),
    }


def effects_picture(entries: Sequence[Mapping[str, Any]], saved: str | None = None) -> Picture:
    """What every option adds to the accuracy, with standard errors: a panel per kind, choices in the order of the layers.

    Args:
        entries: as of `dnas.search.effects.summary`, lists over the options; `saved`: by the name of a cost what
            an option saves against the dearest one.
        saved: shows what an option loses against the dearest one per unit of this cost that it saves; kinds of choices that
            save nothing are left out.
    """
    shown = [entry for entry in entries if saved is None or max(entry["saved"][saved]) > 0]
    kinds = list(dict.fromkeys(entry["kind"] for entry in shown))
    each, top, bottom, gap = 1.75, 0.35, 1.35, 1.75
    height = top + bottom + each * len(kinds) + gap * max(len(kinds) - 1, 0)
    figure = Figure(figsize=(WIDTH, height))
    for index, kind in enumerate(kinds):
        own = [entry for entry in shown if entry["kind"] == kind]
        y = height - top - (index + 1) * each - index * gap
        axes = figure.add_axes((0.75 / WIDTH, y / height, (WIDTH - 1.9) / WIDTH, each / height))
        dress(axes)
        _draw_effects(axes, own, saved)
        axes.set_title(KINDS.get(kind, kind), loc="left", size=10, color=INK)
        axes.set_ylabel(f"points per {UNITS[saved][1]}" if saved else "points", size=9, color=INK)
    what = f"points lost per {UNITS[saved][1]} saved" if saved else "points of accuracy"
    return Picture(figure, f"Effects of the options, {what}, with standard errors")


def _draw_effects(axes: Axes, entries: Sequence[Mapping[str, Any]], saved: str | None) -> None:
    options = sorted({_option(entry, i) for entry in entries for i in range(len(entry["options"]))})
    colours = {
        option: bit_colour(int(option)) if "bits" in entries[0]["kind"] else COLOURS[i % len(COLOURS)]
        for i, option in enumerate(options)
    }
    shown: set[float] = set()
    for x, entry in enumerate(entries):
        values, errors = (np.asarray(entry[key], dtype=float) for key in ("effects", "errors"))
        spared = np.asarray(entry["saved"][saved], dtype=float) / UNITS[saved][0] if saved else np.zeros(len(values))
        for i in range(len(values)):
            value, error = values[i], errors[i]
            if saved:
                if i == len(values) - 1 or spared[i] <= 0:
                    continue
                value, error = (values[-1] - values[i]) / spared[i], entry["loss_errors"][i] / spared[i]
            option = _option(entry, i)
            shift = (options.index(option) - (len(options) - 1) / 2) * 0.7 / max(len(options), 1)
            axes.errorbar(
                x + shift, value, error, color=colours[option], fmt="o", ms=3.2, lw=1.0,
                label=None if option in shown else f"{option:g}",
            )  # fmt: skip
            shown.add(option)
    axes.axhline(0.0, color=MUTED, lw=0.8)
    names = [shorten(place(entry["choice"]), 22) for entry in entries]
    step = max(1, -(-len(names) // 60))
    axes.set_xticks(range(0, len(names), step), [literal(n) for n in names[::step]], rotation=90, size=6.5)
    axes.set_xlim(-0.8, len(names) - 0.2)
    axes.grid(False, axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False, fontsize=8, labelcolor=INK)


def _option(entry: Mapping[str, Any], i: int) -> float:
    """Filters as shares, so that layers can be compared."""
    options = entry["options"]
    return round(options[i] / options[-1], 2) if entry["kind"] == "filters" else float(options[i])


def interactions_picture(joint: Sequence[Mapping[str, Any]]) -> Picture:
    """Where options meet: the spread (root mean square, points) of the joint effects, by place and pair of kinds.

    Args:
        joint: `choices` (two names), `kinds` and `spread`.
    """
    title = "Joint effects of two choices, points of accuracy (root mean square)"
    return _map([(place(entry["choices"][0]), entry) for entry in joint], title)


def neighbours_picture(joint: Sequence[Mapping[str, Any]]) -> Picture:
    """The same of choices of layers that follow each other, by the two places.

    Args:
        joint: as for `interactions_picture`.
    """
    title = "Joint effects of choices of neighbouring layers, points of accuracy (root mean square)"
    return _map(
        [(" and ".join(shorten(place(name), 20) for name in entry["choices"]), entry) for entry in joint], title
    )


def _map(entries: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> Picture:
    """The largest spread by row (a name for every entry) and pair of kinds."""
    rows = list(dict.fromkeys(name for name, _ in entries))
    columns = list(dict.fromkeys(" x ".join(sorted(entry["kinds"])) for _, entry in entries))
    table = np.full((len(rows), len(columns)), np.nan)
    for name, entry in entries:
        at = rows.index(name), columns.index(" x ".join(sorted(entry["kinds"])))
        table[at] = np.nanmax([table[at], float(entry["spread"])])
    height = 1.5 + 0.19 * max(len(rows), 4)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.3, 0.25 / height, 0.55, (height - 1.6) / height))
    image = axes.imshow(table, aspect="auto", cmap="YlOrBr", vmin=0.0)
    axes.set_yticks(range(len(rows)), [literal(shorten(name, 45)) for name in rows], size=7)
    axes.set_xticks(
        range(len(columns)), [literal(c.replace("_", " ")) for c in columns], rotation=40, ha="left", size=8
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("points", size=9, color=INK)
    return Picture(figure, title)


def agreement_picture(judged: Mapping[str, Any]) -> Picture:
    """The estimator on sub-networks that it was not fitted to: predicted against measured, over pool sizes, beside others.

    Beside learned predictors and cost alone, and within the half of the sub-networks in the middle of the costs.
    """
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.add_axes((0.075, 0.14, 0.3, 0.78))
    dress(axes)
    found = judged["held_out"]
    axes.scatter(judged["predicted"], judged["measured"], s=10, color=COLOURS[0], alpha=0.7, linewidths=0)
    both = [*judged["predicted"], *judged["measured"]]
    axes.plot([min(both), max(both)], [min(both), max(both)], color=MUTED, lw=1.0)
    axes.set_xlabel("Predicted accuracy, %", size=9.5, color=INK)
    axes.set_ylabel("One-shot accuracy, %", size=9.5, color=INK)
    low, high = found["tau_interval"]
    ranks = f"Kendall {found['tau']:.2f} ({low:.2f} to {high:.2f}), Spearman {found['spearman']:.2f}"
    axes.set_title(ranks, loc="left", size=8.5, color=INK)
    axes = figure.add_axes((0.45, 0.14, 0.19, 0.78))
    dress(axes)
    sizes = judged["sizes"]
    taus = [entry["tau"] for entry in sizes]
    axes.errorbar(
        [entry["records"] for entry in sizes], taus, _bars(sizes), color=COLOURS[0], fmt="o-", ms=4, lw=1.4
    )  # fmt: skip
    axes.set_ylim(min(0.0, *taus, *(entry["tau_interval"][0] for entry in sizes)), 1.0)
    axes.set_xlabel("Records in the pool", size=9.5, color=INK)
    axes.set_title(f"Kendall tau, n = {found['n']}", loc="left", size=9.5, color=INK)
    axes = figure.add_axes((0.8, 0.14, 0.185, 0.78))
    dress(axes)
    rows = {
        "estimator": found, **judged["predictors"], "cost alone": judged["cost alone"],
        "estimator,\nmiddle costs": judged["band"], "cost alone,\nmiddle costs": judged["cost alone in band"],
    }  # fmt: skip
    values = list(rows.values())
    axes.errorbar(
        [row["tau"] for row in values], range(len(rows)), xerr=_bars(values), color=COLOURS[0], fmt="o", ms=4, lw=1.4
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows), size=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(min(0.0, *(row["tau_interval"][0] for row in values)), 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.set_xlabel("Kendall tau", size=9.5, color=INK)
    return Picture(figure, f"The estimator on {found['n']} sub-networks that it was not fitted to")


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far the intervals of tau reach below and above it."""
    edges = [(row["tau"], *row["tau_interval"]) for row in rows]
    return [[max(tau - low, 0.0) for tau, low, _ in edges], [max(high - tau, 0.0) for tau, _, high in edges]]


def frontier_picture(content: Mapping[str, Any], chosen: float | None) -> Picture:
    """Total score of the best architecture over the budget, with the proven bounds.

    Args:
        content: of frontier.json.
        chosen: relative cost of the selected architecture, to be marked.
    """
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.add_axes((0.1, 0.17, 0.86, 0.75))
    dress(axes)
    axes.set_xscale("log")  # before there are points: where all are of one cost, it has limits of its own
    points = content["points"]
    xs = [100 * point["relative"] for point in points]
    axes.plot(xs, [p["value"] for p in points], color=COLOURS[0], marker="o", ms=3.5, lw=2.4, label="best architecture")
    axes.plot(xs, [p["bound"] for p in points], color=COLOURS[1], lw=1.2, dashes=(4, 2), label="proven bound")
    if chosen is not None:
        axes.axvline(100 * chosen, color=INK, lw=1.0, dashes=(2, 2), label="selected")
    axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{content['cost'].replace('_', ' ')}, share of the 8-bit network's", size=9.5, color=INK)
    axes.set_ylabel("Total score", size=9.5, color=INK)
    axes.grid(True, color=GRID)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return Picture(figure, f"The best architecture of {len(points)} budgets")
