"""Which networks a benchmark of equal costs trains, in which order, and which rows count."""

import json
import re
import statistics
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

from pareto_runs import ELSEWHERE, Job, Setting, arithmetic, digest, search, train, wide

from dnas.space.processor import instructions, processor
from quant.files import write_atomically

FLOAT_EPOCHS = 6
"""Of training from float weights: in ResNet-8's benchmark at least the images of our search and retraining together."""
RANDOM = 3
"""Random architectures of a seed."""
BOTH_STARTS = ("random", "binas", "gumbel", "score_function")
"""Methods whose networks seed 0 trains from both starts; those of the better one count."""
COUNTED = ("main", "candidate")
"""Roles of rows that a verdict may count; others screen, or retrain what one of these is."""
WRITING = threading.Lock()
WITHOUT_AVX512 = ("AMD EPYC",)
"""Processors that rows of before `instructions` name."""
FINALISTS = 2
"""Uniform networks that seed 0 trains in full after an epoch of all of them."""


def finished(setting: Setting) -> list[dict[str, Any]]:
    """All rows of networks that start from the float network of the run folder, its own first."""
    float_row, weights = setting.runs / "float" / "row.json", setting.runs / "float" / "float.safetensors"
    files = [*([float_row] if float_row.exists() else []), *sorted((setting.runs / "rows").glob("*.json"))]
    rows = [{**json.loads(file.read_text(encoding="utf-8")), "key": file.stem} for file in files]
    here = digest(weights)
    return with_roles([row for row in rows if row["float"] == here], setting.decided)


def restore(setting: Setting, fresh: Callable[[dict[str, Any]], bool] = lambda row: False) -> None:
    """Takes the rows of the result file that the run folder lacks for finished, if they start from the same float network.

    Args:
        setting: where.
        fresh: which rows are not taken: they are to be trained again. Nor are those that start from a supernet of theirs, nor
            an ablation's of their searches. One that counted and names another processor than this one is kept beside its
            successor.

    Raises:
        RuntimeError: the run folder holds another row than the result file for the same network.
    """
    (setting.runs / "rows").mkdir(parents=True, exist_ok=True)
    here = digest(setting.runs / "float" / "float.safetensors")
    rows = json.loads(setting.result.read_text(encoding="utf-8")) if setting.result.exists() else []
    again = {
        _search(row) for row in rows if row["role"] in COUNTED and row["method"] == row.get("search") and fresh(row)
    }
    gone = {row.get("key") for row in rows if fresh(row)}
    for row in rows:
        if row.get("trained_as") in gone:  # the row of that name is another training soon
            row = {name: value for name, value in row.items() if name != "trained_as"}
        if row["method"] == "float" or (row["model"], row["float"]) != (setting.model, here):
            continue
        if fresh(row):
            there = (row.get("processor"), row.get("instructions", instructions()))
            if row["role"] != "main" or there in ((None, instructions()), (processor(), instructions())):
                continue
            name = re.sub(r"\W+", "_", " ".join(filter(None, (there[0], row.get("instructions")))))
            row = {**row, "role": ELSEWHERE, "key": f"{row['key']}-{name}"}
        elif _search(row) in again and (row["start"] == "supernet" or row["role"] == "ablation"):
            continue
        file = setting.runs / "rows" / f"{row['key']}.json"
        if not file.exists():
            write_atomically(file, json.dumps(row, indent=1))
        elif _differs(json.loads(file.read_text(encoding="utf-8")), row):
            raise RuntimeError(
                f"{file} and {setting.result} hold two trainings of one network; remove that of the run folder, or give "
                "another --runs"
            )


