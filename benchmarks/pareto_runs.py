"""What a row of the Pareto benchmark is made of: the float network, a search, and the training of one architecture."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from pareto_baselines import greedy, images_judged, sensitivities
from rich.console import Console

from dnas.board import Board
from dnas.cli import configuration_folder, run_stages
from dnas.engine import Engine, EngineConfig, derived_seed
from dnas.pretrain import float_training
from dnas.recipe import evaluate
from dnas.retrain import retrain
from dnas.run import source_commit
from dnas.search.budget import Budget
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.select.reference import STRUCTURE, random_architecture, uniform_architecture, uniform_candidates
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.processor import instructions, processor
from dnas.stages.context import Run, open_folder, save_weights
from dnas.stages.retrain import summary
from quant.files import write_atomically

QUIET = Console(quiet=True)
COMMIT = source_commit()
"""Of the code that this process runs, whatever happens to the files meanwhile."""
ARITHMETIC = 3
"""Revision of what a training computes, but for the order of its sums: 2 since steps are fitted up to the largest that a full
grid needs, 3 since those of activations are fitted to entries of all columns. Rows that name none are of the first."""
ELSEWHERE = "elsewhere"
"""Role of what counted until it was trained again on another processor."""


@dataclass(frozen=True)
class Setting:
    """Where things are, which network is compressed by which experiment's file, and what that file does not say.

    data: cifar10.zip. runs: folder of runs and rows. result: the committed rows. overrides: of every run; variants: of
    searches, by name. compile: of the engine. decided: budget whose rows say which start is better, at all budgets; None is
    every budget's own. shared: one training from float weights serves all methods that select its network. Two processes of
    one thread fill two cores better than one process of two.
    """

    data: str
    runs: Path
    result: Path
    model: str
    experiment: str
    overrides: tuple[str, ...] = ()
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    compile: str = "always"
    decided: str | None = None
    shared: bool = True

    def config(self, folder: Path, *overrides: str) -> DictConfig:
        """The experiment's configuration with these changes."""
        with hydra.initialize_config_dir(str(configuration_folder()), version_base=None):
            found = hydra.compose(
                "config",
                [
                    f"experiment={self.experiment}", f"data.path={quoted(self.data)}", f"folder={quoted(folder)}",
                    "engine.threads=1", f"engine.compile={self.compile}", "engine.progress=false", "report.tensorboard=false",
                    *self.overrides, *overrides,
                ],
            )  # fmt: skip
        OmegaConf.resolve(found)
        return found

    def stages(self, folder: Path, names: tuple[str, ...], *overrides: str) -> Run:
        """Runs stages of the pipeline in a run folder, as the command would, and opens it."""
        for name in names:
            given = (f"stage={name}", *overrides)  # a folder of another configuration is refused
            run_stages(self.config(folder, *given), [*self.overrides, *given], QUIET)
        return self.open(folder)

    def open(self, folder: Path) -> Run:
        """A run folder as it stands."""
        engine = EngineConfig(threads=1, compile=self.compile, progress=False)
        return open_folder(folder, Engine(engine, QUIET), QUIET)


@dataclass(frozen=True)
class Job:
    """One network to be trained.

    architecture: `uniform W A SHARE kernel=K ...`, `random NUMBER`, `sensitivity greedy` or `exact`, `selected` by the
    search, or `reselected` from its scores for another budget than it was for. start: `float` or `supernet`. search: which
    variant's supernet, if any; search_budget: for which budget it was trained, None is the job's own. epochs: of training;
    None is the experiment's own number.
    """

    method: str
    role: str
    budget_id: str
    budgets: Mapping[str, float]
    architecture: str
    start: str
    search: str | None
    search_seed: int | None
    retrain_seed: int
    epochs: int | None = None
    search_budget: str | None = None

    @property
    def key(self) -> str:
        """Name of the file that the finished row is kept in."""
        parts = (
            self.method, self.budget_id, self.architecture.replace(" ", "_"), self.start, self.search or "none",
            f"s{self.search_seed}", f"r{self.retrain_seed}", f"e{self.epochs or 0}",
            *([f"from_{self.search_budget}"] if self.search_budget else []),
        )  # fmt: skip
        return "-".join(parts)


def quoted(path: str | Path) -> str:
    """A path as the value of a Hydra override: spaces, commas and quotes in its name are its own."""
    text = str(path).replace("'", "\\'")
    return f"'{text}'"


def caps(budgets: Mapping[str, float]) -> tuple[str, ...]:
    """Budgets as the command takes them."""
    return tuple(f"budget.{name}={value}" for name, value in budgets.items())


