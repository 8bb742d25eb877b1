"""After a Hydra sweep: one table, one picture, one file over all its runs."""

import hashlib
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from dnas.report.pareto import collect, pareto_table, write_pareto


class ParetoCallback(Callback):
    """Collects the run folders of a sweep's jobs."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Notes the job's run folder."""
        if job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, str):
            self.folders.append(Path(job_return.return_value))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes and prints the collected table."""
        if not self.folders:
            return
        name = hashlib.sha256("\n".join(map(str, self.folders)).encode()).hexdigest()[:8]
        out = self.folders[0].parent / f"pareto-{name}"
        write_pareto(self.folders, out)
        console = Console()
        console.print(pareto_table(collect(self.folders)))
        for label, path in (("table", out / "pareto.html"), ("picture", out / "pareto.png")):
            console.print(f"{label:12} {path}", highlight=False)
        for folder in self.folders:
            console.print(f"run          {folder} (report.html, *.onnx, tensorboard/)", highlight=False)
