"""The command `dnas`: a Hydra app that composes the configuration and calls the stages; it holds no logic of theirs."""

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from dnas.config import STAGES, ConfigError, check_overrides, parse_config
from dnas.engine import Engine
from dnas.run import (
    NOT_IDENTITY,
    RunError,
    RunFolder,
    differences,
    digest,
    is_run_folder,
    open_run,
    stored_config,
    with_later_keys,
)
from dnas.stages.context import Run, as_started
from dnas.stages.export import export
from dnas.stages.frontier import frontier
from dnas.stages.measure import measure
from dnas.stages.preflight import preflight
from dnas.stages.report import report, show
from dnas.stages.retrain import retrain
from dnas.stages.search import search
from dnas.stages.select import select
from dnas.sweep import Failure

RUN_STAGE: dict[str, Any] = {
    "preflight": preflight,
    "search": search,
    "select": select,
    "frontier": frontier,
    "measure": measure,
    "retrain": retrain,
    "export": export,
    "report": report,
}
OPTIONS = {"select": "select", "frontier": "select", "export": "export"}
"""The section with a stage's own options, which are not the run's identity."""
BASE = Path("runs")


def configuration_folder() -> Path:
    """The `conf` folder: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.exists() else Path(__file__).parents[1] / "conf"


def run_stages(config: DictConfig, overrides: list[str], console: Console) -> Path:
    """Runs the stages that a configuration asks for and that are not finished, in its run folder.

    Args:
        config: composed, not yet checked.
        overrides: what the user gave on the command line: they may not contradict an existing run folder.
        console: where tables and progress go.

    Returns:
        the run folder.
    """
    config = OmegaConf.create(with_later_keys(OmegaConf.to_container(config)))  # type: ignore[arg-type]
    parse_config(config)
    folder, config = _locate(config, overrides)
    parsed = parse_config(config)
    opened = open_run(folder, config)
    if not is_run_folder(folder) and parsed.stage not in ("all", "preflight"):
        raise RunError(
            f"{folder} holds no run, so that there is nothing for stage={parsed.stage} to start from; name an existing run "
            "folder=..., or give stage=all or stage=preflight first"
        )
    if not parsed.budget.caps():
        raise ConfigError("no budget is set: give at least one, e.g. budget.bops=0.05 (conf/budget/*.yaml lists them)")
    run = Run(as_started(parsed, opened), opened, Engine(parsed.engine, console), console)
    wanted = STAGES if parsed.stage == "all" else (parsed.stage,)
    for stage in wanted:
        options = OmegaConf.to_container(config[OPTIONS[stage]], resolve=True) if stage in OPTIONS else None
        if run.folder.finished(stage) and not _again(run.folder, stage, options, overrides, console):
            console.print(f"{stage}: finished before, in {folder}", highlight=False)
            continue
        console.rule(stage)
        with run.folder.stage(stage, options) if run.engine.rank == 0 else nullcontext():  # type: ignore[arg-type]
            RUN_STAGE[stage](run)
        run.engine.same(stage)  # the others go on when it is recorded
    if run.folder.finished("report"):
        show(run)
    return folder


def _locate(config: DictConfig, overrides: list[str]) -> tuple[Path, DictConfig]:
    """The run folder and its configuration: that of an existing folder stands, and overrides must agree with it.

    Single keys are set in the stored configuration, so that a difference names these alone; with whole groups all is compared.
    """
    here = Path.cwd()
    if config.folder is None and is_run_folder(here):
        folder = here
    elif config.folder is None:
        name = f"{config.model.name}-{config.data.name}-{digest(config)}"
        return BASE / "".join(c if c.isalnum() or c in "-._" else "_" for c in name), config
    else:
        folder = Path(config.folder).expanduser()
    if not is_run_folder(folder):
        return folder, config
    stored = stored_config(folder)
    given = [override.lstrip("+~").split("=")[0] for override in overrides]
    changing = [key for key in given if key.replace("/", ".").split(".")[0] not in NOT_IDENTITY]
    if any("/" in key or "@" in key or (configuration_folder() / key).is_dir() for key in changing) or any(
        override.startswith("~") for override in overrides
    ):
        return folder, config
    later = [key for key in given if key.split(".")[0] in ("engine", "select", "export", "report")]
    for key in ("stage", *changing, *later):
        OmegaConf.update(stored, key, OmegaConf.select(config, key), merge=False, force_add=True)
    return folder, stored


def _again(folder: RunFolder, stage: str, options: Any, overrides: list[str], console: Console) -> bool:
    """Whether a finished stage runs again, since it is given other options than it had.

    Raises:
        RunError: it is given others, and what later stages made, or have begun, rests on it.
    """
    had = folder.options(stage)
    asked = {override.lstrip("+~").split("=")[0] for override in overrides}
    if had is None or not any(key.split(".")[0] == OPTIONS[stage] for key in asked):
        return False
    changed = differences(had, options, OPTIONS[stage])
    if not changed:
        return False
    after = [later for later in ("retrain", "export", "report") if stage == "select" and folder.finished(later)]
    if stage == "select" and not after and any(folder.file(f"model.{kind}").exists() for kind in ("ckpt", "json")):
        after = ["retrain"]  # begun with the selected network
    if after:
        raise RunError(
            f"{folder.path}: {stage} has finished with other options ({'; '.join(changed)}), and {', '.join(after)} rest on "
            "it; nothing was changed. Use another folder=..., or leave these keys out"
        )
    stale = "; the report still tells of what was there before" if folder.finished("report") else ""
    console.print(f"{stage}: again, with other options ({'; '.join(changed)}){stale}", highlight=False)
    return True


def terminal() -> Console:
    """The console; wide enough for tables where the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


@hydra.main(version_base=None, config_path=str(configuration_folder()), config_name="config")
def _app(config: DictConfig) -> str | Failure:
    """The run folder; in a sweep, an error becomes the job's result, so that the other jobs' table is made."""
    state = HydraConfig.get()
    try:
        OmegaConf.resolve(config)
        return str(run_stages(config, list(state.overrides.task), terminal()).resolve())
    except Exception as error:
        sweep = state.mode == RunMode.MULTIRUN
        if is_message(error):
            print_error(f"{type(error).__name__}: {error}")
        elif sweep:
            traceback.print_exc()
        else:
            raise
        if sweep:
            return Failure(f"{type(error).__name__}: {error}")
        sys.exit(1)


def is_message(error: Exception) -> bool:
    """Whether this package raised an error for its user to read, rather than stumbled over one."""
    if isinstance(error, OmegaConfBaseException | OSError):
        return True
    if type(error).__module__.split(".")[0] in ("dnas", "quant"):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return isinstance(error, ValueError | RuntimeError | TypeError) and raised_in.split(".")[0] in ("dnas", "quant")


def print_error(text: str) -> None:
    """An error on the error output, on as many lines as the terminal needs."""
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(text, highlight=False, markup=False)


def main() -> None:
    """Entry point of `dnas` and `python -m dnas`."""
    try:
        check_overrides(sys.argv[1:], configuration_folder())
    except ConfigError as error:
        print_error(str(error))
        sys.exit(1)
    _app()


__all__ = ["RunFolder", "main", "run_stages"]
