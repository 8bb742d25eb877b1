"""The search of another run, taken in place of a new one: a network for another budget, without training a supernet again.

The scores are what that search found, around the budget that it was for, or, where it trained nothing, around the dearest
network; the selection meets this run's.
"""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dnas.run import RunError, RunFolder, differences, identity, is_run_folder, stored_config
from dnas.searcher import JUDGED_FILE, POOL_FILE, as_needed
from dnas.space.choice import Space
from dnas.stages.context import Run
from quant.files import write_atomically

FREE = ("budget", "cost", "measure", "retrain", "search_from")
"""Sections in which a run may differ from the one whose search it takes."""
FILES = ("float.json", "float.safetensors", "search.ckpt", "search.json")
POOLS = (POOL_FILE, JUDGED_FILE)
"""What a search leaves, but for its scores, which are written last; and what BINAS leaves besides."""
BOARDS = ("float", "search")
"""Folders of TensorBoard events."""
PATHS = (("data", "path"), ("model", "checkpoint"))
"""Keys that name files, relative to the directory that a run was started in."""


def check_source(run: Run) -> RunFolder | None:
    """The run whose search is to be taken; None where this one searches itself.

    Raises:
        RunError: no run, one whose search is not finished or lacks files, or one of another configuration.
    """
    if run.config.search_from is None:
        return None
    path = Path(run.config.search_from).expanduser()
    if not is_run_folder(path):
        raise RunError(
            f"search_from={path} is no run folder of dnas; name one whose search is finished, or leave it out"
        )
    source = RunFolder(path)
    if not source.finished("search"):
        raise RunError(f"search_from={path}: its search is not finished; continue it with `dnas folder={path}` first")
    needed = (*FILES, "scores.json", "space.json", *(POOLS if run.config.search.searcher == "binas" else ()))
    missing = [name for name in needed if not source.file(name).exists()]
    if missing:
        raise RunError(f"search_from={path} has lost {', '.join(missing)}; put them back, or search again")
    own = stored_config(run.folder.path) if is_run_folder(run.folder.path) else OmegaConf.create(run.folder.content)
    assert isinstance(own, DictConfig)
    here = run.folder.started_in() if is_run_folder(run.folder.path) else None
    differing = differences(
        _compared(stored_config(path), source.started_in() or Path.cwd()), _compared(own, here or Path.cwd())
    )
    if differing:
        raise RunError(
            f"search_from={path} holds a search of another configuration: {'; '.join(differing[:5])}. Give the keys that it "
            f"was given; others may differ in {', '.join(FREE[:-1])} alone"
        )
    return source


def _compared(content: DictConfig, start: Path) -> dict[str, Any]:
    found = {key: value for key, value in identity(content).items() if key not in FREE}
    for section, key in PATHS:
        value = (found.get(section) or {}).get(key)
        if value is not None:
            found[section] = found[section] | {key: str((start / Path(value).expanduser()).resolve())}
    return found


def check_space(source: RunFolder, space: Space) -> None:
    """Raises RunError where the search was of another space, though of the same configuration.

    Signs and steps of activations may differ: the source has those of its trained float network.
    """
    found = Space.from_json(source.read("space.json", "preflight"))
    if replace(found, ranges=space.ranges) != space:
        raise RunError(
            f"search_from={source.path}: its space.json differs from this run's. The same configuration gives another space "
            "with other images or weights at the same path, or with another version of this package; search again"
        )


def take_search(run: Run, source: RunFolder) -> None:
    """Copies what the search left but its scores, which are to be written last; search.json says from where.

    Raises:
        RunError: its space is another one.
    """
    check_space(source, run.space)
    run.take_space(Space.from_json(source.read("space.json", "preflight")))
    for name in (*FILES, *POOLS):
        if source.file(name).exists() and name != "search.json":
            write_atomically(run.folder.file(name), partial(shutil.copyfile, source.file(name)))
    for name in BOARDS:
        events = source.file("tensorboard") / name
        if events.exists() and run.config.report.tensorboard and run.engine.rank == 0:
            shutil.copytree(events, run.folder.file("tensorboard") / name, dirs_exist_ok=True)
    found = source.read_json("search.json", "search")
    preflight = json.loads(source.read("preflight.json", "preflight"))
    taken = {"folder": str(source.path.resolve()), "commit": preflight.get("commit"), "budgets": _budgets(source)}
    # of a source that took it itself: the first
    run.folder.write_json("search.json", found | {"taken_from": found.get("taken_from", taken)})
    run.console.print(f"search: taken from {source.path}", highlight=False)
    if found.get("epochs") == 0 and as_needed(run.config.search, run.space, run.budget).epochs > 0:
        run.console.print(
            "it trained nothing, because bits alone met its budget; they do not meet this one, for which a search of its own "
            "trains a supernet: leave search_from out for that",
            highlight=False,
        )


def _budgets(source: RunFolder) -> dict[str, Any]:
    budget = OmegaConf.to_container(stored_config(source.path).budget, resolve=True)
    assert isinstance(budget, dict)
    own = budget.get("own") or {}
    return {str(k): v for k, v in (budget | own).items() if k not in ("own", "strength", "rate") and v is not None}
