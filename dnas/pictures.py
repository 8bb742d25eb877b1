"""Pictures of networks and of how choices developed: drawn with Agg and SVG, without a display or global state."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dnas.space.architecture import Architecture
from dnas.space.cost import kept_channels, layer_cost
from dnas.space.slicing import kept_channels as kept_indices

INK, MUTED, GRID, PAPER = "#1b1d21", "#636a75", "#d6dae0", "#fefefe"
"""The colours that follow the page's light or dark scheme when a picture stands in HTML (as --ink, --muted, ...)."""
SCHEME = {"--ink": INK, "--muted": MUTED, "--grid": GRID, "--paper": PAPER}
BIT_COLOURS: Mapping[int, str] = {
    2: "#dfe318", 3: "#95d840", 4: "#44bf70", 5: "#1f9f88", 6: "#287d8e", 7: "#375a8c", 8: "#5b3f9e",
}  # fmt: skip
"""One colour per width in every picture: viridis, whose lightness orders the widths for every kind of colour vision."""
OTHER_BITS = "#868d98"
KINDS: Mapping[str, str] = {
    "weight_bits": "Weight bits",
    "act_bits": "Activation bits",
    "filters": "Filters kept",
    "pair_bits": "Weight and activation bits",
    "kernel": "Kernel side",
    "depth": "Blocks of a stage",
    "branch": "Optional branch",
}
_PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#f4f6fa", "#a9c6e3", "#3d7dbd", "#0b2f5e"])


@dataclass(frozen=True)
class Picture:
    """A drawn figure, and what it shows in a sentence (for those who cannot see it)."""

    figure: Figure
    title: str

    def png(self, dpi: int = 120) -> bytes:
        """As PNG, on a light background."""
        buffer = io.BytesIO()
        FigureCanvasAgg(self.figure)
        self.figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER, metadata={"Software": None})
        return buffer.getvalue()

    def pixels(self, dpi: int = 110) -> NDArray[np.uint8]:
        """Shape (height, width, 3), on a light background."""
        self.figure.set_dpi(dpi)
        self.figure.set_facecolor(PAPER)
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()

    def svg(self, salt: str = "dnas") -> str:
        """An `<svg>` element with text as text, that follows the page's colour scheme; see `SCHEME`.

        Args:
            salt: keeps the identifiers of several pictures in one page apart.
        """
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        text = buffer.getvalue()
        text = text[text.index("<svg") :].strip()
        text = re.sub(r'<g id="[^"]*"', "<g", text)  # never referred to, and not unique in a page
        for name, colour in SCHEME.items():
            text = text.replace(colour, f"var({name}, {colour})")
        label = self.title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


@dataclass(frozen=True)
class LayerRow:
    """What `layers_picture` shows of one layer.

    weight_bits, act_bits: how many of the filters and input channels that stay have each width. cost: the layer's share
    (0 to 1) of the whole network's BOPs.
    """

    name: str
    weight_bits: Mapping[int, int]
    act_bits: Mapping[int, int]
    kept: int
    full: int
    cost: float | None = None


def counted(bits: int | Sequence[int]) -> dict[int, int]:
    """How many have each width, ascending: of a report's one width (then 1), or of a width for each."""
    found = Counter([bits] if isinstance(bits, int) else bits)
    return {width: found[width] for width in sorted(found)}


def mean_width(counts: Mapping[int, int]) -> str:
    """The width, or the mean of several with a decimal."""
    total = sum(counts.values())
    mean = sum(width * count for width, count in counts.items()) / max(total, 1)
    return str(next(iter(counts))) if len(counts) == 1 else f"{mean:.1f}"


def layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[LayerRow]:
    """The rows of a report's `layers`."""
    total = sum(float(layer.get("bops") or 0) for layer in layers)
    return [
        LayerRow(
            str(layer["name"]), counted(layer["weight_bits"]), counted(layer["act_bits"]), int(layer["out"]),
            int(layer["out_full"]), float(layer["bops"]) / total if total and layer.get("bops") is not None else None,
        )
        for layer in layers
    ]  # fmt: skip


