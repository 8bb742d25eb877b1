"""Tables of what runs: coverage, conversion, time, memory, latency and solvers."""

from typing import Any

from table_cells import head, tau

OVERHEAD = {
    "float": "float, eager",
    "float, channels last": "float, eager, channels last",
    "float, compiled": "float, compiled",
    "by hand W4A4": "LSQ by hand W4A4, eager",
    "by hand W4A4, compiled": "LSQ by hand W4A4, compiled",
    "brevitas W4A4": "Brevitas W4A4",
    "brevitas W4A4, channels last": "Brevitas W4A4, channels last",
    "brevitas W4A4, collecting": "Brevitas W4A4, its first 300 steps",
    "by hand, mixture of 3x3": "mixture by hand, {2,4,8} x {2,4,8}",
    "by hand, one convolution per pair of 3x3": "one convolution per pair, {2,4,8} x {2,4,8}",
    "hgq2": "HGQ2 (Keras on torch)",
    "dnas fixed W4A4": "**dnas** fixed W4A4, eager",
    "dnas fixed W4A4, compiled": "**dnas** fixed W4A4, compiled",
    "dnas search": "**dnas** search, {2,4,8} x {2,4,8} x 4 filter counts, eager",
    "dnas search, default layout": "the same, images not in channels-last",
    "dnas search, soft mixture": "the same, all options mixed in every step",
    "dnas search, compiled": "**dnas** search, compiled",
}


def overhead(content: dict[str, Any]) -> str:
    """Time of a step in eager float steps, and peak memory."""
    networks = content["networks"]
    lines = ["| training step | " + " | ".join(f"{name}, time" for name in networks) + " | ResNet-8, peak MB |"]
    lines[0] = lines[0].replace("resnet", "ResNet-")
    lines.append("| --- " * (len(networks) + 2) + "|")
    for name, label in OVERHEAD.items():
        found = [times.get(name) for times in networks.values()]
        if found[0] is not None:
            shown = " | ".join(f"{value['ratio']:.2f}" if value else "" for value in found)
            lines.append(f"| {label} | {shown} | {found[0].get('peak_mb', '')} |")
    same = [times["dnas search"]["min_ms"] / times["float, channels last"]["min_ms"] for times in networks.values()]
    lines.append(
        f"| **dnas** search, eager, in float steps of its own layout | {' | '.join(f'{r:.2f}' for r in same)} | |"
    )
    lines.append(f"| (imports alone) |{' |' * len(networks)} {content['import_mb']:.0f} |")
    depth, outside = content["depth"].values(), content["outside"]
    low, high = outside["quartiles"]
    priced = [f"{value['draw_and_price_ms']:.1f}" for value in depth if "draw_and_price_ms" in value]
    return "\n".join(lines) + (
        f"\n\nBy depth (ResNet-8, 20, 56, 110; a run of its own), search step over float step in one layout: "
        f"{', '.join(format(value['search']['ratio'], '.2f') for value in depth)}"
        + (f"; of it, drawing and pricing all choices: {', '.join(priced)} ms" if priced else "")
        + ". Outside of network and optimiser (data, augmentation, drawing, pricing, logging): "
        f"{outside['share_outside']:.1%} of a ResNet-8 step, quartiles {low:.1%} to {high:.1%}."
    )


def gradient(content: dict[str, Any]) -> str:
    """Accuracy of searches that draw one option per step beside those with the exact gradient."""
    lines = ["| budget | one option per step (default) | exact gradient | difference, paired | n |", "| --- " * 5 + "|"]
    for budget, label in (("w2a2", "6.91 % (W2A2's BOPs)"), ("w3a3", "14.9 % (W3A3's BOPs)")):
        found = content["summary"].get(budget)
        if found:
            modes = [f"{found[m]['mean']:.2f} ± {found[m]['sd']:.2f}" for m in ("default", "exact")]
            pair = found["default_minus_exact"]
            interval = f"{pair['mean']:+.2f}, 95 % interval {pair['low']:+.2f} to {pair['high']:+.2f}"
            lines.append(f"| {label} | {modes[0]} | {modes[1]} | {interval} | {pair['n']} |")
    return "\n".join(lines)


