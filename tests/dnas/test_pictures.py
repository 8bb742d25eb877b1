import html
import math
import re

import numpy as np
import pytest

from dnas.pictures import BIT_COLOURS, LayerRow, architecture_picture, contrast, layers_picture, shorten
from dnas.report.plots import Panel, Point, draw_scores, pareto_picture, scores_picture, training_picture
from dnas.search.scores import Scores
from dnas.space.architecture import Architecture
from dnas.space.choice import ChannelMap, Choice, Group, Layer, Space


def texts_of(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def space_of(count: int) -> Space:
    full = ChannelMap((0,) * 16, tuple(range(16)))
    layers = tuple(
        Layer(f"features.{i}.block.conv", "Conv2d", 64, 9, 1, False, full, full, f"l{i}.weight_bits", f"l{i}.act_bits")
        for i in range(count)
    )
    bits = [Choice(f"l{i}.{kind}", kind, (2, 4, 8)) for i in range(count) for kind in ("weight_bits", "act_bits")]
    return Space((Choice("g.filters", "filters", (8, 16)), *bits), (Group("g.filters", 16, ("l0",)),), layers, (), {})


def architecture_of(count: int) -> Architecture:
    space = space_of(count)
    return Architecture(space, {c.name: c.options[i % len(c.options)] for i, c in enumerate(space.choices)})


@pytest.mark.parametrize("count", [5, 60])
def test_architecture_picture_shows_every_layer(count: int) -> None:
    picture = architecture_picture(architecture_of(count))
    text = picture.svg()
    assert [t for t in texts_of(text) if t.startswith("features.")] == [
        f"features.{i}.block.conv" for i in range(count)
    ]
    assert text.startswith("<svg")
    assert text.endswith("</svg>")
    assert picture.svg() == text
    height, width, _ = picture.pixels(100).shape
    assert width == 900
    assert height >= count * 22  # a row stays as high as its text
    assert picture.png().startswith(b"\x89PNG")


def test_layers_picture_of_long_names_and_of_no_layer() -> None:
    assert "a$b_1$.c" in texts_of(layers_picture([LayerRow("a$b_1$.c", {3: 1}, {4: 1}, 5, 16)]).svg())
    name = "backbone." * 12 + "conv1"
    texts = texts_of(layers_picture([LayerRow(name, {2: 3, 4: 2}, {4: 1}, 5, 16)]).svg())
    assert any(t.startswith("…") and t.endswith("backbone.conv1") for t in texts)
    assert layers_picture([]).png()
    assert [shorten(n, 8) for n in ("short", "a.long.name", "abcdefghijkl")] == ["short", "…name", "…fghijkl"]


def test_bit_colours_are_ordered_and_carry_legible_digits() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    values = [luminance(BIT_COLOURS[bits]) for bits in sorted(BIT_COLOURS)]
    assert values == sorted(values, reverse=True)
    for colour in BIT_COLOURS.values():
        light, dark = sorted((luminance(colour), luminance(contrast(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_scores_picture_prints_losses_against_the_best_option() -> None:
    space = space_of(2)
    values = {c.name: tuple(-0.01 * (len(c.options) - 1 - i) for i in range(len(c.options))) for c in space.choices}
    architecture = architecture_of(2)
    texts = texts_of(scores_picture(Scores(values, "measured"), space, architecture).svg())
    assert "Weight bits" in texts
    assert {"0", "1.00", "2.00"} <= set(texts)
    assert "-0.00" not in texts
    assert any("in units of 0.01" in t for t in texts)
    assert draw_scores({}, {}).png()
    equal = {"x.filters": {"kind": "filters", "options": [1, 2], "chosen": 1}}
    assert draw_scores({"x.filters": [0.0, 0.0]}, equal).png()


def test_all_methods_of_the_benchmarks_look_different() -> None:
    """Those of the widest picture: our three, and searches, estimators and sensitivities."""
    names = ("ours", "uniform", "random", "BINAS", "greedy", "Gumbel", "score function", "sensitivities")
    picture = pareto_picture([Panel("net", [Point(name, 0.05, 90.0) for name in names])])
    handles = picture.figure.axes[0].get_legend_handles_labels()[0]
    assert len({(line.get_color(), line.get_marker()) for line in handles}) == len(names)


def test_pareto_picture_names_methods_seeds_budgets_and_float() -> None:
    points = [Point("ours", 0.04, 96.0, 0.3, 3), Point("ours", 0.9, 97.0, 0.3, 2), Point("odd", 0.5, 90.0)]
    panel = Panel("net", points, budgets=(0.05,), float_accuracy=97.5, connect=True)
    texts = texts_of(pareto_picture([panel, Panel("empty", [])]).svg())
    assert {"Ours (n = 2 to 3)", "odd", "Float: 97.50 %", "≤ 5 %", "net"} <= set(texts)
    moved = "BOPs, % of the 8-bit network at full width; methods stand side by side"
    assert moved in texts
    assert moved not in texts_of(pareto_picture([Panel("net", points, budgets=(0.05,))]).svg())
    hollow = Panel("net", [Point("uniform", 5e6, 96.0, within_budget=False)], "macs", False, (4e6,))
    texts = texts_of(pareto_picture([hollow]).svg())
    assert {"Hollow: over the budget", "≤ 4 M", "MACs"} <= set(texts)


def test_one_epoch_is_not_cut_into_fractions() -> None:
    texts = texts_of(training_picture([{"accuracy": 80.0}]).svg())
    assert "1" in texts
    assert not {"0.6", "0.8", "1.0", "1.2"} & set(texts)


def test_training_picture_has_a_panel_for_what_there_is() -> None:
    history = [{"loss": 1.0 / e, "accuracy": 90.0 + e, "cost/bops": 0.1, "seconds": 1.0} for e in range(1, 5)]
    texts = texts_of(training_picture(history, {"bops": 0.05}).svg())
    assert {"Loss", "Accuracy, %", "Cost / budget", "budget", "BOPs"} <= set(texts)
    assert "Cost / budget" not in texts_of(training_picture(history).svg())
    assert training_picture([{"loss": math.nan}]).png()
    assert training_picture([]).png()
