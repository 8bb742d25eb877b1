"""The picture of overhead.json: time and memory against the number of candidates, and time against depth."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#718096"
DEPTHS = {"resnet8": 8, "resnet20": 20, "resnet56": 56, "resnet110": 110}


def plot(content: dict[str, Any], path: Path) -> None:
    """Draws three panels and writes them as PNG."""
    times = content["networks"].get("resnet8") or next(iter(content["networks"].values()))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for suffix, colour, label in (("", BLUE, "eager"), (", compiled", ORANGE, "compiled")):
        found = {k: times[f"growth {k}{suffix}"] for k in (1, 2, 3, 5, 8) if f"growth {k}{suffix}" in times}
        if found:
            left.plot(
                list(found), [v["ratio"] for v in found.values()], "o-", color=colour, label=f"dnas search, {label}"
            )
        peaks = {k: v["peak_mb"] for k, v in found.items() if "peak_mb" in v}
        if peaks:
            middle.plot(list(peaks), list(peaks.values()), "o-", color=colour, label=f"dnas search, {label}")
    for axis, key in ((left, "ratio"), (middle, "peak_mb")):
        for name, style in (("Brevitas W4A4", "--"), ("float", ":")):
            found = times.get(name.replace("B", "b"), {})
            if key in found:
                axis.axhline(found[key], color=GREY, linestyle=style, linewidth=1, label=f"{name}, eager")
        axis.set_xlabel("candidates for weights and for activations, each")
        axis.set_xticks([1, 2, 3, 5, 8])
        axis.set_ylim(0, axis.get_ylim()[1] * 1.1)
    left.set_title("ResNet-8, time of a step")
    left.set_ylabel("eager float steps, default layout")
    left.legend(frameon=False, loc="lower left", fontsize=8)
    middle.set_title("ResNet-8, peak memory of the process")
    middle.set_ylabel("MB")
    middle.legend(frameon=False, loc="lower left", fontsize=8)
    found = {DEPTHS[name]: value["search"]["ratio"] for name, value in content.get("depth", {}).items()}
    right.plot(list(found), list(found.values()), "o-", color=BLUE)
    right.set_xscale("log")
    right.set_xticks(list(found), [str(depth) for depth in found])
    right.minorticks_off()
    right.set_xlabel("layers of the ResNet")
    right.set_ylabel("eager float steps, same layout")
    right.set_ylim(0, right.get_ylim()[1] * 1.3)
    right.set_title("search step over float step, by depth")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e2e8f0")
        axis.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
