"""Tables of accuracies at equal cost, and of what their spread comes from."""

from typing import Any

from table_cells import deviation, head, interval, mean

HEADER = "| network | accuracy % | BOPs, of 8-bit | weight bytes | search time, in QAT runs |\n| --- | --- | --- | --- | --- |"

MIXED = " (!)"
ALIKE = "(!): trained by code of several arithmetics, or by processors with and without AVX-512."
MLPERF_TINY = 85
"""Accuracy (%) that MLPerf Tiny asks of ResNet-8 on CIFAR-10."""
SHOWN = 0.05
"""Corrected p-value below which a difference is said to be shown."""
LABELS = {"float": "float", "uniform": "best uniform", "random": "random, equal cost", "ours": "**dnas**"}


def demo_row(found: dict[str, Any]) -> str:
    """One kind of network of a report."""
    spread, n = found.get("accuracy_sd"), found.get("n", 1)
    accuracy = f"{found['accuracy']:.2f}" + (f" ± {spread:.2f} ({n})" if spread is not None else " (1)")
    share = found["relative"].get("bops")
    cost = found.get("search_cost")
    return (
        f"| {LABELS[found['method']]} | {accuracy} | {share:.2%} | {found['weight_bytes']:,.0f} | "
        f"{'' if cost is None else f'{cost:.2f}'} |"
    )


def verdict(content: dict[str, Any]) -> str:
    """Ours beside uniform and random networks at every budget, with paired differences and their p-values."""
    heads = (
        "budget, BOPs of 8-bit", "best uniform", "random", "**dnas**", "dnas - uniform, paired",
        "the same on validation images", "dnas - random", "spent by dnas",
    )  # fmt: skip
    lines = head(heads)
    budgets = content["budgets"].values()
    for found in budgets:
        methods, pairs = found["methods"], found["differences"]
        uniform, ours = mean(methods["uniform"]), methods["ours"]
        marks = {
            other: MIXED if found["mixed"][other] and pairs[f"ours - {other}"] else ""
            for other in ("uniform", "random")
        }
        cells = [
            f"{found['bops']:.2%}", f"{uniform}, {', '.join(found['uniform'])}" if uniform else "",
            mean(methods["random"]), mean(ours), interval(pairs["ours - uniform"]) + marks["uniform"],
            interval(found["validation"]) + marks["uniform"], interval(pairs["ours - random"]) + marks["random"],
            "" if ours is None else f"{ours['spent'][0]:.1%} to {ours['spent'][1]:.1%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    shares = sorted(
        one["images_search"] / one["images_retrain"] for found in budgets if (one := found["methods"]["ours"])
    )
    seen = " to ".join(dict.fromkeys(f"{share:.2f}" for share in (shares[0], shares[-1])))
    notes = [
        f"Float network: {content['float']:.2f} %. A search sees {seen} retrainings' images.",
        mlperf_tiny(content),
        *([ALIKE] if any(MIXED in line for line in lines) else []),
    ]
    return "\n".join([*lines, "", *notes, *corrected(content), *pooled(content)])


def marked(pair: dict[str, Any] | None, mark: str) -> str:
    """A paired difference, where there is one, and the mark of what was not computed alike."""
    return interval(pair) + mark if pair else ""


def headline(content: dict[str, Any]) -> str:
    """What is won against uniform networks, and lost, in a sentence; p-values of 0.05, corrected for the budgets, decide."""
    shown, open_at, seeds = [], [], set()
    half = (content["pooled"] or {"half": 0.0})["half"]
    for found in content["budgets"].values():
        pair = found["differences"]["ours - uniform"]
        if pair is None or "p_holm" not in pair:
            continue
        seeds.add(pair["n"])
        if pair["p_holm"] < SHOWN:
            edge = " (less than an interval by the pooled spread asks for)" if abs(pair["mean"]) <= half else ""
            shown.append(f"{pair['mean']:+.2f} points at {found['bops']:.1%}{edge}")
        else:
            open_at.append(f"no difference is shown at {found['bops']:.1%}")
    if not seeds:
        return "ResNet-8 on CIFAR-10: nothing was compared with uniform networks of equal cost."
    numbers = " to ".join(str(n) for n in sorted({min(seeds), max(seeds)}))
    return (
        f"ResNet-8 on CIFAR-10, test accuracy minus that of the best uniform network of equal cost, {numbers} seeds: "
        f"{'; '.join([*shown, *open_at])} of the 8-bit BOPs."
    )