def coverage(content: dict[str, Any]) -> str:
    """What of every model is searched, and whether its files run and verify."""
    heads = (
        "model of transformers", "bits, % of BOPs", "filters, % of BOPs", "float products, %", "pruned - masked",
        "QCDQ", "QONNX", "seconds",
    )  # fmt: skip
    lines = head(heads)
    for name, found in content["models"].items():
        share, checked = found.get("shares"), found.get("verified", {})
        if share is None:
            lines.append(f"| {name} ({found['variant']}) | fails: {min(found['failed'].values())} |" + " |" * 6)
            continue
        formats = [
            ("verified" if checked[format].get("run", True) else "integers") if format in checked else "fails"
            for format in ("qcdq", "qonnx")
        ]
        pruned = found.get("pruned_equals_masked")
        lines.append(
            f"| {name} ({found['variant']}) | {share['bits']:.1%} | {share['filters']:.1%} | {share['float']:.1%} | "
            f"{'fails' if pruned is None else f'{pruned:.0e}'} | {' | '.join(formats)} | "
            f"{sum(found['seconds'].values()):.1f} |"
        )
    return "\n".join(lines)


def conversion(content: dict[str, Any]) -> str:
    """Seconds and memory of a conversion beside a training step."""
    steps = content["steps"]
    lines = ["| ResNet-50, 224 x 224, batch 2, two threads | seconds | peak MB |", "| --- | --- | --- |"]
    for name, label in (("convert", "space, supernet and all cost tables"), ("train", "one float training step")):
        lines.append(f"| {label} | {steps[name]['seconds']:.1f} | {steps[name]['peak_mb']:.0f} |")
    return "\n".join(lines)


def by_filter(content: dict[str, Any]) -> str:
    """Steps and selections where every filter decides."""
    steps, names = content["steps"], list(content["steps"])
    shown = [name.replace("resnet", "ResNet-") for name in names]
    lines = ["| search step | " + " | ".join(f"{name}, time" for name in shown) + " |"]
    lines.append("| --- " * (len(names) + 1) + "|")
    for variant in steps[names[0]]:
        lines.append(f"| {variant} | " + " | ".join(f"{steps[name][variant]['ratio']:.2f}" for name in names) + " |")
    lines += [
        "",
        "| selection | filters | seconds | bound above the result, % of the scores' range |",
        "| --- " * 4 + "|",
    ]
    for name, label in zip(names, shown, strict=True):
        for variant, found in content["selections"][name].items():
            seconds = [run["seconds"] for run in found["runs"]]
            gaps = [run["gap_share"] for run in found["runs"]]
            lines.append(
                f"| {label}, {variant} | {found['filters']} | {min(seconds):.1f} to {max(seconds):.1f} | "
                f"{min(gaps):.2%} to {max(gaps):.2%} |"
            )
    return "\n".join(lines)


def random_networks(content: dict[str, Any]) -> str:
    """How many networks grown at random were converted, pruned, priced and exported, and what failed."""
    exports = content["exports"]
    verified = sum(count for kind, count in exports.items() if kind == "verified")
    rows = {
        "networks converted, pruned and priced": content["networks"],
        "of these exported to QCDQ and verified in onnxruntime": verified,
        "failures": sum(content["failures"].values()),
        "coupled groups of filters": content["groups"],
        "of these that can be pruned": content["groups_that_can_be_pruned"],
    }
    return "\n".join(["| random networks | |", "| --- | --- |", *(f"| {what} | {n:,} |" for what, n in rows.items())])


