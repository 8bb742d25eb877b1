"""The search of another run, taken in place of a new one: a network for another budget, without training a supernet again."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dnas.run import RunError, RunFolder, differences, identity, is_run_folder, stored_config
from dnas.searcher import JUDGED_FILE, POOL_FILE
from dnas.stages.context import Run
from quant.files import write_atomically

FREE = ("budget", "retrain", "search_from")
"""Sections in which a run may differ from the one whose search it takes: the supernet and its scores know no price."""
FILES = ("float.json", "float.safetensors", "search.ckpt", "search.json", "estimator.json", POOL_FILE, JUDGED_FILE)
"""What a search leaves, but for its scores, which are written last; of some searchers not all."""


def check_source(run: Run) -> RunFolder | None:
    """The run whose search is to be taken; None where this one searches itself.

    Raises:
        RunError: no run, one whose search is not finished, or one of another configuration.
    """
    if run.config.search_from is None:
        return None
    path = Path(run.config.search_from)
    if not is_run_folder(path):
        raise RunError(
            f"search_from={path} is no run folder of dnas; name one whose search is finished, or leave it out"
        )
    source = RunFolder(path)
    if not source.finished("search"):
        raise RunError(f"search_from={path}: its search is not finished; continue it with `dnas folder={path}` first")
    own = stored_config(run.folder.path) if is_run_folder(run.folder.path) else OmegaConf.create(run.folder.content)
    assert isinstance(own, DictConfig)
    differing = differences(_compared(stored_config(path)), _compared(own))
    if differing:
        raise RunError(
            f"search_from={path} holds a search of another configuration: {'; '.join(differing[:5])}. Give the keys that it "
            f"was given; others may differ in {', '.join(FREE[:2])} alone"
        )
    return source


def _compared(content: DictConfig) -> dict[str, Any]:
    return {key: value for key, value in identity(content).items() if key not in FREE}


def take_search(run: Run, source: RunFolder) -> None:
    """Copies what the search left, its scores last.

    Raises:
        RunError: its space is another one, as of an older version of this package.
    """
    if source.read("space.json", "preflight") != run.folder.read("space.json", "preflight"):
        raise RunError(
            f"search_from={source.path}: its space.json differs from this run's, though the configurations agree; search again"
        )
    for name in FILES:
        if source.file(name).exists():
            origin = source.file(name)
            write_atomically(run.folder.file(name), partial(shutil.copyfile, origin))
    write_atomically(run.folder.file("scores.json"), source.read("scores.json", "search"))
    run.console.print(f"search: taken from {source.path}", highlight=False)