def details(content: dict[str, Any]) -> str:
    """What else the rows of a verdict tell, as a list."""
    notes = [*loosened(content), *shared(content), *spread(content), *elsewhere(content), *gaps(content)]
    return "\n".join(f"- {note}" for note in notes)


def mlperf_tiny(content: dict[str, Any]) -> str:
    """The cheapest of our networks that reach MLPerf Tiny's accuracy for ResNet-8 on the mean, if there is one."""
    reached = [
        found["bops"] for found in content["budgets"].values()
        if (one := found["methods"]["ours"]) and one["mean"] >= MLPERF_TINY
    ]  # fmt: skip
    if reached:
        return f"MLPerf Tiny's {MLPERF_TINY} % is reached at {min(reached):.2%}."
    where = "nor does the float one" if content["float"] < MLPERF_TINY else "the float one does"
    return f"None of dnas' networks reaches MLPerf Tiny's {MLPERF_TINY} %, {where}."


def corrected(content: dict[str, Any]) -> list[str]:
    """p-values of the differences, corrected for the number of budgets."""
    lines = []
    for other in ("uniform", "random"):
        pairs = {f"{b['bops']:.2%}": b["differences"][f"ours - {other}"] for b in content["budgets"].values()}
        shown = [f"{pair['p_holm']:.2g} at {budget}" for budget, pair in pairs.items() if pair]
        if shown:
            lines.append(f"p of dnas - {other}, corrected for the number of budgets (Holm): {', '.join(shown)}.")
    return lines


def loosened(content: dict[str, Any]) -> list[str]:
    """What it gives to go around a looser budget."""
    return [
        f"A search around a looser budget (`search.loosen`) minus one around the budget itself at {found['bops']:.2%}, paired: "
        f"{interval(pair)}; on validation images {interval(found['ours - within, validation'])}"
        f"{MIXED if found['mixed']['within'] else ''}."
        for found in content["budgets"].values()
        if (pair := found.get("ours - within"))
    ]


def shared(content: dict[str, Any]) -> list[str]:
    """One search for all budgets, beside one per budget."""
    shown = []
    pairs = [(f"at {found['bops']:.2%}", found["one search"]) for found in content["budgets"].values()]
    for where, pair in [*pairs, ("on their mean", content["one search"])]:
        if pair:
            shows = "not worse" if pair["not_worse"] else "not shown to be no worse"
            shown.append(f"{interval(pair)} {where} ({shows} by {pair['margin']} points)")
    return (
        [f"One search for all budgets minus one per budget, all of them trained, paired: {'; '.join(shown)}."]
        if shown
        else []
    )


def spread(content: dict[str, Any]) -> list[str]:
    """What of the spread comes from searches, and what from retraining one network."""
    lines = []
    for found in content["budgets"].values():
        drawn = found["random architectures"]
        for split, name in ((found["variance"], ""), (found["variance of rounds"], " of rounds that measure")):
            if split is None:
                continue
            random = f", {deviation(drawn)} between {drawn['n']} random architectures" if drawn else ""
            lines.append(
                f"Standard deviations{name} at {found['bops']:.2%}, with 95 % intervals: {deviation(split['search'])} between "
                f"searches, {deviation(split['retraining'])} between retrainings ({split['searches']} searches, "
                f"{split['retrainings']} retrainings of each){random}."
            )
            drawn = None  # said once
    return lines


def pooled(content: dict[str, Any]) -> list[str]:
    """How wide intervals are with the spread that all cells share."""
    found = content["pooled"]
    if found is None:
        return []
    return [
        f"The spread between seeds, pooled over both methods and all budgets, is {found['sd']:.2f} (of single ones "
        f"{found['least']:.2f} to {found['most']:.2f}); with it an interval of dnas - uniform would reach {found['half']:.2f} "
        "points to either side."
    ]


def gaps(content: dict[str, Any]) -> list[str]:
    """Supernet accuracy of the relaxed, the drawn and the selected networks, with what they cost."""
    lines = []
    for method, label in (("ours", "dnas"), ("trained", "with a supernet trained (search.train=always)")):
        shown = []
        for found in content["budgets"].values():
            if gap := found["gaps"][method]:
                networks = ", ".join(
                    f"{name} {one['accuracy']:.1f} ({one['bops']:.1%})" for name, one in gap["networks"].items()
                )
                shown.append(f"{gap['mean']:+.1f} at {found['bops']:.2%}: {networks}")
        if shown:
            lines.append(
                f"Relaxed minus selected network, {label}, validation accuracy in the supernet before retraining (BOPs): "
                f"{'; '.join(shown)}."
            )
    return lines