def latency(content: dict[str, Any]) -> str:
    """How well sums of layers predict whole networks."""
    lines = [
        "| networks, images of 32x32, one thread | configurations | median error | Kendall's tau, 95 % | timed twice |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        found = row["checked"]
        low, high = found["tau_interval"]
        lines.append(
            f"| {row['case']} | {row['configurations']} | {found['median_error']:.1%} | {found['tau']:.2f}, {low:.2f} to "
            f"{high:.2f} (n = {found['n']}) | {found['noise']:.1%} |"
        )
    return "\n".join(lines)


TIMED = {"uniform": "best uniform", "random": "random", "binas": "**dnas, BINAS**"}


def binas_latency(content: dict[str, Any]) -> str:
    """Latency that the table promised of networks, and that of the networks as wholes, in shares of the full one's."""
    lines = head(["budget, shares of 8-bit", *(f"{name}: promised, measured" for name in TIMED.values())])
    for budget_id, methods in content["budgets"].items():
        cells = [
            f"{found['promised']:.1%}, {found['measured']:.1%} ({found['n']})" if (found := methods.get(method)) else ""
            for method in TIMED
        ]
        lines.append(f"| {'BOPs ' + budget_id} | {' | '.join(cells)} |")
    return "\n".join(lines) + (
        f"\n\nPromises miss {content['median_error']:.1%} of what was measured at the median of {content['n']} networks "
        f"(timed twice they differ by {content['noise']:.1%}); Kendall's tau {tau(content['ranks'])}."
    )


SOLVER_LABELS = {"labels": "labels", "highs_flow": "HiGHS, flow", "highs_conditional": "HiGHS, conditional"}
HEURISTICS = {"frank_wolfe": "Frank-Wolfe", "evolution": "evolution"}
OTHERS = {"cp_sat": "CP-SAT", "scip": "SCIP"}
PROVEN = 1e-3
"""Gap, in the instance's units, up to which a program's solver counts as having proven its solution."""


def solvers(content: dict[str, Any]) -> str:
    """Seconds of the exact solvers on every kind of instance, how far Frank-Wolfe and evolution are off, and fronts.

    How far: see `missed`; the most of the group.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        name = row["instance"].split(",")[0]
        groups.setdefault(f"{name}, {len(row['limits'])} budget{'s' * (len(row['limits']) > 1)}", []).append(
            row["methods"]
        )
    lines = [
        "| instance | n | "
        + " | ".join(
            [f"{label}, s" for label in SOLVER_LABELS.values()] + [f"{h}, off by" for h in HEURISTICS.values()]
        )
        + " | proven by labels |",
        "| --- " * (len(SOLVER_LABELS) + len(HEURISTICS) + 3) + "|",
    ]
    for name, methods in groups.items():
        cells = []
        for method in SOLVER_LABELS:
            own = [m[method] for m in methods if method in m and m[method].get("seconds") is not None]
            seconds = [one["seconds"] for one in own]
            late = any(one.get("gap") is None or one["gap"] > PROVEN for one in own)
            text = (
                "" if not own else f"{min(seconds):.2f} to {max(seconds):.2f}" if len(own) > 1 else f"{seconds[0]:.2f}"
            )
            cells.append(text + (" (not all proven)" if late else ""))
        for method in HEURISTICS:
            cells.append(f"{max(missed(m, method) for m in methods):.0%}")
        proven = sum(m["labels"]["gap"] == 0 for m in methods)
        lines.append(f"| {name} | {len(methods)} | " + " | ".join(cells) + f" | {proven} of {len(methods)} |")
    fronts = ", ".join(f"{f['network']} {f['seconds']:.1f} s" for f in content["fronts"])
    count = content["fronts"][0]["architectures"]
    tried = []
    for method, label in OTHERS.items():
        own = [row["methods"][method] for row in content["rows"] if method in row["methods"]]
        if own:
            proven = sum(one.get("gap") is not None and one["gap"] <= PROVEN for one in own)
            tried.append(f"{label} proves {proven} of the {len(own)} small instances with one budget")
    notes = [f"A front of {count} budgets, every point proven: {fronts}.", *([", ".join(tried) + "."] if tried else [])]
    return "\n".join([*lines, "", " ".join(notes)])


def missed(methods: dict[str, Any], method: str) -> float:
    """How far a heuristic is below the proven value, as a share of how far random search is; 1 where it found nothing."""
    best, found = methods["labels"]["value"], methods[method].get("value")
    worst = methods["random"].get("value")
    if found is None or worst is None:
        return 1.0
    return max(best - found, 0.0) / max(best - worst, 1e-12)
