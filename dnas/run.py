"""The run folder: one folder per configuration, files written atomically, finished stages recorded."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dnas.checkpoint import write_text
from dnas.engine import peak_memory_mb

NOT_IDENTITY = ("stage", "folder", "engine", "report", "hydra")
"""Keys that do not change what a run computes, so that they may differ when it is resumed."""


class RunError(RuntimeError):
    """A run folder that is missing, of another configuration, or not ready for the stage."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and the record of its stages."""

    path: Path

    def file(self, name: str) -> Path:
        """Path of a file in the folder."""
        return self.path / name

    def read(self, name: str, made_by: str) -> str:
        """A text file of an earlier stage.

        Raises:
            RunError: it is not there.
        """
        if not self.file(name).exists():
            raise RunError(f"{self.file(name)} is missing; run stage={made_by} in this folder first")
        return self.file(name).read_text(encoding="utf-8")

    def write_json(self, name: str, content: Any) -> None:
        """Writes JSON atomically."""
        write_text(self.file(name), json.dumps(content, indent=1))

    def read_json(self, name: str, made_by: str) -> Any:
        """JSON of an earlier stage."""
        return json.loads(self.read(name, made_by))

    def stages(self) -> list[dict[str, Any]]:
        """Finished stages with their seconds and peak memory, in order."""
        path = self.file("stages.json")
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return found

    def finished(self, stage: str) -> bool:
        """Whether a stage is done."""
        return any(record["stage"] == stage for record in self.stages())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Records a stage as finished if its body ends without an error."""
        start = time.perf_counter()
        yield
        record = {"stage": name, "seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb()}
        self.write_json("stages.json", [*self.stages(), record])


def identity(content: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides what a run computes."""
    plain = OmegaConf.to_container(content, resolve=True)
    if not isinstance(plain, dict):
        raise RunError("the configuration is not a mapping; needed are keys and values")
    return {str(key): value for key, value in plain.items() if key not in NOT_IDENTITY}


def digest(content: DictConfig) -> str:
    """Hash of a configuration's identity."""
    return hashlib.sha256(json.dumps(identity(content), sort_keys=True).encode()).hexdigest()[:8]


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "config.yaml").exists() and (path / ".dnas").exists()


def open_run(path: Path, content: DictConfig) -> RunFolder:
    """Creates a run folder, or opens it if it holds the same configuration.

    Raises:
        RunError: the folder holds another configuration, or files of something else.
    """
    folder = RunFolder(path)
    if is_run_folder(path):
        stored = OmegaConf.load(path / "config.yaml")
        if not isinstance(stored, DictConfig):
            raise RunError(f"{path}/config.yaml is damaged; use another folder")
        differing = differences(identity(stored), identity(content))
        if differing:
            raise RunError(
                f"{path} holds a run of another configuration: {'; '.join(differing[:5])}; nothing was changed. Use another "
                "folder=..., leave these keys out to continue that run, or remove the folder"
            )
        return folder
    if path.exists() and any(path.iterdir()):
        raise RunError(f"{path} is not empty and holds no run; nothing was changed. Use another folder=...")
    path.mkdir(parents=True, exist_ok=True)
    plain = {k: v for k, v in OmegaConf.to_container(content, resolve=True).items() if k != "hydra"}  # type: ignore[union-attr]
    write_text(folder.file("config.yaml"), OmegaConf.to_yaml(OmegaConf.create(plain)))
    write_text(folder.file(".dnas"), "run folder of dnas\n")
    return folder


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Leaves in which two nested mappings differ, as text."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted({*one, *other}, key=str):
            found += differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if one == other else [f"{path} is {one!r} there, {other!r} here"]