def architecture_picture(architecture: Architecture) -> Picture:
    """Every layer in execution order: bits of weights and input activations, filters kept, share of the BOPs."""
    space, positions = architecture.space, architecture.positions()
    kept = {
        index: set(architecture.kept[group.choice])
        for index, group in enumerate(space.groups)
        if architecture.kept and group.choice in architecture.kept
    }
    layers = []
    for layer in space.layers:
        weights, acts = architecture.weight_bits(layer), architecture.act_bits(layer)
        if not space.runs(layer.name, positions):
            layers.append({
                "name": layer.name, "weight_bits": [], "act_bits": [], "out": 0, "out_full": len(layer.outputs), "bops": 0.0,
            })  # fmt: skip
            continue
        side = (
            f" {architecture[layer.kernel_choice]}x{architecture[layer.kernel_choice]}" if layer.kernel_choice else ""
        )
        layers.append({
            "name": layer.name + side, "weight_bits": [weights[i] for i in kept_indices(layer.outputs, kept)],
            "act_bits": [acts[i] for i in kept_indices(layer.inputs, kept)],
            "out": kept_channels(space, layer.outputs, positions), "out_full": len(layer.outputs),
            "bops": layer_cost(space, layer, "bops", positions),
        })  # fmt: skip
    return layers_picture(layer_rows(layers))


def layers_picture(rows: Sequence[LayerRow]) -> Picture:
    """As `architecture_picture`, from rows."""
    count, pitch, top, bottom, width = len(rows), 0.235, 0.66, 0.12, 9.0
    height = top + bottom + pitch * max(count, 1)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, bottom / height, 1.0, pitch * max(count, 1) / height))
    axes.set_xlim(0, width)
    axes.set_ylim(max(count, 1), 0)
    axes.set_axis_off()
    names, weights, acts, bar, share = 2.62, 2.72, 3.22, 3.80, 6.95
    bar_width, share_width, limit = 2.15, 1.40, 34
    largest = max((row.cost for row in rows if row.cost is not None), default=0.0)
    for index, row in enumerate(rows):
        middle = index + 0.5
        if index % 2:
            axes.axhspan(index, index + 1, facecolor=GRID, alpha=0.35, linewidth=0)
        _text(axes, names, middle, literal(shorten(row.name, limit)), "right")
        if not row.weight_bits:
            _text(axes, bar, middle, "left out", "left")
            continue
        for x, counts in ((weights, row.weight_bits), (acts, row.act_bits)):
            colour, text = bit_colour(_nearest(counts)), mean_width(counts)
            axes.add_patch(_box(x, index + 0.08, 0.42, 0.84, colour))
            _text(axes, x + 0.21, middle, text, "center", contrast(colour), 9, "bold")
        axes.add_patch(_box(bar, index + 0.16, bar_width, 0.68, GRID))
        start, kept = bar, bar_width * row.kept / max(row.full, 1)
        for bits, count in row.weight_bits.items():
            length = kept * count / sum(row.weight_bits.values())
            axes.add_patch(_box(start, index + 0.16, length, 0.68, bit_colour(bits)))
            start += length
        _text(axes, bar + bar_width + 0.08, middle, f"{row.kept} / {row.full}", "left")
        if row.cost is not None:
            length = share_width * row.cost / largest if largest else 0.0
            axes.add_patch(_box(share, index + 0.16, length, 0.68, MUTED))
            _text(axes, share + length + 0.06, middle, percent(row.cost), "left")
    transform = figure.dpi_scale_trans
    head = height - top + 0.06
    for x, label, align in (
        (names, "Layer", "right"), (weights + 0.21, "W", "center"), (acts + 0.21, "A", "center"),
        (bar, "Filters kept of all (colour: weight bits)", "left"),
        (share, "Share of BOPs" if largest else "", "left"),
    ):  # fmt: skip
        figure.text(x, head, label, transform=transform, ha=align, va="bottom", size=9, color=MUTED)
    figure.text(0.1, height - 0.16, "Bits", transform=transform, ha="left", va="center", size=9, color=MUTED)
    used = sorted({bits for row in rows for counts in (row.weight_bits, row.act_bits) for bits in counts})
    for index, bits in enumerate(used):
        x, colour = 0.5 + index * 0.46, bit_colour(bits)
        figure.add_artist(_box(x, height - 0.26, 0.4, 0.2, colour, transform=transform))
        figure.text(
            x + 0.2, height - 0.165, str(bits), transform=transform, ha="center", va="center", size=9,
            color=contrast(colour), weight="bold",
        )  # fmt: skip
    figure.text(
        width - 0.1, height - 0.16, "W: weights   A: the layer's input activations", transform=transform,
        ha="right", va="center", size=9, color=MUTED,
    )  # fmt: skip
    return Picture(figure, f"{count} layers: weight bits, activation bits and filters kept")


