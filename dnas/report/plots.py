"""Pictures of a report: accuracy against cost, scores of the options, training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from dnas.pictures import GRID, INK, KINDS, MUTED, PAPER, Picture, contrast, literal, place, shorten
from dnas.search.scores import Scores
from dnas.space.architecture import Architecture
from dnas.space.choice import Space

STYLES: Mapping[str, tuple[str, str, str]] = {
    "ours": ("Ours", "#0072b2", "o"),
    "uniform": ("Uniform", "#e69f00", "s"),
    "random": ("Random", "#009e73", "^"),
    "float": ("Float", MUTED, "D"),
}
"""Label, colour (Okabe and Ito, told apart by every kind of colour vision) and marker of each method."""
OTHERS = (("#cc79a7", "v"), ("#56b4e9", "P"), ("#d55e00", "X"), ("#882255", "<"), ("#332288", "p"))
"""Colour and marker of other methods, in alphabetical order."""
LOG_RATIO = 8.0
"""From this ratio of the largest to the smallest cost the cost axis is logarithmic."""
_CHOSEN = "#0058c8"
_LOSS = LinearSegmentedColormap.from_list("loss", ["#f4f6fa", "#f6cfa0", "#dd7f33", "#7f2c0b"])


@dataclass(frozen=True)
class Point:
    """A network: cost (as a share of the 8-bit network's, or absolute) and test accuracy in per cent.

    n, accuracy_sd: seeds that accuracy is the mean of, and their standard deviation; None for one seed.
    """

    method: str
    cost: float
    accuracy: float
    accuracy_sd: float | None = None
    n: int = 1
    within_budget: bool = True


@dataclass(frozen=True)
class Panel:
    """One network's accuracy against one cost.

    relative: whether costs are shares of the 8-bit network's; connect: join the points of a method, in order of cost.
    """

    title: str
    points: Sequence[Point]
    cost: str = "bops"
    relative: bool = True
    budgets: Sequence[float] = ()
    float_accuracy: float | None = None
    connect: bool = False


def method_label(method: str) -> str:
    """The name of a method as people read it."""
    return STYLES[method][0] if method in STYLES else method


def cost_label(cost: str) -> str:
    """The name of a cost as people read it."""
    return {"bops": "BOPs", "macs": "MACs", "weight_bits": "weight bits", "energy_pj": "energy (pJ)"}.get(
        cost, cost.replace("_", " ")
    )


def pareto_picture(panels: Sequence[Panel]) -> Picture:
    """Test accuracy against cost, a panel per network: spread over seeds as bars, budgets as dashed vertical lines."""
    height, top, bottom, left, right = 3.5, 0.62, 1.2, 0.85, 0.3
    width, total = 8.6, (height + top + bottom) * max(len(panels), 1)
    figure = Figure(figsize=(width, total))
    for index, panel in enumerate(panels):
        y = total - (index + 1) * (height + top + bottom) + bottom
        axes = figure.add_axes((left / width, y / total, (width - left - right) / width, height / total))
        _draw_panel(axes, panel)
    return Picture(figure, "Test accuracy against cost: " + ", ".join(panel.title for panel in panels))


def _draw_panel(axes: Axes, panel: Panel) -> None:
    dress(axes)
    scale = 100.0 if panel.relative else 1.0
    others = sorted({point.method for point in panel.points} - set(STYLES))
    apart = -2.0 * (panel.connect and any(point.accuracy_sd for point in panel.points))
    drawn = 0
    for method in dict.fromkeys([*STYLES, *others]):
        points = sorted((p for p in panel.points if p.method == method), key=lambda p: p.cost)
        if not points:
            continue
        colour, marker = STYLES[method][1:] if method in STYLES else OTHERS[others.index(method) % len(OTHERS)]
        moved = axes.transData + ScaledTranslation(drawn * apart / 72, 0, axes.figure.dpi_scale_trans)
        drawn += 1
        if panel.connect and len(points) > 1:
            xs, ys = [scale * p.cost for p in points], [p.accuracy for p in points]
            axes.plot(xs, ys, color=colour, lw=1.2, zorder=2, transform=moved)
        for point in points:
            x, face = scale * point.cost, colour if point.within_budget else PAPER
            if point.accuracy_sd:
                ends = [point.accuracy - point.accuracy_sd, point.accuracy + point.accuracy_sd]
                axes.plot([x, x], ends, color=colour, lw=1.5, marker="_", ms=9, mew=1.5, zorder=3, transform=moved)
            axes.plot(
                [x], [point.accuracy], marker, color=colour, markersize=8, markeredgewidth=1.6, markerfacecolor=face,
                zorder=5 if method == "ours" else 4, transform=moved,
            )  # fmt: skip
        axes.plot([], [], marker, color=colour, markersize=8, label=literal(f"{method_label(method)}{_seeds(points)}"))
    if any(not point.within_budget for point in panel.points):
        axes.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, markersize=8, label="Hollow: over the budget")
    if panel.float_accuracy is not None:
        axes.axhline(panel.float_accuracy, color=MUTED, lw=1.1, zorder=1, label=f"Float: {panel.float_accuracy:.2f} %")
    costs = [scale * value for value in (*(p.cost for p in panel.points), *panel.budgets) if value > 0]
    if costs and max(costs) / min(costs) >= LOG_RATIO:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
        ratio = max(costs) / min(costs)
        ticks = (1.0, 2.0, 3.0, 5.0, 7.0) if ratio < 30 else (1.0, 2.0, 5.0) if ratio < 1000 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(10, ticks))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif costs:
        margin = max(0.12 * (max(costs) - min(costs)), 0.06 * max(costs))
        axes.set_xlim(max(0.0, min(costs) - margin), max(costs) + margin)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}" if panel.relative else short(value)))
    heights = [
        end for p in panel.points for end in (p.accuracy - (p.accuracy_sd or 0), p.accuracy + (p.accuracy_sd or 0))
    ]
    heights += [] if panel.float_accuracy is None else [panel.float_accuracy]
    if heights:
        room = 0.1 * (max(heights) - min(heights) or 1.0)
        axes.set_ylim(min(heights) - room, max(heights) + room)
    for budget in sorted(set(panel.budgets)):
        axes.axvline(scale * budget, color=INK, lw=1.0, dashes=(4, 3), zorder=1)
        text = f"≤ {scale * budget:.4g} %" if panel.relative else f"≤ {short(budget)}"
        axes.annotate(
            text, (scale * budget, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", size=9, color=INK,
        )  # fmt: skip
    if panel.budgets:
        axes.plot([], [], color=INK, lw=1.0, dashes=(4, 3), label="Budget")
    name = literal(cost_label(panel.cost))
    beside = "; methods stand side by side" if apart and drawn > 1 else ""
    share = ", % of the 8-bit network at full width" if panel.relative else ""
    axes.set_xlabel(f"{name}{share}{beside}", size=10, color=INK)
    axes.set_ylabel("Test accuracy, %", size=10, color=INK)
    axes.set_title(literal(panel.title), size=10.5, color=INK, loc="left", pad=20)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.48, -0.15), ncols=4, frameon=False, fontsize=9, labelcolor=INK,
            handletextpad=0.4, columnspacing=1.4,
        )  # fmt: skip


def _seeds(points: Sequence[Point]) -> str:
    low, high = min(p.n for p in points), max(p.n for p in points)
    return "" if high == 1 else f" (n = {low})" if low == high else f" (n = {low} to {high})"


def scores_picture(scores: Scores, space: Space, architecture: Architecture) -> Picture:
    """What every option of every searched choice loses against the best one; the chosen ones are framed."""
    choices = {
        choice.name: {
            "kind": choice.kind,
            "options": choice.labels,
            "chosen": None if choice.by_filter else architecture[choice.name],
        }
        for choice in space.choices
    }
    return draw_scores({choice.name: scores.total(choice) for choice in space.choices}, choices)


def draw_scores(values: Mapping[str, Sequence[float]], choices: Mapping[str, Mapping[str, Any]]) -> Picture:
    """As `scores_picture`, from a report's `scores.values` and `choices`."""
    shown = {name: c for name, c in choices.items() if len(c["options"]) > 1 and len(values.get(name, ())) > 1}
    kinds = list(dict.fromkeys([*KINDS, *(c["kind"] for c in shown.values())]))
    panels = [[name for name, c in shown.items() if c["kind"] == kind] for kind in kinds]
    kinds = [kind for kind, names in zip(kinds, panels, strict=True) if names]
    panels = [names for names in panels if names]
    losses = {name: np.asarray(values[name], dtype=float) - max(values[name]) for name in shown}
    worst = max((float(-loss.min()) for loss in losses.values()), default=0.0)
    exponent = math.floor(math.log10(worst)) if worst > 0 else 0
    pitch, top, label, gap = 0.215, 0.78, 1.62, 0.22
    boxes = [0.45 if len({tuple(shown[name]["options"]) for name in names}) == 1 else 0.74 for names in panels]
    widths = [
        label + box * max(len(shown[name]["options"]) for name in names) + gap
        for box, names in zip(boxes, panels, strict=True)
    ]
    width = max(sum(widths) + 0.1, 6.2)
    height = top + pitch * max((len(names) for names in panels), default=1) + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    unit = "" if exponent == 0 else f", in units of {10.0**exponent:g}"
    what = f"Score lost against the best option of the row{unit}; framed: chosen"
    axes.text(0.1, 0.2, what, size=9.5, color=INK, va="center")
    start = 0.0
    for kind, names, box, panel_width in zip(kinds, panels, boxes, widths, strict=True):
        _draw_scores_panel(axes, kind, names, shown, losses, start, top, (pitch, box, label), worst, exponent)
        start += panel_width
    return Picture(figure, f"Scores of the options of {len(shown)} choices")


def _draw_scores_panel(
    axes: Axes,
    kind: str,
    names: Sequence[str],
    choices: Mapping[str, Mapping[str, Any]],
    losses: Mapping[str, Any],
    start: float,
    top: float,
    sizes: tuple[float, float, float],
    worst: float,
    exponent: int,
) -> None:
    pitch, box, label = sizes
    common = {tuple(choices[name]["options"]) for name in names}
    axes.text(start + label, top - 0.33, KINDS.get(kind, kind), size=9.5, color=INK, va="center", weight="bold")
    if len(common) == 1:
        for column, option in enumerate(next(iter(common))):
            x = start + label + (column + 0.5) * box
            axes.text(x, top - 0.11, str(option), size=8.5, color=MUTED, ha="center", va="center")
    for row, name in enumerate(names):
        y = top + row * pitch
        axes.text(
            start + label - 0.07, y + pitch / 2, literal(shorten(place(name), 21)), size=8.5, color=INK, ha="right",
            va="center_baseline",
        )  # fmt: skip
        for column, (option, loss) in enumerate(zip(choices[name]["options"], losses[name], strict=True)):
            x = start + label + column * box
            colour = to_hex(_LOSS(math.sqrt(-loss / worst) if worst else 0.0))
            axes.add_patch(Rectangle((x + 0.015, y + 0.015), box - 0.03, pitch - 0.03, facecolor=colour, lw=0))
            number = "0" if loss == 0 else f"{-loss / 10.0**exponent:.2f}"
            text = number if len(common) == 1 else f"{option}: {number}"
            axes.text(
                x + box / 2, y + pitch / 2, text, size=7.5, color=contrast(colour), ha="center", va="center_baseline"
            )
        if choices[name].get("chosen") in tuple(choices[name]["options"]):
            column = list(choices[name]["options"]).index(choices[name]["chosen"])
            frame = (start + label + column * box + 0.022, y + 0.022)
            size = (box - 0.044, pitch - 0.044)
            axes.add_patch(Rectangle(frame, *size, fill=False, edgecolor=_CHOSEN, linewidth=2.0, zorder=3))


def training_picture(
    history: Sequence[Mapping[str, float]], budgets: Mapping[str, float] | None = None, unit: str = "Epoch"
) -> Picture:
    """Losses, accuracies and costs over epochs; panels without a curve are left out.

    Args:
        history: a record per epoch, or other unit: `epoch` (else counted from 1), losses (their names contain "loss"),
            accuracies in per cent (contain "accuracy"), and costs: `<name>_over_budget`, or `cost/<name>` in the unit of
            `budgets`.
        budgets: what `cost/<name>` is divided by.
        unit: that of the horizontal axis.
    """
    budgets = budgets or {}
    epochs = [float(record.get("epoch", index + 1)) for index, record in enumerate(history)]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {"Loss": {}, "Accuracy, %": {}, "Cost / budget": {}}
    for epoch, record in zip(epochs, history, strict=True):
        for key, value in record.items():
            found = _curve(key, value, budgets)
            if found is not None and found[2] is not None and math.isfinite(found[2]):
                panels[found[0]].setdefault(found[1], []).append((epoch, found[2]))
    shown = {label: curves for label, curves in panels.items() if curves}
    width, top, bottom, each, gap = 8.6, 0.15, 0.6, 1.85, 0.18
    total = top + bottom + each * max(len(shown), 1) + gap * max(len(shown) - 1, 0)
    figure = Figure(figsize=(width, total))
    colours = [style[1] for method, style in STYLES.items() if method != "float"] + [colour for colour, _ in OTHERS]
    for index, (label, curves) in enumerate(shown.items()):
        y, last = total - top - (index + 1) * each - index * gap, index == len(shown) - 1
        axes = figure.add_axes((0.85 / width, y / total, 5.6 / width, each / total))
        dress(axes)
        for number, (name, pairs) in enumerate(curves.items()):
            xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
            axes.plot(xs, ys, color=colours[number % len(colours)], lw=1.6, marker="o", ms=2.5, label=literal(name))
        if label == "Cost / budget":
            axes.axhline(1.0, color=INK, lw=1.0, dashes=(4, 3), label="budget")
        everything = [value for pairs in curves.values() for _, value in pairs]
        if label != "Accuracy, %" and min(everything) > 0 and max(everything) / min(everything) > LOG_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=8))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.tick_params(labelbottom=last)
        axes.set_ylabel(label, size=9.5, color=INK)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9, labelcolor=INK)
        if last:
            axes.set_xlabel(unit, size=10, color=INK)
    return Picture(figure, "Training: " + ", ".join(shown))


def _curve(key: str, value: Any, budgets: Mapping[str, float]) -> tuple[str, str, float | None] | None:
    """Panel, name and value of a number of a training's history; None if it is not shown."""
    number = None if value is None else float(value)
    if key.endswith("_over_budget"):
        return "Cost / budget", key.removesuffix("_over_budget").replace("_", " "), number
    if key.startswith("cost/"):
        name = key.removeprefix("cost/")
        if name not in budgets:
            return None
        return "Cost / budget", cost_label(name), None if number is None else number / budgets[name]
    for label, word in (("Loss", "loss"), ("Accuracy, %", "accuracy")):
        if word in key:
            return label, key.replace("_", " ").replace("/", " "), number
    return None


def dress(axes: Axes) -> None:
    """Quiet axes: no frame above and on the right, a faint grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK, labelsize=9)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def short(value: float) -> str:
    """A large number in three significant digits: 40.0 M."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
