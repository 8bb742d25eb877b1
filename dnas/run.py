"""The run folder: one folder per configuration, files written atomically, finished stages recorded."""

import copy
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from dnas.engine import peak_memory_mb, reset_peak_memory
from dnas.space.energy import EnergyConfig
from quant.files import write_atomically, write_new

NOT_IDENTITY = ("stage", "folder", "engine", "select", "export", "report", "hydra")
"""Keys that do not change what a run computes, so that they may differ when it is resumed; but see `identity`."""
LATER_KEYS = {
    "search_from": None, "search.loosen": 1.0, "search.start": "uniform", "search.train": "always",
    "retrain.start": "supernet", "budget.energy_pj": None,
    "cost.energy": asdict(EnergyConfig()),
}  # fmt: skip
"""Keys that older run folders lack, with what such runs did."""
MARK = ".dnas"
"""The file that makes a folder a run folder."""


class RunError(RuntimeError):
    """A run folder that is missing, of another configuration, or not ready for the stage."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and the record of its stages. content: the text of config.yaml, for a folder not yet created."""

    path: Path
    content: str = ""

    def create(self) -> None:
        """Makes the folder and writes its configuration, unless it is there; killed at any moment, it can be repeated.

        Raises:
            RunError: another command made it meanwhile, with another configuration.
        """
        if not is_run_folder(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.file(MARK).write_text(f"run folder of dnas, started in\n{Path.cwd()}\n", encoding="utf-8")
            write_new(self.file("config.yaml"), self.content)
        if self.content:
            check_same_run(self.path, DictConfig(OmegaConf.create(self.content)))

    def started_in(self) -> Path | None:
        """The working directory of the command that created the folder; None where it is not known or is gone."""
        lines = self.file(MARK).read_text(encoding="utf-8").splitlines() if self.file(MARK).exists() else []
        found = Path(lines[1]) if len(lines) > 1 else None
        return found if found is not None and found.is_dir() else None

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
        write_atomically(self.file(name), json.dumps(content, indent=1))

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

    def options(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage was given that is not the run's identity; None where that was not recorded."""
        return next((r.get("options") for r in self.stages() if r["stage"] == stage), None)

    def forget(self, stage: str) -> None:
        """Takes a stage's record away, so that it runs again."""
        if self.finished(stage):
            self.write_json("stages.json", [record for record in self.stages() if record["stage"] != stage])

    @contextmanager
    def stage(self, name: str, options: dict[str, Any] | None = None) -> Iterator[None]:
        """Records a stage as finished if its body ends without an error; its seconds are those of the last attempt.

        `options`: those of its own that may differ when a run is continued.
        """
        reset_peak_memory()
        start = time.perf_counter()
        yield
        record = {"stage": name, "seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb()}
        record |= {} if options is None else {"options": options}
        self.write_json("stages.json", [*(r for r in self.stages() if r["stage"] != name), record])


def identity(content: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides what a run computes; of the engine, that is a reduced precision."""
    plain = OmegaConf.to_container(content, resolve=True)
    if not isinstance(plain, dict):
        raise RunError("the configuration is not a mapping; needed are keys and values")
    found = {str(key): value for key, value in with_later_keys(plain).items() if key not in NOT_IDENTITY}
    if isinstance(found.get("data"), dict):
        found["data"] = {key: value for key, value in found["data"].items() if key != "cache"}
    engine = plain.get("engine")
    precision = engine.get("precision", "fp32") if isinstance(engine, dict) else "fp32"
    return found if precision == "fp32" else found | {"engine": {"precision": precision}}


def digest(content: DictConfig) -> str:
    """Hash of a configuration's identity: that of before a later key was there, where the key does as was done then."""
    found = identity(content)
    for key, before in LATER_KEYS.items():
        holder, name = _holder(found, key)
        if holder is not None and holder.get(name) == before:
            del holder[name]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]


def _holder(content: dict[Any, Any], key: str) -> tuple[dict[Any, Any] | None, str]:
    """The section that a key is in, None where there is no such section, and the key's name there."""
    section, _, name = key.rpartition(".")
    holder = content.get(section) if section else content
    return holder if isinstance(holder, dict) else None, name


def with_later_keys(content: dict[Any, Any]) -> dict[Any, Any]:
    """A configuration with the keys that older ones, or a user's own sections, lack: as was done before there were any.

    Nested mappings are changed in place.
    """
    for key, before in LATER_KEYS.items():
        holder, name = _holder(content, key)
        if holder is not None:
            holder.setdefault(name, copy.deepcopy(before))
    return content


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "config.yaml").exists() and (path / MARK).exists()


def stored_config(path: Path) -> DictConfig:
    """The configuration in a run folder.

    Raises:
        RunError: it cannot be read.
    """
    try:
        stored = OmegaConf.load(path / "config.yaml")
    except (OSError, ValueError, YAMLError) as error:
        raise RunError(f"{path}/config.yaml is damaged ({error}); use another folder") from error
    if not isinstance(stored, DictConfig):
        raise RunError(f"{path}/config.yaml is damaged; use another folder")
    return OmegaConf.create(with_later_keys(OmegaConf.to_container(stored)))  # type: ignore[arg-type]


def check_same_run(path: Path, content: DictConfig) -> None:
    """Raises RunError where a run folder is of another configuration."""
    differing = differences(identity(stored_config(path)), identity(content))
    if differing:
        raise RunError(
            f"{path} holds a run of another configuration: {'; '.join(differing[:5])}; nothing was changed. Use another "
            "folder=..., leave these keys out to continue that run, or remove the folder"
        )


def open_run(path: Path, content: DictConfig) -> RunFolder:
    """The run folder at a path, if that can be one: it holds the same configuration, or nothing at all.

    Writes nothing: see `RunFolder.create`.

    Raises:
        RunError: the folder holds another configuration, or files of something else.
    """
    if is_run_folder(path):
        check_same_run(path, content)
        return RunFolder(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; nothing was changed. Use another folder=...")
    marked = (path / MARK).exists()  # a creation that was killed leaves the mark and half a configuration at most
    others = [] if not path.exists() else [p.name for p in path.iterdir() if not _is_unfinished(p.name, marked)]
    if others:
        raise RunError(
            f"{path} is not empty ({', '.join(sorted(others)[:3])}, ...) and holds no run; nothing was changed. Use another "
            "folder=..."
        )
    plain = {k: v for k, v in OmegaConf.to_container(content, resolve=True).items() if k != "hydra"}  # type: ignore[union-attr]
    return RunFolder(path, OmegaConf.to_yaml(OmegaConf.create(plain)))


def _is_unfinished(name: str, marked: bool) -> bool:
    return marked and (name == MARK or name.startswith(".config.yaml."))


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Leaves in which two nested mappings differ, as text."""
    if (isinstance(one, dict) or isinstance(other, dict)) and all(isinstance(v, dict | None) for v in (one, other)):
        one, other, found = one or {}, other or {}, []
        for key in sorted({*one, *other}, key=str):
            found += differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if one == other else [f"{path} is {one!r} there, {other!r} here"]


def source_commit() -> str | None:
    """Commit of the checkout that this package runs from, if it is one; with "-dirty" where its code differs from it.

    What benchmarks/results holds is no code: a benchmark that writes there names a clean commit.
    """
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return found.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return (
        commit + ("-dirty" if git("status", "--porcelain", "--", ".", ":!benchmarks/results") else "")
        if commit
        else None
    )