def heat_map_picture(
    kind: str,
    steps: Sequence[int],
    history: Mapping[str, tuple[Sequence[int], Sequence[Sequence[float]]]],
) -> Picture:
    """How the probabilities of every choice of one kind developed: a small heat map per choice, one band per option.

    Args:
        kind: of the choices.
        steps: ascending, the times (epochs) of the columns.
        history: for every choice its options, and at every step the probability of each.
    """
    names = list(history)
    most = max((len(options) for options, _ in history.values()), default=1)
    columns = max(1, min(4, len(names), round(len(names) ** 0.5)))
    rows = max(1, -(-len(names) // columns))
    band, margin, gap, head, top, bottom = 0.165, 0.45, 0.12, 0.3, 0.62, 0.3
    cell_w, cell_h = 2.4, head + band * most
    width, height = max(cell_w * columns + gap, 5.4), top + bottom + cell_h * rows
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # one for all panels, in inches: axes of their own would be slow
    axes.set_axis_off()
    edges = _edges(steps)
    span = (edges - edges[0]) / (edges[-1] - edges[0]) * (cell_w - margin)
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        options, values = history[name]
        left, upper = column * cell_w + margin, height - top - row * cell_h - head
        table = np.asarray(values, dtype=float).reshape(len(steps), len(options)).T
        lower = upper - band * len(options)
        ys = lower + band * np.arange(len(options) + 1)
        axes.pcolormesh(left + span, ys, table, cmap=_PROBABILITY, vmin=0.0, vmax=1.0)
        axes.add_patch(_box(left, lower, span[-1], ys[-1] - lower, "none", edge=GRID))
        _text(axes, left, upper + 0.1, literal(shorten(place(name), 26)), "left", INK, 9)
        favourite = int(table[:, -1].argmax())
        for position, option in enumerate(options):
            colour, weight = (INK, "bold") if position == favourite else (MUTED, "normal")
            _text(axes, left - 0.06, lower + band * (position + 0.5), str(option), "right", colour, 8, weight)
        if index + columns >= len(names):
            for x, label, align in (
                (0.0, steps[0], "left"),
                (0.5, "epoch or round", "center"),
                (1.0, steps[-1], "right"),
            ):
                _text(axes, left + x * span[-1], lower - 0.12, str(label), align, MUTED, 8)  # type: ignore[arg-type]
    title = f"{KINDS.get(kind, kind)}: probability of each option"
    _text(axes, gap, height - 0.2, f"{title} (bold: the most probable at the end)", "left", INK, 10)
    scale = np.linspace(0, 1, 65)
    axes.pcolormesh(gap + 0.2 + scale, [height - 0.47, height - 0.36], scale[None, :-1], cmap=_PROBABILITY)
    for x, label in ((gap, "0"), (gap + 1.28, "1")):
        _text(axes, x, height - 0.415, label, "left", MUTED, 8)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return Picture(figure, f"{title}; {len(names)} choices, epochs or rounds {steps[0]} to {steps[-1]}")


def _nearest(counts: Mapping[int, int]) -> int:
    """The whole width nearest to the mean."""
    return round(sum(width * count for width, count in counts.items()) / max(sum(counts.values()), 1))


def bit_colour(bits: int) -> str:
    """The colour of a width."""
    return BIT_COLOURS.get(bits, OTHER_BITS)


def contrast(colour: str) -> str:
    """Black or white, whichever reads better on a colour."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def shorten(name: str, length: int) -> str:
    """A name of at most `length` characters, cut on the left, at a dot where one is near."""
    if len(name) <= length:
        return name
    tail = name[-(length - 1) :]
    dot = tail.find(".")
    return "…" + (tail[dot + 1 :] if 0 <= dot < length // 2 else tail)


def literal(text: str) -> str:
    """Text that is drawn as it is: a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def place(choice: str) -> str:
    """The module path of a choice's name: without its kind."""
    head, _, tail = choice.rpartition(".")
    return head if tail in KINDS else choice


def percent(share: float) -> str:
    """A share as per cent."""
    value = 100 * share
    if 0 < value < 0.005:
        return "< 0.01 %"
    return f"{value:.{0 if value >= 99.95 or value == 0 else 1 if value >= 10 else 2}f} %"


def _edges(steps: Sequence[int]) -> NDArray[np.float64]:
    """Borders of the columns: half way between steps."""
    found = np.asarray(steps, dtype=float)
    if len(found) < 2:
        return np.array([found[0] - 0.5, found[0] + 0.5])
    middle = (found[1:] + found[:-1]) / 2
    return np.concatenate([[found[0] - (middle[0] - found[0])], middle, [found[-1] + (found[-1] - middle[-1])]])


def _box(x: float, y: float, width: float, height: float, colour: str, edge: str = "none", **more: Any) -> Rectangle:
    return Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, linewidth=0.8 * (edge != "none"), **more)


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    align: Literal["left", "center", "right"],
    colour: str = INK,
    size: float = 9,
    weight: str = "normal",
) -> None:
    axes.text(float(x), float(y), text, ha=align, va="center_baseline", color=colour, size=size, weight=weight)
