"""Does the search pay? `python benchmarks/cifar10_pareto.py /path/to/cifar10.zip` adds what is missing to the rows.

CIFAR-10 (JPEG): 45,000 images for weights and choices, 5,000 for every decision, the 10,000 test images once per row. All
methods start from one float network and get the same recipe. Ours sees 265,408 images in search and retraining, or 269,888
where its search trains nothing; baselines that start from float weights see 269,952 in training alone. The other searches below
see more than such baselines with their retraining (binas with one search for all budgets), and every row holds its images. At
every budget:

- ours: the default. Where bits alone meet the budget with all filters, at the three larger budgets, options are switched in the
  float network at 8 bits and networks start from its weights; at 3.5 % the search trains its supernet, which they start from.
- trained (not by default): the same with a supernet that is trained at the larger budgets, too (search.train=always).
- uniform: pairs of widths at the largest share of filters that fits are trained for one epoch, the best two in full with seed
  0, the better one of these from the supernet of the trained search, too, then with every seed from the start that was better
  (--both-starts: from both). The best of a seed's is its baseline. All of this is decided on the validation images.
- random: architectures at 96 to 100 % of the budget; seed 0 tries both starts, the other seeds the better one.
- greedy, scores (not by default): selected by post-training sensitivities, greedily or exactly. score_function, gumbel: other
  searches; seed 0 tries both starts.
- within (not by default): at 3.5 % our search without a looser budget to go around (search.loosen=1).
- sensitivities (not by default): what search=sensitivities selects, trained as where ours trains nothing; with 284,864 images.
- untrained (not by default): rounds of measuring the float network around what the one before selects (search.epochs=0).
- variance (not by default): our networks, retrained with further seeds. frontier: what the scores of the trained search at
  W2A2's cost select at the other budgets, retrained from its supernet: one search in place of four. binas: one supernet and
  estimator per seed, a selection for every budget; seed 0 tries both starts, the other seeds the better one.

Everything resumes, from the rows in benchmarks/results/cifar10_pareto.json as well, which gets one per finished training. Runs
of the same images, code and processor give the same rows. Where two methods select one network for a seed and train it from
float weights on as many images, one training serves both; the second row says whose (`trained_as`).
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process

from pareto_plan import COUNTED, RANDOM, Plan, Searches, restore, side_by_side
from pareto_runs import Setting, alone, float_network, processes, uniform_rules

from dnas.search.budget import Budget
from dnas.select.reference import bits_suffice

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cifar10_pareto.json"
BUDGETS = {
    "w2a2": {"bops": 0.06913466}, "3.5%": {"bops": 0.035}, "w3a3": {"bops": 0.14891832}, "w4a4": {"bops": 0.25884621},
}  # fmt: skip
"""Shares of the BOPs of the full network at 8 bits; three are the exact costs of uniform networks."""
TRAINED_EPOCHS, UNTRAINED_EPOCHS = 4, 5
"""Of training what a search selects that trains a supernet, or nothing: as many as leave all images no more than what baselines
get from float weights."""
FRONTIER_BUDGET = "w2a2"
"""Whose search serves all budgets in the rows of role `frontier`, and of method `binas`."""
VARIANTS = {
    "trained": ("search.train=always",),
    "within": ("search.loosen=1",),
    "sensitivities": ("search=sensitivities",),
    "untrained": ("search.epochs=0",),
    "binas": ("search=binas", "search.epochs=1", "search.distill=0.9", "search.band=[0.03,0.3]"),
    "gumbel": ("search=gumbel", "search.epochs=1", "search.distill=0.9", "search.warmup=0.1"),
    "score_function": (
        "search=score_function", "search.epochs=1", "search.distill=0.9", "search.warmup=0.1", "search.scores=logits",
    ),
}  # fmt: skip
"""Settings of searches that are not ours; `within` goes around the budget itself wherever that is; the score
function's as in Zur's thesis, with a leave-one-out baseline."""


METHODS: dict[str, Callable[[Plan, argparse.Namespace], Any]] = {
    "ours": lambda plan, given: plan.searched(),
    "trained": lambda plan, given: plan.other("trained"),
    "uniform": lambda plan, given: plan.uniform(
        uniform_rules(plan.setting, BUDGETS[plan.budget_id]), both=given.both_starts
    ),
    "random": lambda plan, given: plan.random(given.random),
    "greedy": lambda plan, given: plan.sensitivity("greedy", "greedy"),
    "scores": lambda plan, given: plan.sensitivity("scores", "exact"),
    "score_function": lambda plan, given: plan.by_logits("score_function"),
    "gumbel": lambda plan, given: plan.by_logits("gumbel"),
    "within": lambda plan, given: plan.other("within"),
    "untrained": lambda plan, given: plan.searched(plan.cold("untrained", UNTRAINED_EPOCHS)),
    "sensitivities": lambda plan, given: plan.searched(plan.cold("sensitivities", UNTRAINED_EPOCHS)),
    "variance": lambda plan, given: plan.variance(),
    "frontier": lambda plan, given: plan.reselected("trained", "frontier", "trained", FRONTIER_BUDGET),
    "binas": lambda plan, given: plan.binas(FRONTIER_BUDGET),
}
"""What each trains at a budget."""


def setting_of(data: str, runs: Path) -> Setting:
    """The benchmark's."""
    epochs = (f"retrain.epochs={TRAINED_EPOCHS}",)
    return Setting(str(Path(data).resolve()), runs.resolve(), RESULT, "resnet8", "cifar10_resnet8", epochs, VARIANTS)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10.zip")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "cifar10_pareto")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=["ours", "uniform", "random"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--random", type=int, default=RANDOM, help="random architectures of a seed")
    parser.add_argument(
        "--both-starts", action="store_true", help="uniform networks of every seed from both starts; the better one counts",
    )  # fmt: skip
    parser.add_argument(
        "--fresh", action="store_true",
        help="train these networks again, in a new --runs; what counted and was trained on another processor is kept beside "
        "them, rows that start from a supernet of theirs are dropped",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    with alone(given.runs / "lock", RESULT.with_suffix(".lock")):
        run(replace(setting_of(given.data, given.runs), shared=not given.fresh), given)


def again(row: dict[str, Any], given: argparse.Namespace) -> bool:
    """Whether `--fresh` asks for this row's network to be trained anew."""
    method = row["role"] if row["role"] in ("frontier", "variance") else row["method"]
    seed = row["search_seed"] if method == "variance" else row["retrain_seed"]
    counted = row["role"] in (*COUNTED, method)
    return bool(
        given.fresh
        and counted
        and method in given.methods
        and row["budget_id"] in given.budgets
        and seed in given.seeds
    )


def run(setting: Setting, given: argparse.Namespace) -> None:
    """Trains what is missing."""
    float_network(setting, BUDGETS["w2a2"])
    restore(setting, lambda row: again(row, given))
    with processes(given.jobs) as pool:
        searches = Searches(setting, pool, BUDGETS)
        space = setting.open(setting.runs / "float").space
        plans = []
        for budget in given.budgets:
            spared = bits_suffice(space, Budget(**BUDGETS[budget]))
            plans.append(
                Plan(
                    setting, pool, BUDGETS, budget, given.seeds, "trained" if spared else "ours", None, searches,
                    UNTRAINED_EPOCHS if spared else None,
                )
            )  # fmt: skip
        for method in given.methods:
            own = [plan for plan in plans if differs(method, plan)]
            list(side_by_side(pool, [partial(METHODS[method], plan, given) for plan in own]))


def differs(method: str, plan: Plan) -> bool:
    """Whether a method is another one than ours at a budget; `trained` and `within` are so at some alone."""
    if method == "frontier":
        return plan.budget_id != FRONTIER_BUDGET
    trains = plan.ours.start == "supernet"
    return {"trained": not trains, "within": trains}.get(method, True)


if __name__ == "__main__":
    main()
