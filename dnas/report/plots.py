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

from dnas.pictures import GRID, INK, KINDS, MUTED, PAPER, Picture, contrast, place, shorten
from dnas.search.scores import Scores
from dnas.space.architecture import Architecture
from dnas.space.choice import Space

STYLES: Mapping[str, tuple[str, str, str]] = {
    "ours": ("Ours", "#0072b2", "o"),
    "uniform": ("Uniform", "#e69f00", "s"),
    "random": ("Random at equal cost", "#009e73", "^"),
    "float": ("Float", MUTED, "D"),
}
"""Label, colour (Okabe and Ito, told apart by every kind of colour vision) and marker of each method."""
OTHERS = (("#cc79a7", "v"), ("#56b4e9", "P"), ("#d55e00", "X"))
LOG_RATIO = 8.0
"""From this ratio of the largest to the smallest cost the cost axis is logarithmic."""
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
    return {"bops": "BOPs", "macs": "MACs", "weight_bits": "weight bits"}.get(cost, cost.replace("_", " "))


def pareto_picture(panels: Sequence[Panel]) -> Picture:
    """Test accuracy against cost, a panel per network: spread over seeds as bars, budgets as dashed vertical lines."""
    height, top, bottom, left, right = 3.5, 0.4, 0.95, 0.85, 0.3
    width, total = 8.6, (height + top + bottom) * max(len(panels), 1)
    figure = Figure(figsize=(width, total))
    for index, panel in enumerate(panels):
        y = total - (index + 1) * (height + top + bottom) + bottom
        axes = figure.add_axes((left / width, y / total, (width - left - right) / width, height / total))
        _draw_panel(axes, panel)
    return Picture(figure, "Test accuracy against cost: " + ", ".join(panel.title for panel in panels))


def _draw_panel(axes: Axes, panel: Panel) -> None:
    _dress(axes)
    scale = 100.0 if panel.relative else 1.0
    others = sorted({point.method for point in panel.points} - set(STYLES))
    for method in dict.fromkeys([*STYLES, *others]):
        points = sorted((p for p in panel.points if p.method == method), key=lambda p: p.cost)
        if not points:
            continue
        colour, marker = STYLES[method][1:] if method in STYLES else OTHERS[others.index(method) % len(OTHERS)]
        if panel.connect and len(points) > 1:
            axes.plot([scale * p.cost for p in points], [p.accuracy for p in points], color=colour, lw=1.2, zorder=2)
        for point in points:
            axes.errorbar(
                scale * point.cost, point.accuracy, yerr=point.accuracy_sd or None, fmt=marker, color=colour,
                markersize=8, capsize=4, elinewidth=1.4, markeredgewidth=1.6, zorder=4 if method == "ours" else 3,
                markerfacecolor=colour if point.within_budget else PAPER, markeredgecolor=colour,
            )  # fmt: skip
        axes.plot([], [], marker, color=colour, markersize=8, label=f"{method_label(method)}{_seeds(points)}")
    if any(not point.within_budget for point in panel.points):
        axes.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, markersize=8, label="Hollow: over the budget")
    if panel.float_accuracy is not None:
        axes.axhline(panel.float_accuracy, color=MUTED, lw=1.1, zorder=1, label=f"Float: {panel.float_accuracy:.2f} %")
    costs = [scale * value for value in (*(p.cost for p in panel.points), *panel.budgets) if value > 0]
    if costs and max(costs) / min(costs) >= LOG_RATIO:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
        few = max(costs) / min(costs) < 300
        axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if few else (1.0,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif costs:
        margin = 0.12 * (max(costs) - min(costs) or max(costs))
        axes.set_xlim(max(0.0, min(costs) - margin), max(costs) + margin)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}" if panel.relative else short(value)))
    axes.margins(y=0.12)
    for budget in sorted(set(panel.budgets)):
        axes.axvline(scale * budget, color=INK, lw=1.0, dashes=(4, 3), zorder=1)
        text = f"budget {scale * budget:.4g} %" if panel.relative else f"budget {short(budget)}"
        axes.annotate(
            text, (scale * budget, 0), xycoords=("data", "axes fraction"), xytext=(-4, 5), textcoords="offset points",
            rotation=90, ha="right", va="bottom", size=8.5, color=MUTED,
        )  # fmt: skip
    name = cost_label(panel.cost)
    axes.set_xlabel(f"{name}, % of the 8-bit network at full width" if panel.relative else name, size=10, color=INK)
    axes.set_ylabel("Test accuracy, %", size=10, color=INK)
    axes.set_title(panel.title, size=10.5, color=INK, loc="left", pad=8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.155), ncols=4, frameon=False, fontsize=9, labelcolor=INK,
            handletextpad=0.4, columnspacing=1.4,
        )  # fmt: skip


def _seeds(points: Sequence[Point]) -> str:
    low, high = min(p.n for p in points), max(p.n for p in points)
    return "" if high == 1 else f" (n = {low})" if low == high else f" (n = {low} to {high})"