def float_network(setting: Setting, budgets: Mapping[str, float], precision: str = "fp32") -> dict[str, Any]:
    """The float network that everything starts from and distils from: that of the results, or trained now; its row.

    `precision`: of its training, as the engine takes it.
    """
    folder, kept = setting.runs / "float", float_weights(setting.model)
    run = setting.stages(folder, ("preflight",), *caps(budgets))
    row, weights = folder / "row.json", folder / "float.safetensors"
    if kept.exists():
        write_atomically(weights, kept.read_bytes())
        write_atomically(row, kept.with_suffix(".json").read_bytes())
    if row.exists():
        return dict(json.loads(row.read_text(encoding="utf-8")))
    start = time.perf_counter()
    model, config = run.model(), run.config.pretrain
    train = run.batches(run.data.training(), config.batch_size, True, "float")
    validation = run.batches("validation", 500, False)
    engine = Engine(EngineConfig(threads=1, compile=setting.compile, precision=precision, progress=False), QUIET)
    training = float_training(model, train, validation, config, engine)
    engine.fit(training, folder / "float.ckpt", Board(None), run.config.seed)
    save_weights(weights, model)
    found = {
        "model": setting.model, "method": "float", "role": "main", "budget_id": None, "budgets": {}, "costs": {},
        "search_seed": None, "retrain_seed": run.config.seed, **accuracies(run, model), "images_search": 0,
        "images_retrain": len(train) * config.batch_size * config.epochs, "float": digest(weights), "precision": precision,
        **stamp(start),
    }  # fmt: skip
    write_atomically(row, json.dumps(found, indent=1))
    write_atomically(kept, weights.read_bytes())
    write_atomically(kept.with_suffix(".json"), row.read_bytes())
    return found


def float_weights(model: str) -> Path:
    """Where the float network of the committed rows is kept: another processor would train another one."""
    return Path(__file__).parent / "results" / f"cifar10_{model}_float.safetensors"


def digest(file: Path) -> str:
    """Of the weights that a row starts from; rows of different float networks are not compared."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def search_folder(setting: Setting, variant: str, budget_id: str, seed: int) -> Path:
    """Run folder of a search."""
    return setting.runs / f"search-{variant}-{budget_id}-s{seed}"


def search(setting: Setting, variant: str, budget_id: str, budgets: Mapping[str, float], seed: int) -> Path:
    """Searches, or goes on with a search, and selects; the run folder.

    Raises:
        RuntimeError: the folder's search started from another float network.
    """
    folder = search_folder(setting, variant, budget_id, seed)
    weights = setting.runs / "float" / "float.safetensors"
    setting.stages(
        folder, ("preflight", "search", "select"), *caps(budgets), f"seed={seed}", f"model.checkpoint={quoted(weights)}",
        *setting.variants.get(variant, ()),
    )  # fmt: skip
    if digest(folder / "float.safetensors") != digest(weights):
        raise RuntimeError(
            f"{folder} holds a search from another float network than {weights}; remove it, or give another --runs"
        )
    return folder


def train(setting: Setting, job: Job) -> dict[str, Any]:
    """Trains the network of a job by the experiment's recipe; its row. The test set is read here, once."""
    file = setting.runs / "rows" / f"{job.key}.json"
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    start = time.perf_counter()
    folder = setting.runs / "float"
    if job.search is not None and job.search_seed is not None:
        folder = search_folder(setting, job.search, job.search_budget or job.budget_id, job.search_seed)
    run = setting.open(folder)
    own = replace(run, config=replace(run.config, seed=job.retrain_seed))
    supernet = run.supernet(trained=job.start == "supernet")
    if job.start == "float":
        supernet.calibrate(run.images("weights", run.config.space.calibration_images))
    architecture = supernet.with_filters(
        replace(
            architecture_of(run, job.architecture, job.budgets, job.retrain_seed, supernet), functions=run.functions
        )
    )
    model = run.realised(architecture, None, supernet)
    config = run.config.retrain
    if job.epochs is not None:
        config = replace(config, epochs=job.epochs)
    batches = own.batches(own.data.training(), config.batch_size, True, "retrain")
    file.parent.mkdir(exist_ok=True)
    known = {
        "start": job.start, "retrain_seed": job.retrain_seed, "options": json.loads(json.dumps(dict(architecture.options))),
        "images_retrain": len(batches) * config.batch_size * config.epochs,
        "float": digest(setting.runs / "float" / "float.safetensors"),
    }  # fmt: skip
    measured = trained_before(file.parent, known) if setting.shared and job.start == "float" else None
    if measured is None:
        checkpoint = file.with_suffix(".ckpt")
        retrain(
            model, batches, own.batches("validation", 500, False), run.float_model(), config, run.engine, checkpoint,
            Board(None), derived_seed(job.retrain_seed, "retrain"),
        )  # fmt: skip
        checkpoint.unlink(missing_ok=True)
        measured = {**accuracies(run, model), **stamp(start)}
    found = {
        "model": setting.model, **{k: v for k, v in asdict(job).items() if k != "epochs"},
        "architecture": summary(architecture),
        "costs": {name: float(architecture.cost(name, relative=True)) for name in job.budgets},
        "images_search": images_searched(run, job), **known, **measured,
        "selected_by": {"commit": COMMIT, "processor": processor()},
    }  # fmt: skip
    if job.search:
        found["supernet"] = digest(folder / "search.ckpt")
    if job.architecture == "selected":
        found["gap"] = run.folder.read_json("select.json", "select")["gap"]
    write_atomically(file, json.dumps(found, indent=1))
    return found


