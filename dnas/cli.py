"""The command `dnas`: a Hydra app that composes the configuration and calls the stages; it holds no logic of theirs."""

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dnas.config import STAGES, ConfigError, check_overrides, parse_config
from dnas.engine import Engine
from dnas.run import NOT_IDENTITY, RunFolder, digest, is_run_folder, open_run
from dnas.stages.context import Run
from dnas.stages.export import export
from dnas.stages.preflight import preflight
from dnas.stages.report import report, show
from dnas.stages.retrain import retrain
from dnas.stages.search import search
from dnas.stages.select import select

RUN_STAGE: dict[str, Any] = {
    "preflight": preflight,
    "search": search,
    "select": select,
    "retrain": retrain,
    "export": export,
    "report": report,
}
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
    folder, config = _locate(config, overrides)
    parsed = parse_config(config)
    opened = open_run(folder, config) if parsed.budget.caps() or is_run_folder(folder) else None
    if opened is None:
        raise ConfigError("no budget is set: give at least one, e.g. budget.bops=0.05 (conf/budget/*.yaml lists them)")
    run = Run(parsed, opened, Engine(parsed.engine, console), console)
    wanted = STAGES if parsed.stage == "all" else (parsed.stage,)
    for stage in wanted:
        if run.folder.finished(stage):
            console.print(f"{stage}: finished before, in {folder}", highlight=False)
            continue
        console.rule(stage)
        with run.folder.stage(stage):
            RUN_STAGE[stage](run)
    if run.folder.finished("report"):
        show(run)
    return folder


def _locate(config: DictConfig, overrides: list[str]) -> tuple[Path, DictConfig]:
    """The run folder and its configuration: that of an existing folder stands, and overrides must agree with it."""
    here = Path.cwd()
    if config.folder is None and is_run_folder(here):
        folder = here
    elif config.folder is None:
        name = f"{config.model.name}-{config.data.name}-{digest(config)}"
        return BASE / "".join(c if c.isalnum() or c in "-._" else "_" for c in name), config
    else:
        folder = Path(config.folder)
    if not is_run_folder(folder):
        return folder, config
    stored = OmegaConf.load(folder / "config.yaml")
    if not isinstance(stored, DictConfig):
        raise ConfigError(f"{folder}/config.yaml is damaged; use another folder")
    for key in ("stage", "engine", "report"):
        stored[key] = config[key]
    explicit = [o.lstrip("+~").split("=")[0] for o in overrides if o.split("=")[0].split(".")[0] not in NOT_IDENTITY]
    return folder, config if explicit else stored


def terminal() -> Console:
    """The console; wide enough for tables where the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


@hydra.main(version_base=None, config_path=str(configuration_folder()), config_name="config")
def _app(config: DictConfig) -> str:
    console = terminal()
    OmegaConf.resolve(config)
    state = HydraConfig.get()
    try:
        return str(run_stages(config, list(state.overrides.task), console).resolve())
    except (ValueError, RuntimeError, TypeError) as error:
        if state.mode == RunMode.MULTIRUN or not type(error).__module__.startswith(("dnas", "quant")):
            raise
        console.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        console.print(str(error), highlight=False, markup=False)
        sys.exit(1)


def main() -> None:
    """Entry point of `dnas` and `python -m dnas`."""
    try:
        check_overrides(sys.argv[1:], configuration_folder())
    except ConfigError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False)
        sys.exit(1)
    _app()


__all__ = ["RunFolder", "main", "run_stages"]