def scores_picture(scores: Scores, space: Space, architecture: Architecture) -> Picture:
    """What every option of every searched choice loses against the best one; the chosen ones are framed."""
    choices = {
        choice.name: {"kind": choice.kind, "options": choice.options, "chosen": architecture[choice.name]}
        for choice in space.choices
    }
    return draw_scores(scores.values, choices)


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
    pitch, top, box, label, gap = 0.215, 0.78, 0.45, 1.62, 0.22
    widths = [label + box * max(len(shown[name]["options"]) for name in names) + gap for names in panels]
    width = max(sum(widths) + 0.1, 6.2)
    height = top + pitch * max((len(names) for names in panels), default=1) + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    unit = "" if exponent == 0 else f" in units of {10.0**exponent:g}"
    what = f"Score lost against the best option of the row,{unit or ' as scored'}; framed: chosen"
    axes.text(0.1, 0.2, what.replace(",  ", ", "), size=9.5, color=INK, va="center")
    start = 0.0
    for kind, names, panel_width in zip(kinds, panels, widths, strict=True):
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
            start + label - 0.07, y + pitch / 2, shorten(place(name), 21), size=8.5, color=INK, ha="right",
            va="center_baseline",
        )  # fmt: skip
        for column, (option, loss) in enumerate(zip(choices[name]["options"], losses[name], strict=True)):
            x = start + label + column * box
            colour = to_hex(_LOSS(math.sqrt(-loss / worst) if worst else 0.0))
            axes.add_patch(Rectangle((x + 0.015, y + 0.015), box - 0.03, pitch - 0.03, facecolor=colour, lw=0))
            number = "0" if loss == 0 else f"{-loss / 10.0**exponent:.2f}"
            text = number if len(common) == 1 else f"{option}: {-loss / 10.0**exponent:.1f}"
            axes.text(
                x + box / 2, y + pitch / 2, text, size=7.5 if len(common) == 1 else 6.8, color=contrast(colour),
                ha="center", va="center_baseline",
            )  # fmt: skip
        if choices[name].get("chosen") in tuple(choices[name]["options"]):
            column = list(choices[name]["options"]).index(choices[name]["chosen"])
            frame = (start + label + column * box + 0.01, y + 0.01)
            axes.add_patch(
                Rectangle(frame, box - 0.02, pitch - 0.02, fill=False, edgecolor=INK, linewidth=1.8, zorder=3)
            )


def training_picture(history: Sequence[Mapping[str, float]], budgets: Mapping[str, float] | None = None) -> Picture:
    """Losses, accuracies and costs over epochs; empty panels are left out.

    Args:
        history: a record per epoch: `epoch` (else counted), and any of `loss/...`, `accuracy/...` (per cent) and
            `cost/<name>` (as a share of the 8-bit network's, like `budgets`).
        budgets: by cost name; drawn as dashed lines.
    """
    epochs = [float(record.get("epoch", index)) for index, record in enumerate(history)]
    found = list(dict.fromkeys(key for record in history for key in record))
    panels = [(label, head, [key for key in found if key.startswith(head)]) for label, head in _PANELS]
    panels = [panel for panel in panels if panel[2]]
    width, top, bottom, each, gap = 8.6, 0.15, 0.6, 1.85, 0.18
    total = top + bottom + each * max(len(panels), 1) + gap * max(len(panels) - 1, 0)
    figure = Figure(figsize=(width, total))
    colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]
    for index, (label, head, keys) in enumerate(panels):
        y = total - top - (index + 1) * each - index * gap
        axes = figure.add_axes((0.85 / width, y / total, 5.9 / width, each / total))
        _dress(axes)
        everything = []
        for key, colour in zip(keys, colours * len(keys), strict=False):
            pairs = [(e, float(r[key])) for e, r in zip(epochs, history, strict=True) if r.get(key) is not None]
            everything += [value for _, value in pairs]
            axes.plot(*zip(*pairs, strict=True), color=colour, lw=1.6, marker="o", ms=2.5, label=key[len(head) :])
        for name, budget in (budgets or {}).items() if head == "cost/" else ():
            if f"cost/{name}" in keys:
                axes.axhline(budget, color=INK, lw=1.0, dashes=(4, 3), label=f"budget {cost_label(name)}")
                everything.append(budget)
        if head != "accuracy/" and min(everything) > 0 and max(everything) / min(everything) > LOG_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=8))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=index == len(panels) - 1)
        axes.set_ylabel(label, size=9.5, color=INK)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9, labelcolor=INK)
        if index == len(panels) - 1:
            axes.set_xlabel("Epoch", size=10, color=INK)
    return Picture(figure, "Training: " + ", ".join(label for label, _, _ in panels))


_PANELS = (("Loss", "loss/"), ("Accuracy, %", "accuracy/"), ("Cost, share of 8 bits", "cost/"))


def _dress(axes: Axes) -> None:
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
