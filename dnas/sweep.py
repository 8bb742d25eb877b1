"""After a Hydra sweep: one table, one picture, one file over all its runs."""

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from dnas.report.pareto import collect, pareto_table, write_pareto
from quant.files import write_atomically


@dataclass(frozen=True)
class Failure:
    """The result of a job that ended with an error."""

    text: str


class ParetoCallback(Callback):
    """Collects the run folders of a sweep's jobs.

    Every job leaves a note in a folder beside the runs: with some launchers, jobs are processes on other machines.
    """

    def __init__(self) -> None:
        self.notes: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes the folder of notes."""
        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.notes = Path(tempfile.mkdtemp(prefix=".jobs-", dir=folder))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Notes the job's run folder, or its error."""
        if self.notes is None:
            return
        result = job_return.return_value if job_return.status == JobStatus.COMPLETED else Failure("the job failed")
        note = {
            "job": " ".join(job_return.overrides or []),
            "folder": result if isinstance(result, str) else None,
            "error": result.text if isinstance(result, Failure) else None,
        }
        write_atomically(self.notes / f"{int(config.hydra.job.num):06d}.json", json.dumps(note))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes and prints the collected table; ends the command with exit code 1 if a job failed."""
        if self.notes is None:
            return
        notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.notes.glob("*.json"))]
        shutil.rmtree(self.notes, ignore_errors=True)
        console = Console()
        console = console if console.is_terminal else Console(width=140)
        folders = list(dict.fromkeys(Path(note["folder"]) for note in notes if note["folder"]))
        if folders:
            _write(folders, console)
        failed = [note for note in notes if note["error"]]
        for note in failed:
            text = f"failed       {note['job']}: {note['error']}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        if failed:
            sys.exit(1)


def _write(folders: list[Path], console: Console) -> None:
    name = hashlib.sha256("\n".join(map(str, folders)).encode()).hexdigest()[:8]
    out = folders[0].parent / f"pareto-{name}"
    write_pareto(folders, out)
    console.print(pareto_table(collect(folders)))
    for label, path in (("table", out / "pareto.html"), ("picture", out / "pareto.png"), ("file", out / "pareto.json")):
        console.print(f"{label:12} {path}", highlight=False, soft_wrap=True)
    for folder in folders:
        console.print(f"run          {folder} (report.html, *.onnx, tensorboard/)", highlight=False, soft_wrap=True)