def wide(extensions: str) -> bool:
    """Whether a processor's vector instructions, as rows name them, are those that torch sums 16 numbers with."""
    return "avx512f" in extensions.split()


def arithmetic(row: Mapping[str, Any]) -> int:
    """The revision of a row's training."""
    return int(row.get("arithmetic", 1))


MEASURED = (
    "accuracy", "validation_accuracy", "seconds", "commit", "arithmetic", "versions", "processor", "instructions",
)  # fmt: skip
"""What a row says of its training alone."""


def trained_before(rows: Path, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a finished row says of this very training from float weights, whichever method asked for it, and its key.

    Architecture, seed, images, float network and `ARITHMETIC` settle such a training, but for the processor's rounding: a row
    counts where its processor has AVX-512 if this one does. Two searches that select one network share its training.
    """
    for file in sorted(rows.glob("*.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        same = row.get("instructions") is not None and wide(row["instructions"]) == wide(instructions())
        same = same and row["role"] not in ("screen", ELSEWHERE) and arithmetic(row) == ARITHMETIC
        if same and all(row.get(name) == value for name, value in known.items()):
            return {name: row[name] for name in MEASURED if name in row} | {
                "trained_as": row.get("trained_as", file.stem)
            }
    return None


def images_searched(run: Run, job: Job) -> int:
    """Images that a job's architecture or start cost, before its training; a search that serves others counts in full."""
    if job.architecture.startswith("sensitivity"):
        return images_judged(run.space)
    if job.search:
        return int(run.folder.read_json("search.json", "search")["images"])
    return 0


def uniform_rules(setting: Setting, budgets: Mapping[str, float]) -> list[str]:
    """Every pair of widths at the largest share of filters that fits, as `Job.architecture` names them.

    Where kernels, depth and branches are searched as well, with every option of these. But for those that keep less than
    half of the filters: in a first run of this benchmark, whose float network had been trained for 24 epochs, they were 3 to
    29 points behind the best after an epoch, at every budget.
    """
    run = setting.open(setting.runs / "float")
    sizes = {group.choice: group.size for group in run.space.groups}
    found = []
    for architecture in uniform_candidates(run.space, Budget(functions=run.functions, **budgets)):
        layer = run.space.layers[-1]
        ratio = min(architecture[name] / size for name, size in sizes.items() if run.space.choice(name).searched)
        weight, act = architecture.weight_bits(layer)[0], architecture.act_bits(layer)[0]
        if ratio >= 0.5:
            found.append(f"uniform {weight} {act} {ratio:g}{structure(architecture)}")
    return found


def structure(architecture: Architecture) -> str:
    """Kernel, depth and branches of a uniform architecture, as a rule names them: ` kernel=3 depth=2`."""
    found = {
        choice.kind: max(architecture[c.name] for c in architecture.space.searched() if c.kind == choice.kind)
        for choice in architecture.space.searched()
        if choice.kind in STRUCTURE
    }
    return "".join(f" {kind}={option}" for kind, option in sorted(found.items()))


def architecture_of(run: Run, text: str, budgets: Mapping[str, float], seed: int, supernet: Supernet) -> Architecture:
    """The architecture that a rule, see `Job`, names; `seed` of the images that sensitivities are measured on."""
    rule, *values = text.split()
    budget = Budget(functions=run.functions, **budgets)
    if rule == "uniform":
        sides = {kind: int(option) for kind, option in (value.split("=") for value in values[3:])}
        return uniform_architecture(run.space, int(values[0]), int(values[1]), float(values[2]), sides)
    if rule == "random":
        return random_architecture(run.space, budget, int(values[0]))
    if rule == "sensitivity":
        scores = sensitivities(run, supernet, seed)
        return greedy(scores, run, budget) if values[0] == "greedy" else select(scores, run.space, budget)
    if rule == "reselected":
        scores = Scores.from_json(run.folder.read("scores.json", "search"))
        return select(scores, run.space, budget)
    return run.architecture()


def accuracies(run: Run, model: torch.nn.Module) -> dict[str, float]:
    """Test and validation accuracy, %."""
    return {
        "accuracy": evaluate(model, run.batches("test", 500, False).epoch(0))[0],
        "validation_accuracy": evaluate(model, run.batches("validation", 500, False).epoch(0))[0],
    }


def stamp(start: float) -> dict[str, Any]:
    """Seconds since `start`, commit, arithmetic, versions and processor."""
    versions = {name: version(name) for name in ("torch", "brevitas", "numpy", "scipy")}
    seconds = round(time.perf_counter() - start, 1)
    machine = {"processor": processor(), "instructions": instructions()}
    return {"seconds": seconds, "commit": COMMIT, "arithmetic": ARITHMETIC, "versions": versions, **machine}


@contextmanager
def alone(*files: Path) -> Iterator[None]:
    """Locks these files until it ends, so that no two commands write the same rows, searches or results.

    Raises:
        RuntimeError: another command holds one of them.
    """
    with ExitStack() as stack:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"another benchmark uses {file}; wait for it, or give another --runs") from None
        yield


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; after an error nothing that is waiting is started."""
    pool = ProcessPoolExecutor(count, get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