def _search(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("search"), row.get("search_budget") or row["budget_id"], row["search_seed"]


def _differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return any(one[name] != other[name] for name in ("accuracy", "validation_accuracy", "seconds", "commit"))


def write(setting: Setting) -> None:
    """The result file, from all finished rows; by one thread at a time, so that none writes older rows over newer ones."""
    with WRITING:
        write_atomically(setting.result, json.dumps(finished(setting), indent=1) + "\n")


def with_roles(rows: Sequence[dict[str, Any]], decided: str | None = None) -> list[dict[str, Any]]:
    """Of the uniform rows of a cell the best on validation is `main`; of methods with both starts those of the better one.

    Where a cell has uniform rows of several arithmetics, those of the latest are judged.

    Where one budget has decided which start that is, only rows of this one are, of uniform networks as well.
    """
    found = [dict(row) for row in rows]
    judged = [row for row in found if row["role"] not in ("screen", ELSEWHERE)]
    for row in judged:
        if row["method"] not in ("uniform", *BOTH_STARTS):
            continue
        shared = better_start(judged, row["method"], decided) if decided else None
        if row["method"] == "uniform":
            cell = [r for r in judged if _cell(r) == _cell(row) and shared in (None, r["start"])]
            newest = max((arithmetic(r) for r in cell), default=0)
            cell = [r for r in cell if arithmetic(r) == newest]
            best = max(cell, key=lambda r: (r["validation_accuracy"], r["architecture"], r["start"]), default=None)
            row["role"] = "main" if row is best else "candidate"
        else:
            start = shared or better_start(judged, row["method"], row["budget_id"])
            row["role"] = "main" if start in (None, row["start"]) else "candidate"
    return found


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["budget_id"], row["retrain_seed"]


def better_start(rows: Sequence[dict[str, Any]], method: str, budget_id: str) -> str | None:
    """Which start gives a method's architectures that seed 0 trained from both the higher mean validation accuracy.

    None where it has trained none from both by the same arithmetic.
    """
    found: dict[str, dict[tuple[str, int], float]] = {"float": {}, "supernet": {}}
    for row in rows:
        if _cell(row) == (method, budget_id, 0) and row["role"] not in ("screen", ELSEWHERE):
            found[row["start"]][row["architecture"], arithmetic(row)] = row["validation_accuracy"]
    both = set(found["float"]) & set(found["supernet"])
    if not both:
        return None
    means = {start: statistics.mean(values[name] for name in both) for start, values in found.items()}
    return max(means, key=lambda start: means[start])


def network(row: Mapping[str, Any]) -> str:
    """What a row trains: the architecture where that starts from float weights, else what the supernet is known by."""
    return str(row.get("supernet", "")) if row["start"] == "supernet" else json.dumps(row["options"], sort_keys=True)


def rows_of_search(
    rows: Sequence[dict[str, Any]], budget_id: str, networks: Mapping[int, tuple[Any, ...]]
) -> list[dict[str, Any]]:
    """Our rows that count and train these networks, given by search seed."""
    own = [row for row in rows if (row["method"], row["budget_id"], row["role"]) == ("ours", budget_id, "main")]
    return [row for row in own if made(row) == networks.get(row["search_seed"])]


def made(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What has to be the same for rows to be retrainings of one network: that, and `computed`."""
    return network(row), *computed(row)


def computed(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """How a row was trained, apart from seeds: whether by a processor without AVX-512, and the revision of the arithmetic."""
    return narrow(row), arithmetic(row)


def narrow(row: Mapping[str, Any]) -> bool:
    """Whether a row names a processor without AVX-512; those that name none were trained with it."""
    return not wide(row.get("instructions", "" if row.get("processor") in WITHOUT_AVX512 else "avx512f"))


class Searches:
    """Submits every search once, whichever of the plans that run side by side asks for it first."""

    def __init__(self, setting: Setting, pool: Executor, budgets: Mapping[str, Mapping[str, float]]) -> None:
        """No search is submitted yet.

        Args:
            setting: where, and by which experiment.
            pool: processes.
            budgets: all of the benchmark, by name.
        """
        self.setting, self.pool, self.budgets = setting, pool, budgets
        self.submitted: dict[tuple[str, str, int], Future[Any]] = {}
        self.lock = threading.Lock()

    def wait(self, needed: Iterable[tuple[str, str, int]]) -> None:
        """Returns when these are finished: (variant, budget, seed)."""
        with self.lock:
            found = []
            for key in dict.fromkeys(needed):
                if key not in self.submitted:
                    variant, budget_id, seed = key
                    self.submitted[key] = self.pool.submit(
                        search, self.setting, variant, budget_id, self.budgets[budget_id], seed
                    )
                found.append(self.submitted[key])
        for future in found:
            future.result()


def side_by_side(pool: Executor, tasks: Sequence[Callable[[], Any]]) -> Iterable[Any]:
    """Results of tasks that mostly wait for the same pool of processes, as they finish; none of them leaves it idle.

    When one fails, what the others still wait for is not started.
    """
    with ThreadPoolExecutor(max(len(tasks), 1)) as threads:
        try:
            for done in as_completed([threads.submit(task) for task in tasks]):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Plan:
    """What is trained at one budget, in the order in which it is known."""

    def __init__(
        self, setting: Setting, pool: Executor, budgets: Mapping[str, Mapping[str, float]], budget_id: str,
        seeds: Sequence[int], supernet: str = "ours", shared: str | None = None, searches: Searches | None = None,
        untrained: int | None = None,
    ) -> None:  # fmt: skip
        """Nothing is trained yet.

        Args:
            setting: where, and by which experiment.
            pool: processes.
            budgets: all of the benchmark, by name.
            budget_id: name of this plan's.
            seeds: of search and retraining.
            supernet: variant of the search whose supernet the baselines may start from.
            shared: budget that its search is for; None is this plan's own.
            searches: those of all plans that run side by side; None is this plan's own.
            untrained: epochs that our networks get from float weights where our search trains nothing; None where it trains.
        """
        self.setting, self.pool, self.budgets, self.budget_id, self.seeds = setting, pool, budgets, budget_id, seeds
        self.searches = searches or Searches(setting, pool, budgets)
        own = budgets[budget_id]
        self.warm = Job("ours", "main", budget_id, own, "selected", "supernet", supernet, 0, 0, search_budget=shared)
        self.ours = self.warm if untrained is None else self.cold("ours", untrained)
        self.floating = Job("float", "candidate", budget_id, own, "", "float", None, None, 0, FLOAT_EPOCHS)

    def trained(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The rows of jobs, trained side by side after the searches that they need; the result file grows with every one."""
        new = [job for job in jobs if not (self.setting.runs / "rows" / f"{job.key}.json").exists()]
        needed = [(job.search, job.search_budget or job.budget_id, job.search_seed) for job in new]
        self.searches.wait(
            (variant, name, seed) for variant, name, seed in needed if variant is not None and seed is not None
        )
        waiting = {self.pool.submit(train, self.setting, job): job for job in jobs}
        for done in as_completed(waiting):
            row = done.result()
            print(
                row["method"], row["budget_id"], row["architecture"], row["start"], f"{row['accuracy']:.2f}", flush=True
            )
            write(self.setting)
        return [future.result() for future in waiting]

    def cold(self, variant: str, epochs: int) -> Job:
        """What a search that trains nothing selects, from float weights."""
        return replace(self.warm, method=variant, search=variant, start="float", epochs=epochs)

    def searched(self, job: Job | None = None) -> None:
        """Our networks, or those of another job."""
        self.trained([replace(job or self.ours, search_seed=seed, retrain_seed=seed) for seed in self.seeds])

    def other(self, variant: str) -> None:
        """Networks of another variant of the search, from its supernet."""
        self.searched(replace(self.warm, method=variant, search=variant))

    def by_logits(self, variant: str) -> None:
        """Networks of a search by logits."""
        self._both_starts(variant, lambda seed: ["selected"], replace(self.warm, search=variant))

    def reselected(self, method: str, role: str, variant: str, budget_id: str) -> None:
        """What the scores of a search for another budget select at this one, retrained from its supernet."""
        job = replace(
            self.warm, method=method, role=role, architecture="reselected", search=variant, search_budget=budget_id
        )
        self.trained([replace(job, search_seed=seed, retrain_seed=seed) for seed in self.seeds])

    def sensitivity(self, method: str, rule: str) -> None:
        """Networks selected by post-training sensitivities, from float weights."""
        job = replace(self.floating, method=method, role="main", architecture=f"sensitivity {rule}")
        self.trained([replace(job, retrain_seed=seed) for seed in self.seeds])

    def variance(self) -> None:
        """Our networks, retrained with two further seeds, three where the row that counts is another network."""
        jobs = [replace(self.ours, search_seed=seed, role="variance") for seed in self.seeds]
        rows = self.trained(
            [replace(job, retrain_seed=100 * turn + job.search_seed) for turn in (1, 2) for job in jobs]
        )
        here = {row["search_seed"]: made(row) for row in rows}
        known = {row["search_seed"] for row in rows_of_search(finished(self.setting), self.budget_id, here)}
        self.trained([replace(job, retrain_seed=300 + job.search_seed) for job in jobs if job.search_seed not in known])

    def uniform(self, rules: Sequence[str], screened: bool = False, both: bool = False) -> str:
        """Uniform networks: all for an epoch unless screened, the best in full and from both starts, that with every seed.

        Args:
            rules: as `Job.architecture` names them.
            screened: takes them for the finalists.
            both: trains the best one from both starts with every seed; the better one of each seed counts.

        Returns:
            the best one's rule.
        """
        base = replace(self.floating, method="uniform")
        stages = [(base, 1)] if screened else [(replace(base, epochs=1, role="screen"), FINALISTS), (base, 1)]
        for job, count in stages:
            rows = self.trained([replace(job, architecture=rule) for rule in rules])
            found = {rule: row["validation_accuracy"] for rule, row in zip(rules, rows, strict=True)}
            rules = sorted(rules, key=lambda rule: -found[rule])[:count]
        self._both_starts("uniform", lambda seed: [rules[0]], always=both)
        return rules[0]

    def longer(self, method: str, rule: str, epochs: int) -> None:
        """An architecture from float weights, trained for so many epochs."""
        job = replace(self.floating, method=method, role="main", architecture=rule, epochs=epochs)
        self.trained([replace(job, retrain_seed=seed) for seed in self.seeds])

    def binas(self, budget_id: str) -> None:
        """What the estimators of BINAS' searches for another budget select at this one."""
        self._both_starts(
            "binas", lambda seed: ["reselected"], replace(self.warm, search="binas", search_budget=budget_id)
        )

    def random(self, count: int) -> None:
        """As many random architectures per seed."""
        self._both_starts("random", lambda seed: [f"random {RANDOM * seed + i}" for i in range(count)])

    def _both_starts(
        self, method: str, rules: Callable[[int], list[str]], searched: Job | None = None, always: bool = False
    ) -> None:
        """Trains the architectures of seed 0 from both starts, those of the other seeds from the better one.

        Where another budget has decided that already, those of all seeds from that one. `searched`: of architectures that a
        search gives, whichever the start. `always`: those of all seeds from both.
        """
        supernet = replace(searched or self.warm, role="candidate")
        floating = self.floating if searched is None else replace(supernet, start="float", epochs=FLOAT_EPOCHS)

        def jobs(seed: int, start: str) -> list[Job]:
            base = replace(floating if start == "float" else supernet, method=method, retrain_seed=seed)
            base = base if base.search is None else replace(base, search_seed=seed)
            return [replace(base, architecture=rule) for rule in rules(seed)]

        decided = self.setting.decided
        if decided not in (None, self.budget_id):
            start = better_start(finished(self.setting), method, decided)
            if start is not None:
                self.trained([job for seed in self.seeds for job in jobs(seed, start)])
                return
        self.trained([job for start in ("float", "supernet") for job in jobs(0, start)])
        start = better_start(finished(self.setting), method, self.budget_id)
        if start is None:
            raise RuntimeError(
                f"{method} at {self.budget_id}: the rows of seed 0 from float weights and from the supernet are of different "
                f"arithmetic; remove the older ones from {self.setting.result} and {self.setting.runs / 'rows'}"
            )
        starts = ("float", "supernet") if always else (start,)
        self.trained([job for seed in self.seeds if seed for one in starts for job in jobs(seed, one)])