def elsewhere(content: dict[str, Any]) -> list[str]:
    """What the processor makes of our search and training."""
    pairs = [(found["bops"], pair) for found in content["budgets"].values() if (pair := found["elsewhere"])]
    if not pairs:
        return []
    searched = {"ours": "**dnas**", "untrained": "rounds that measure"}
    shown = "; ".join(f"{searched[pair['method']]} {interval(pair)} at {bops:.2%}" for bops, pair in pairs)
    here, there = (
        " and ".join(sorted({name for _, pair in pairs for name in pair[place]})) for place in ("here", "processors")
    )
    return [f"Searched and trained on {here} minus the same on {there}, paired: {shown}."]


def binas(content: dict[str, Any]) -> str:
    """BINAS beside uniform and random networks of equal cost, budget by budget."""
    heads = (
        "budget, shares of 8-bit", "best uniform", "random", "**dnas, BINAS**", "dnas - uniform, paired",
        "the same on validation images", "dnas - random", "most spent",
    )  # fmt: skip
    lines = head(heads)
    for found in content["budgets"].values():
        methods, uniform = found["methods"], mean(found["methods"]["uniform"])
        marks = {other: MIXED if one else "" for other, one in found["mixed"].items()}
        if not any(methods[method] for method in ("binas", "uniform", "random")):
            continue
        cells = [
            limits(found),
            f"{uniform}, {', '.join(found['uniform'])}, at {methods['uniform']['cost']:.1%} of the BOPs" if uniform else "",
            mean(methods["random"]), mean(methods["binas"]), marked(found["binas - uniform"], marks["uniform"]),
            marked(found["validation"], marks["uniform"]), marked(found["binas - random"], marks["random"]),
            ", ".join(f"{max(values):.1%}" for values in found["spent"].values() if values),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"Float network: {content['float']:.2f} %.", *([ALIKE] if any(MIXED in line for line in lines) else [])]
    if own := next((one for found in content["budgets"].values() if (one := found["methods"]["binas"])), None):
        trained = [
            one["images_retrain"] for found in content["budgets"].values() if (one := found["methods"]["uniform"])
        ]
        notes.append(
            f"The search, one for all budgets, sees {own['images_search']:,.0f} images, a retraining from it "
            f"{own['images_retrain']:,.0f}" + (f", a uniform network at most {max(trained):,.0f}." if trained else ".")
        )
    for other in ("uniform", "random"):
        pairs = {limits(found): found[f"binas - {other}"] for found in content["budgets"].values()}
        shown = [f"{pair['p_holm']:.2g} at {name}" for name, pair in pairs.items() if pair]
        if shown:
            notes.append(f"p of dnas - {other}, corrected for the number of budgets (Holm): {'; '.join(shown)}.")
    starts = {
        label: sorted({start for found in content["budgets"].values() for start in found["starts"][method]})
        for method, label in (("binas", "dnas"), ("uniform", "uniform"), ("random", "random"))
    }
    chosen = [f"{label} from {' and '.join(found)} weights" for label, found in starts.items() if found]
    notes += [f"The better start: {', '.join(chosen)}."] if chosen else []
    for found in content["budgets"].values():
        if pair := found["binas - uniform_longer"]:
            longer = found["methods"]["uniform_longer"]
            images = f"{longer['images_retrain']:,.0f}"
            notes.append(
                f"The best uniform network at {limits(found)}, trained on {images} images: {mean(longer)}; dnas minus it, "
                f"paired: {marked(pair, MIXED if found['mixed']['uniform_longer'] else '')}."
            )
        pairs = {other: interval(pair) for other, pair in found["recentred once"].items() if pair}
        if pairs:
            each = "; ".join(f"minus {other} {text}" for other, text in pairs.items())
            once = f"{mean(found['methods']['recentred_once'])} at {limits(found)}"
            notes.append(f"With a pool of 1,000 records, recentred once ({once}), paired: {each}.")
    if checked := content["latency"]:
        low, high = checked["tau_interval"]
        notes.append(
            f"Latencies are sums over a table of layers. Of {checked['n']} whole networks they miss "
            f"{checked['median_error']:.1%} at the median (networks timed twice differ by {checked['noise']:.1%}); Kendall's "
            f"tau {checked['tau']:.2f}, {low:.2f} to {high:.2f}; the goals were 5% and 0.9."
        )
    return "\n".join([*lines, "", *notes])


