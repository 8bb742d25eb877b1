"""The README's tables of results, from the committed files: `python benchmarks/tables.py` rewrites them in place."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
HEADER = (
    "| network | accuracy % | BOPs, of 8-bit | weight bytes | search, in QAT runs |\n| --- | --- | --- | --- | --- |"
)
LABELS = {"float": "float", "uniform": "best uniform", "random": "random, equal cost", "ours": "**dnas**"}


def _row(found: dict[str, Any]) -> str:
    spread, n = found.get("accuracy_sd"), found.get("n", 1)
    accuracy = f"{found['accuracy']:.2f}" + (f" ± {spread:.2f} ({n})" if spread is not None else " (1)")
    share = found["relative"].get("bops")
    cost = found.get("search_cost")
    return (
        f"| {LABELS[found['method']]} | {accuracy} | {share:.2%} | {found['weight_bytes']:,.0f} | "
        f"{'' if cost is None else f'{cost:.2f}'} |"
    )


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


def _overhead(content: dict[str, Any]) -> str:
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
        f"\n\nBy depth (ResNet-8, 20, 56, 110), search step over float step in one layout: "
        f"{', '.join(format(value['search']['ratio'], '.2f') for value in depth)}"
        + (f"; of it, drawing and pricing all choices: {', '.join(priced)} ms" if priced else "")
        + ". Outside of network and optimiser (data, augmentation, drawing, pricing, logging): "
        f"{outside['share_outside']:.1%} of a ResNet-8 step, quartiles {low:.1%} to {high:.1%}."
    )


def _gradient(content: dict[str, Any]) -> str:
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


def _coverage(content: dict[str, Any]) -> str:
    """What of every model is searched, and whether its files run and verify."""
    heads = (
        "model of transformers", "bits, % of BOPs", "filters, % of BOPs", "float products, %", "pruned - masked",
        "QCDQ", "QONNX", "seconds",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
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


def _conversion(content: dict[str, Any]) -> str:
    """Seconds and memory of a conversion beside a training step."""
    steps = content["steps"]
    lines = ["| ResNet-50, 224 x 224, batch 2, two threads | seconds | peak MB |", "| --- | --- | --- |"]
    for name, label in (("convert", "space, supernet and all cost tables"), ("train", "one float training step")):
        lines.append(f"| {label} | {steps[name]['seconds']:.1f} | {steps[name]['peak_mb']:.0f} |")
    return "\n".join(lines)


def _by_filter(content: dict[str, Any]) -> str:
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


def _random_networks(content: dict[str, Any]) -> str:
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


def _verdict(content: dict[str, Any]) -> str:
    """Ours beside uniform and random networks at every budget, with paired differences, and what else the rows tell."""
    heads = (
        "budget, BOPs of 8-bit", "best uniform", "random", "**dnas**", "dnas - uniform, paired",
        "the same on validation images", "dnas - random", "spent by dnas",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    budgets = content["budgets"].values()
    for found in budgets:
        methods, pairs = found["methods"], found["differences"]
        uniform, ours = _mean(methods["uniform"]), methods["ours"]
        cells = [
            f"{found['bops']:.2%}", f"{uniform}, {', '.join(found['uniform'])}" if uniform else "",
            _mean(methods["random"]), _mean(ours), _interval(pairs["ours - uniform"]),
            _interval(found["validation"]), _interval(pairs["ours - random"]),
            "" if ours is None else f"{ours['spent'][0]:.1%} to {ours['spent'][1]:.1%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    shares = sorted(
        one["images_search"] / one["images_retrain"] for found in budgets if (one := found["methods"]["ours"])
    )
    seen = " to ".join(dict.fromkeys(f"{share:.2f}" for share in (shares[0], shares[-1])))
    notes = [f"Float network: {content['float']:.2f} %. A search sees {seen} retrainings' images."]
    return "\n".join(
        [*lines, "", *notes, *_corrected(content), *_loosened(content), *_shared(content), *_spread(content)]
    )


def _corrected(content: dict[str, Any]) -> list[str]:
    """p-values of the differences, corrected for the number of budgets."""
    lines = []
    for other in ("uniform", "random"):
        pairs = {f"{b['bops']:.2%}": b["differences"][f"ours - {other}"] for b in content["budgets"].values()}
        shown = [f"{pair['p_holm']:.2g} at {budget}" for budget, pair in pairs.items() if pair]
        if shown:
            lines.append(f"p of dnas - {other}, corrected for the number of budgets (Holm): {', '.join(shown)}.")
    return lines


def _loosened(content: dict[str, Any]) -> list[str]:
    """What it gives to go around a looser budget."""
    return [
        f"A search around a looser budget (`search.loosen`) minus one around the budget itself at {found['bops']:.2%}, paired: "
        f"{_interval(pair)}; on validation images {_interval(found['ours - within, validation'])}."
        for found in content["budgets"].values()
        if (pair := found.get("ours - within"))
    ]


def _shared(content: dict[str, Any]) -> list[str]:
    """One search for all budgets, beside one per budget."""
    shown = []
    for found in content["budgets"].values():
        pair = found["one search"]
        if pair:
            shows = "not worse" if pair["not_worse"] else "not shown to be no worse"
            shown.append(f"{_interval(pair)} at {found['bops']:.2%} ({shows} by {pair['margin']} points)")
    return [f"One search for all budgets minus one per budget, paired: {'; '.join(shown)}."] if shown else []


def _spread(content: dict[str, Any]) -> list[str]:
    """What of the spread comes from searches, and what from retraining one network."""
    return [
        f"Standard deviations at {found['bops']:.2%}, with 95 % intervals: {_deviation(split['search'])} between searches, "
        f"{_deviation(split['retraining'])} between retrainings ({split['searches']} searches, {split['retrainings']} "
        "retrainings of each)."
        for found in content["budgets"].values()
        if (split := found["variance"])
    ]


def _cosines(found: dict[str, float]) -> list[float]:
    """Cosine of an estimator's mean without the noise of its draws; none where that is a fifth of the mean's square or more.

    Where the norm of the mean is not recorded, bias and cosine leave up to two of them: one cosine for each.
    """
    bias, cosine, noise = found["bias"], found["cosine"], found["bias_noise"]
    root = max(0.0, cosine**2 - 1 + bias**2) ** 0.5
    norms = [found["norm"]] if "norm" in found else [norm for norm in (cosine - root, cosine + root) if norm > 0]
    signals = [1 - (noise / norm) ** 2 for norm in norms]
    return [] if min(signals) < 0.8 else [min(1.0, cosine / signal**0.5) for signal in signals]


def _estimators(content: dict[str, Any]) -> str:
    """Bias, cosine (both less the draws' own noise) and deviation of estimators, smallest to largest over the networks."""
    heads = ("estimator", "bias", "noise of the draws in it", "standard deviation", "cosine of its mean")
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name in content["runs"][0]:
        own = [run[name] for run in content["runs"]]
        cosines = [_cosines(one) for one in own]
        columns = (
            [max(0.0, one["bias"] ** 2 - one["bias_noise"] ** 2) ** 0.5 for one in own],
            [one["bias_noise"] for one in own],
            [one["sd"] for one in own],
            [value for one in cosines for value in one] if all(cosines) else [],
        )
        cells = [f"{min(values):.2f} to {max(values):.2f}" if values else "" for values in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ratios = [r["score function"]["sd"] / r["score function, leave-one-out"]["sd"] for r in content["runs"]]
    return "\n".join(lines) + (
        f"\n\nLeave-one-out cuts the score function's deviation {min(ratios):.0f} to {max(ratios):.0f} times."
    )


def _latency(content: dict[str, Any]) -> str:
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


SOLVER_LABELS = {"labels": "labels", "highs_flow": "HiGHS, flow", "highs_conditional": "HiGHS, conditional"}


def _solvers(content: dict[str, Any]) -> str:
    """Seconds of the exact solvers on every kind of instance, how far Frank-Wolfe and evolution are off, and fronts."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        name = row["instance"].split(",")[0]
        groups.setdefault(f"{name}, {len(row['limits'])} budget{'s' * (len(row['limits']) > 1)}", []).append(
            row["methods"]
        )
    lines = [
        "| instance | n | " + " | ".join(f"{label}, s" for label in SOLVER_LABELS.values()) + " | proven by labels |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, methods in groups.items():
        cells = []
        for method in SOLVER_LABELS:
            own = [m[method] for m in methods if method in m and m[method].get("seconds") is not None]
            seconds = [one["seconds"] for one in own]
            late = any(one.get("gap") is None or one["gap"] > 1e-3 for one in own)
            text = (
                "" if not own else f"{min(seconds):.2f} to {max(seconds):.2f}" if len(own) > 1 else f"{seconds[0]:.2f}"
            )
            cells.append(text + (" (not all proven)" if late else ""))
        proven = sum(m["labels"]["gap"] == 0 for m in methods)
        lines.append(f"| {name} | {len(methods)} | " + " | ".join(cells) + f" | {proven} of {len(methods)} |")
    fronts = ", ".join(f"{f['network']} {f['seconds']:.1f} s" for f in content["fronts"])
    count = content["fronts"][0]["architectures"]
    return "\n".join([*lines, "", f"A front of {count} budgets, every point proven: {fronts}."])


def _tau(found: dict[str, Any]) -> str:
    low, high = found["tau_interval"]
    return f"{found['tau']:.2f}, {low:.2f} to {high:.2f}"


RANKED = {
    "one-shot, trained": "one-shot accuracy against a training",
    "estimated, trained": "estimator against a training",
    "cost, trained": "cost alone against a training",
    "estimated, one-shot": "estimator against one-shot accuracy",
    "trained twice": "one training against another: its repeatability",
}


def _rank(content: dict[str, Any]) -> str:
    """Kendall's tau of every pair of orders, over all costs and within a band; with trainings the mean over single ones."""
    every, band = content["agreement"]["all"], content["agreement"]["band"]
    counts = [found["trained twice"]["n"] for found in (every, band)]
    lines = [
        f"| Kendall's tau, 95 % | all costs (n = {counts[0]}) | one band of cost (n = {counts[1]}) |",
        "| --- " * 3 + "|",
    ]
    lines += [f"| {label} | {_tau(every[key])} | {_tau(band[key])} |" for key, label in RANKED.items()]
    return "\n".join(lines)


def _interval(pair: dict[str, Any] | None) -> str:
    if not pair:
        return ""
    return f"{pair['mean']:+.2f}" + (f", {pair['low']:+.2f} to {pair['high']:+.2f}" if pair["low"] is not None else "")


def _mean(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    return f"{found['mean']:.2f}" + (f" ± {found['sd']:.2f}" if found["sd"] is not None else "") + f" ({found['n']})"


def _binas(content: dict[str, Any]) -> str:
    """BINAS beside uniform and random networks of equal cost, budget by budget."""
    heads = (
        "budget, shares of 8-bit",
        "best uniform",
        "random",
        "**binas**",
        "binas - uniform, paired",
        "binas - random",
        "spent",
    )
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for found in content["budgets"].values():
        methods = found["methods"]
        limits = [f"{name} {found[name]:.0%}" for name in ("bops", "latency_us") if name in found]
        spent = [f"{max(values):.1%}" for values in found["spent"].values() if values]
        lines.append(
            f"| {', '.join(limits)} | {_mean(methods['uniform'])} | {_mean(methods['random'])} | {_mean(methods['binas'])} | "
            f"{_interval(found['binas - uniform'])} | {_interval(found['binas - random'])} | {', '.join(spent)} |"
        )
    return "\n".join(lines) + f"\n\nFloat network: {content['float']:.2f} %."


GAINS = {
    "depth": "depth", "filters, first block": "expansion, first block", "filters, other blocks": "expansion, others",
    "kernel": "kernel", "branch": "squeeze-and-excitation", "weight_bits": "weight bits", "act_bits": "activation bits",
}  # fmt: skip


def _binas_findings(content: dict[str, Any]) -> str:
    """Points of accuracy from the smallest to the largest option, by stage; the paper's findings; how well it ranks."""
    lines = [
        "| from smallest to largest, points | " + " | ".join(GAINS.values()) + " |",
        "| --- " * (len(GAINS) + 1) + "|",
    ]
    for row in content["stages"]:
        gains = [f"{row[name][0]:+.2f} ± {row[name][1]:.2f}" for name in GAINS]
        lines.append(f"| stage {row['stage'] + 1}, each choice | {' | '.join(gains)} |")
    claims = [
        f"{name[0].upper()}{name[1:]}: **{found['holds']}** ({found['difference']:+.2f} ± {found['error']:.2f} points)."
        for name, found in content["claims"].items()
    ]
    ranks = [
        f"held-out networks {_tau(one['held_out'])}, those in the middle half of costs {_tau(one['band'])}; cost alone "
        f"{_tau(one['cost alone'])} and {_tau(one['cost alone in band'])}; {one['enough']:,} of "
        f"{one['sizes'][-1]['records']:,} records are needed for it, within 0.01; other predictors: "
        + ", ".join(f"{name} {found['tau']:.2f}" for name, found in one["predictors"].items())
        for one in content["judged"]
    ]
    taus = [f"Kendall's tau, 95 %: {rank}." for rank in ranks]
    return "\n".join([*lines, "", " ".join(claims), "", *taus, *map(_seconds, content.get("seconds", []))])


def _seconds(found: dict[str, Any]) -> str:
    """What the stages of a run took; results of earlier code do not say."""
    stages = ", ".join(f"{name} {value:,.0f}" for name, value in found["stages"].items())
    threads = f", engine.threads={found['threads']}" if found["threads"] else ""
    networks = f" ({found['networks']} networks)" if found["networks"] else ""
    return f"Seconds{threads}: {stages}{networks}."


DEPTHWISE = {"float": "float network", "fixed": "largest architecture, fixed widths", "supernet": "supernet"}


def _depthwise(content: dict[str, Any]) -> str:
    """Milliseconds of a step with torch's weight gradient and with the own one."""
    lines = ["| ms | torch's weight gradient | own | ratio |", "| --- | --- | --- | --- |"]
    for name, found in content["steps"].items():
        lines.append(f"| step, {DEPTHWISE[name]} | {found['torch']:.0f} | {found['own']:.0f} | {found['ratio']:.1f} |")
    for found in content["layers"]:
        side, size = found["kernel"], found["size"]
        name = (
            f"gradient, {side}x{side}, {found['channels']} channels of {size}x{size}{'' if side > 3 else ' (not used)'}"
        )
        lines.append(f"| {name} | {found['torch']:.2f} | {found['own']:.2f} | {found['ratio']:.1f} |")
    return "\n".join(lines)


def _bridges(content: dict[str, Any]) -> str:
    """Sources of scores for the one selector."""
    heads = (
        "scores from", "test accuracy, %", "minus best uniform, paired", "p, corrected (Holm)", "images of the search",
        "of search and training",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in content["rows"]:
        pair, images = row["minus uniform"], row["images_search"]
        lines.append(
            f"| {row['label']} | {_mean(row)} | {_interval(pair)} | {format(pair['p_holm'], '.2g') if pair else ''} | "
            f"{images:,.0f} | {images + row['images_retrain']:,.0f} |"
        )
    return "\n".join(lines)


def _deviation(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['sd']:.2f}, {low:.2f} to {high:.2f}"


def _thesis_grid(content: dict[str, Any]) -> str:
    """How far architectures of one cost differ, and how far the retrainings of each."""
    heads = (
        "filters varied in", "compositions x retrainings", "BOPs, of (3,3)'s", "means of compositions, %",
        "between architectures, points", "between retrainings, points", "p of no difference",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for part, found in content["summary"].items():
        low, high = found["means"]
        lines.append(
            f"| {part} | {found['n']} x {found['seeds']} | {found['spent'][0]:.1%} to {found['spent'][1]:.1%} | {low:.2f} to "
            f"{high:.2f} | {_deviation(found['architecture'])} | {_deviation(found['retraining'])} | {found['p']:.2g} |"
        )
    return "\n".join([*lines, "", "Between: standard deviations with 95 % intervals."])


def _ablation(content: dict[str, Any]) -> str:
    """Changes of the search, each beside what it is compared with."""
    heads = ("change", "validation accuracy, %", "minus", "paired, 95 %", "images of the search")
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, found in content["changes"].items():
        pair = found["difference"]
        lines.append(
            f"| {name} | {_mean(found)} | {found['against'] or ''} | {_interval(pair)} | "
            f"{found['images_search']:,.0f} |"
        )
    several = f" Rows of {len(content['commits'])} commits." if len(content["commits"]) > 1 else ""
    return "\n".join([*lines, "", f"Without an interval where there is but one seed.{several}"])


TABLES = {
    "dnas.Ablation": _ablation,
    "dnas.ThesisGrid": _thesis_grid,
    "dnas.Rank": _rank,
    "dnas.BinasVerdict": _binas,
    "dnas.Bridges": _bridges,
    "dnas.Depthwise": _depthwise,
    "dnas.BinasFindings": _binas_findings,
}


def table(content: dict[str, Any]) -> str:
    """A result file as Markdown."""
    if content["type"] in TABLES:
        return TABLES[content["type"]](content)
    if content["type"] == "dnas.Verdict":
        return _verdict(content)
    if content["type"] == "dnas.Estimators":
        return _estimators(content)
    if content["type"] == "dnas.ByFilter":
        return _by_filter(content)
    if content["type"] == "dnas.RandomNetworks":
        return _random_networks(content)
    if content["type"] == "dnas.Latency":
        return _latency(content)
    if content["type"] == "dnas.Solvers":
        return _solvers(content)
    if content["type"] == "dnas.Coverage":
        return _coverage(content)
    if content["type"] == "dnas.Conversion":
        return _conversion(content)
    if content["type"] == "dnas.Overhead":
        return _overhead(content)
    if content["type"] == "dnas.Gradient":
        return _gradient(content)
    if content["type"] == "dnas.Pareto":
        (network,) = content["networks"]
        rows = [network["float"], *sorted(network["groups"], key=lambda g: list(LABELS).index(g["method"]))]
        lines = [_row(row) for row in rows if row]
        for pair in network["paired"]:
            if pair["low"] is not None:
                lines.append(
                    f"| dnas - {pair['minus']}, paired | {pair['mean']:+.2f}, 95 % interval {pair['low']:+.2f} to "
                    f"{pair['high']:+.2f} | | | |"
                )
        return "\n".join([HEADER, *lines])
    return "\n".join([HEADER, *(_row(row) for row in content["rows"])])


def rewrite(text: str) -> str:
    """The README with every `<!-- results: NAME -->` block filled in from benchmarks/results/NAME.json."""

    def fill(match: re.Match[str]) -> str:
        path = HERE / "results" / f"{match.group(1)}.json"
        found = table(json.loads(path.read_text(encoding="utf-8")))
        return f"<!-- results: {match.group(1)} -->\n{found}\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(rewrite(README.read_text(encoding="utf-8")), encoding="utf-8")
