"""What the benchmark was to show, and what it found: `pareto_verdict.py` writes the table.

A target that an interval has to show is met where the interval does; those for a mean, where the mean does.
"""

from collections.abc import Mapping
from typing import Any

from table_cells import deviation, interval, tau
from tables_estimators import leave_one_out

GAIN, GAIN_AT = 1.5, ("3.5%", "w2a2")
"""Points that ours is to be ahead of uniform networks, and at which budgets."""
SPENT, GAP, RATIO, TAU, RANKED = 0.98, 1.0, 10.0, 0.7, 30
THESIS, AHEAD = 80.1, 8.0
"""Accuracy (%) of W2A2 by the code of Zur's thesis, ResNet-20, and points that ours is to be ahead of it at its cost."""
Row = dict[str, Any]


def row(figure: str, target: str, found: str, met: bool) -> Row:
    """A line of the table."""
    return {"figure": figure, "target": target, "found": found, "met": met}


def targets(
    verdict: Mapping[str, Any],
    estimators: Mapping[str, Any],
    thesis: Mapping[str, Any] | None = None,
    rank: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The table.

    Args:
        verdict: of ResNet-8's rows.
        estimators: of the benchmark of gradient estimators.
        thesis: verdict of ResNet-20's rows, if there are any.
        rank: of the benchmark of rankings, if there is one.
    """
    rows: list[Row] = []
    budgets = verdict["budgets"]
    for name, content in budgets.items():
        at = f"{content['bops']:.2%}"
        pair = content["differences"]["ours - uniform"]
        if pair:
            least = GAIN if name in GAIN_AT else None
            target = "interval above 0" + (f", mean at least {least:+.1f}" if least else "")
            met = pair["low"] > 0 and (least is None or pair["mean"] >= least)
            rows.append(row(f"dnas - best uniform, {at}", target, interval(pair), met))
    pairs = [c["differences"]["ours - random"] for c in budgets.values() if c["differences"]["ours - random"]]
    if pairs:
        lows = ", ".join(f"{pair['low']:+.2f}" for pair in pairs)
        rows.append(
            row(
                "dnas - random, each budget",
                "interval above 0",
                f"from {lows} upwards",
                all(p["low"] > 0 for p in pairs),
            )
        )
    own = [content["methods"]["ours"] for content in budgets.values() if content["methods"]["ours"]]
    if own:
        least, most = min(one["spent"][0] for one in own), max(one["spent"][1] for one in own)
        target = f"{SPENT:.0%} at least, never over"
        rows.append(row("budget spent by dnas", target, f"{least:.1%} to {most:.1%}", least >= SPENT and most <= 1))
        share = max(one["images_search"] / one["images_retrain"] for one in own)
        rows.append(row("images of a search", "1 retraining's at most", f"{share:.2f}", share <= 1))
    for content in budgets.values():
        for split, name in ((content["variance"], ""), (content["variance of rounds"], " (of rounds that measure)")):
            if split is None:
                continue
            search, retraining = split["search"], split["retraining"]
            figure = f"spread between searches, {content['bops']:.2%}{name}"
            shown, met = f"{deviation(search)}; {deviation(retraining)}", search["sd"] < retraining["sd"]
            rows.append(row(figure, "less than between retrainings, as estimated", shown, met))
    found = [(c["bops"], c["gaps"]["ours"]["mean"]) for c in budgets.values() if c["gaps"]["ours"]]
    if found:
        shown = ", ".join(f"{gap:+.1f} at {bops:.2%}" for bops, gap in found)
        met = all(gap < GAP for _, gap in found)
        rows.append(row("relaxed minus selected, before retraining", f"under {GAP:g} point", shown, met))
    for at, pair in [(f"{c['bops']:.2%}", c["one search"]) for c in budgets.values()] + [
        ("mean of these", verdict["one search"])
    ]:
        if pair:
            figure, target = (
                f"one search for all budgets, minus one each (trained), {at}",
                f"not worse by {pair['margin']:g}",
            )
            rows.append(row(figure, target, interval(pair), pair["not_worse"]))
    ratios = leave_one_out(estimators)
    shown = ", ".join(f"{ratio:.0f}" for ratio in sorted(ratios))
    rows.append(
        row(
            "leave-one-out cuts the score function's deviation",
            f"{RATIO:g} times at least",
            f"{shown} times",
            min(ratios) >= RATIO,
        )
    )
    if rank:
        for group in ("uniform", "random"):
            agreement = rank["agreement"][group]["one_shot, trained"]
            figure = f"Kendall's tau, supernet against training, {agreement['n']} {group} networks"
            met = agreement["tau"] >= TAU and agreement["n"] >= RANKED
            rows.append(row(figure, f"{TAU:g} at least, {RANKED} networks", tau(agreement), met))
    if thesis:
        (content,) = thesis["budgets"].values()
        methods, target = content["methods"], f"{THESIS + AHEAD:.1f} at least, 3 seeds"
        if one := methods["ours"] or methods["untrained"]:
            shown = f"{one['mean']:.2f} ({one['n']})" + ("" if methods["ours"] else ", of rounds that measure")
            met = one["mean"] >= THESIS + AHEAD and one["n"] >= 3
            rows.append(row(f"ResNet-20 at {content['bops']:.2%}, %", target, shown, met))
    return {"type": "dnas.Targets", "version": 1, "rows": rows}