def limits(found: dict[str, Any]) -> str:
    """The bounds of a budget."""
    names = {"bops": "BOPs", "latency_us": "latency"}
    return ", ".join(f"{label} {found[name]:.0%}" for name, label in names.items() if name in found)


def bridges(content: dict[str, Any]) -> str:
    """Sources of scores for the one selector, budget by budget."""
    heads = (
        "budget", "scores from", "test accuracy, %", "minus best uniform, paired", "p (Holm, over a budget's methods)",
        "default minus it, paired", "p (Holm)", "the same on validation images", "images of the search",
        "of search and training",
    )  # fmt: skip
    lines = head(heads)

    def p_value(pair: dict[str, Any] | None) -> str:
        return format(pair["p_holm"], ".2g") if pair and "p_holm" in pair else ""

    for budget in content["budgets"]:
        for row in budget["rows"]:
            uniform, ours, images = row["minus uniform"], row["ours minus it"], row["images_search"]
            marks = [MIXED if one and pair else "" for one, pair in zip(row["mixed"], (uniform, ours), strict=True)]
            cells = [
                f"{budget['bops']:.2%}", row["label"], mean(row), interval(uniform) + marks[0], p_value(uniform),
                interval(ours) + marks[1], p_value(ours), interval(row["validation"]) + marks[1], f"{images:,.0f}",
                f"{images + row['images_retrain']:,.0f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ALIKE])


def targets(content: dict[str, Any]) -> str:
    """What was to be shown, and what was found."""
    lines = head(("figure", "target", "found", "met"))
    for one in content["rows"]:
        lines.append(f"| {one['figure']} | {one['target']} | {one['found']} | {'yes' if one['met'] else '**no**'} |")
    return "\n".join(lines)


def thesis_grid(content: dict[str, Any]) -> str:
    """How far architectures of one cost differ, and how far the retrainings of each."""
    heads = (
        "filters varied in", "compositions x retrainings", "BOPs, of (3,3)'s", "means of compositions, %",
        "between architectures, points", "between retrainings, points", "p of no difference",
        "the three on validation images",
    )  # fmt: skip
    lines = head(heads)
    for part, found in content["summary"].items():
        (low, high), validation = found["means"], found["validation"]
        again = f"{deviation(validation['architecture'])}; {deviation(validation['retraining'])}; {validation['p']:.2g}"
        lines.append(
            f"| {part} | {found['n']} x {found['seeds']} | {found['spent'][0]:.1%} to {found['spent'][1]:.1%} | {low:.2f} to "
            f"{high:.2f} | {deviation(found['architecture'])} | {deviation(found['retraining'])} | {found['p']:.2g} | {again} |"
        )
    return "\n".join([*lines, "", "Between: standard deviations with 95 % intervals."])


def ablation(content: dict[str, Any]) -> str:
    """Changes of the search, each beside what it is compared with."""
    heads = (
        "budget", "change", "validation accuracy, %", "minus", "paired, 95 %", "p (Holm, over a budget's changes)",
        "images of the search",
    )  # fmt: skip
    lines = head(heads)
    for budget in content["budgets"].values():
        for name, found in budget["changes"].items():
            pair = found["difference"]
            cells = [
                f"{budget['bops']:.2%}", name, mean(found), found["against"] or "",
                f"{interval(pair)}{MIXED if found['mixed'] else ''}",
                format(pair["p_holm"], ".2g") if pair and "p_holm" in pair else "", f"{found['images_search']:,.0f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    mixed = any(found["mixed"] for budget in content["budgets"].values() for found in budget["changes"].values())
    several = f" {MIXED.strip()}: rows of other code or another processor." if mixed else ""
    return "\n".join([*lines, "", f"Without an interval where there is but one seed.{several}"])


def demo(content: dict[str, Any]) -> str:
    """The networks of a sweep's report, and their paired differences."""
    (network,) = content["networks"]
    rows = [network["float"], *sorted(network["groups"], key=lambda g: list(LABELS).index(g["method"]))]
    lines = [demo_row(row) for row in rows if row]
    for pair in network["paired"]:
        if pair["low"] is not None:
            lines.append(
                f"| dnas - {pair['minus']}, paired | {pair['mean']:+.2f}, 95 % interval {pair['low']:+.2f} to "
                f"{pair['high']:+.2f} | | | |"
            )
    return "\n".join([HEADER, *lines])
