"""Tables of estimators: of gradients, of accuracies, and of what a relaxed network says of single ones."""

import statistics
from collections.abc import Sequence
from typing import Any

from table_cells import head, tau


def cosines(found: dict[str, float]) -> list[float]:
    """Cosine of an estimator's mean without the noise of its draws; none where that is a fifth of the mean's square or more.

    Where the norm of the mean is not recorded, bias and cosine leave up to two of them: one cosine for each.
    """
    bias, cosine, noise = found["bias"], found["cosine"], found["bias_noise"]
    root = max(0.0, cosine**2 - 1 + bias**2) ** 0.5
    norms = [found["norm"]] if "norm" in found else [norm for norm in (cosine - root, cosine + root) if norm > 0]
    signals = [1 - (noise / norm) ** 2 for norm in norms]
    return [] if min(signals) < 0.8 else [min(1.0, cosine / signal**0.5) for signal in signals]


def estimators(content: dict[str, Any]) -> str:
    """Bias, cosine (both less the draws' own noise) and deviation of estimators, smallest to largest over the networks."""
    heads = ("estimator", "bias", "noise of the draws in it", "standard deviation", "cosine of its mean")
    lines = head(heads)
    for name in content["runs"][0]:
        own = [run[name] for run in content["runs"]]
        found = [cosines(one) for one in own]
        columns = (
            [max(0.0, one["bias"] ** 2 - one["bias_noise"] ** 2) ** 0.5 for one in own],
            [one["bias_noise"] for one in own],
            [one["sd"] for one in own],
            [value for one in found for value in one] if all(found) else [],
        )
        cells = [f"{min(values):.2f} to {max(values):.2f}" if values else "" for values in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ratios = ", ".join(f"{ratio:.0f}" for ratio in leave_one_out(content))
    losses = content["losses"]
    return "\n".join(lines) + (
        f"\n\nLeave-one-out cuts the score function's deviation {ratios} times; mean losses are "
        f"{', '.join(format(one['mean'] / one['sd'], '.0f') for one in losses)} times their spread over the architectures."
    )


def leave_one_out(content: dict[str, Any]) -> list[float]:
    """By how much the baseline cuts the score function's deviation, network by network."""
    return [r["score function"]["sd"] / r["score function, leave-one-out"]["sd"] for r in content["runs"]]


RANKED = {
    "one_shot, trained": "accuracy in BINAS' supernet",
    "estimated, trained": "BINAS' estimator",
    "sensitivities, trained": "sensitivities, added up (the default's)",
    "bops, trained": "cost alone",
    "trained twice": "another training: the ceiling",
}
SCOPES = {
    "random": "random, all costs", "equal": "of these 6.6 to 6.9 % of BOPs", "uniform": "uniform, all costs, one epoch",
    "band": "of these 11.9 to 14.9 % of BOPs", "twice": "trained twice, all costs",
}  # fmt: skip


def counted(pair: dict[str, Any] | None) -> str:
    """A rank correlation, its interval and n; nothing of too few."""
    return f"{tau(pair)} ({pair['n']})" if pair else ""


def rank(content: dict[str, Any]) -> str:
    """Kendall's tau of every prediction with a training, by kind of architecture."""
    found = content["agreement"]
    lines = [
        f"| Kendall's tau with a training, 95 % (n) | {' | '.join(SCOPES.values())} |",
        "| --- " * (len(SCOPES) + 1) + "|",
    ]
    for key, label in RANKED.items():
        cells = [counted(found[scope][key]) for scope in SCOPES]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


PREDICTED = {"estimated": "BINAS' estimator", "one_shot": "accuracy in its supernet", "bops": "cost alone"}
STARTS = {"float": "from float weights", "supernet": "from supernets"}


def binas_rank(content: dict[str, Any]) -> str:
    """Kendall's tau of what every run predicts with training, by start and cost."""
    share = f"{100 * content['smallest']:g} % of BOPs or less"
    scopes = list(content["runs"][0]["agreement"])
    titles = [
        STARTS[start] + (f", {share}" if small else "") for start, _, small in (s.partition(", ") for s in scopes)
    ]
    lines = head(["Kendall's tau with training, 95 % (n)", *titles])
    for one in content["runs"]:
        for key, label in PREDICTED.items():
            cells = [counted(one["agreement"][scope][key]) for scope in scopes]
            lines.append(f"| seed {one['seed']}: {label} | {' | '.join(cells)} |")
    ceilings = [statistics.mean(one["agreement"][scope]["ceiling"] for one in content["runs"]) for scope in scopes]
    lines.append(f"| another training (drawn): the ceiling | {' | '.join(f'{value:.2f}' for value in ceilings)} |")
    return "\n".join(lines)


GAINS = {
    "depth": "depth", "filters, first block": "expansion, first block", "filters, other blocks": "expansion, others",
    "kernel": "kernel", "branch": "squeeze-and-excitation", "weight_bits": "weight bits", "act_bits": "activation bits",
}  # fmt: skip


def binas_findings(content: dict[str, Any]) -> str:
    """Points of accuracy from the smallest to the largest option, by stage; the paper's findings; how well it ranks."""
    lines = head(["from smallest to largest, points", *GAINS.values()])
    for row in content["stages"]:
        gains = [f"{row[name][0]:+.2f} ± {row[name][1]:.2f}" for name in GAINS]
        lines.append(f"| stage {row['stage'] + 1}, each choice | {' | '.join(gains)} |")
    spares = {spared["stage"]: spared for spared in content.get("saved", [])}  # earlier results have none
    for row in content["stages"] if spares else []:
        spared = spares[row["stage"]]
        rates = [f"{row[name][0] / spared[name]:+.3f} ± {row[name][1] / spared[name]:.3f}" for name in GAINS]
        lines.append(f"| stage {row['stage'] + 1}, per MBOP | {' | '.join(rates)} |")
    claims = [
        f"{name[0].upper()}{name[1:]}: **{found['holds']}** ({found['difference']:+.2f} ± {found['error']:.2f} points)."
        for name, found in content["claims"].items()
    ]
    ranks = ["", *estimator_ranks(content["seeds"], content["judged"])] if content["judged"] else []
    return "\n".join([*lines, "", " ".join(claims), *ranks, "", *run_seconds(content.get("seconds", []))])


def estimator_ranks(seeds: Sequence[int], judged: Sequence[dict[str, Any]]) -> list[str]:
    """How well the estimator of every seed orders networks that it was not fitted to, beside cost and other predictors."""
    others = list(dict.fromkeys(name for one in judged for name in one["predictors"]))
    lines = head([
        "Kendall's tau, 95 %", "held-out networks", "in the middle half of costs", "cost alone", "in the middle half",
        "records that are enough, within 0.01", "with neighbouring layers", *others,
    ])  # fmt: skip
    for seed, one in zip(seeds, judged, strict=True):
        found = {**one["predictors"], "": one.get("neighbours")}
        single = [f"{found[name]['tau']:.2f}" if found.get(name) else "" for name in ("", *others)]
        cells = [tau(one[name]) for name in ("held_out", "band", "cost alone", "cost alone in band")]
        cells.append(f"{one['enough']:,} of {one['sizes'][-1]['records']:,}")
        lines.append(f"| seed {seed} | {' | '.join([*cells, *single])} |")
    return lines


def run_seconds(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What the stages of the fastest run took, and of the slowest."""
    ordered = sorted(runs, key=lambda run: float(sum(run["stages"].values())))
    if len(ordered) < 2:
        return [stage_seconds(run) for run in ordered]
    return [
        f"The fastest of {len(runs)} runs. {stage_seconds(ordered[0])}",
        f"The slowest, on a slower processor or beside other work. {stage_seconds(ordered[-1])}",
    ]


def stage_seconds(found: dict[str, Any]) -> str:
    """What the stages of a run took; results of earlier code do not say."""
    stages = ", ".join(f"{name} {value:,.{1 if value < 10 else 0}f}" for name, value in found["stages"].items())
    threads = f", engine.threads={found['threads']}" if found["threads"] else ""
    networks = f" ({found['networks']} networks)" if found["networks"] else ""
    return f"Seconds{threads}: {stages}{networks}."


DEPTHWISE = {"float": "float network", "fixed": "largest architecture, fixed widths", "supernet": "supernet"}


def depthwise(content: dict[str, Any]) -> str:
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
