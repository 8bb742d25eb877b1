"""The typed configuration: every key that a user can set, and its rejection before anything runs if it is not one."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dnas.data import DataConfig
from dnas.engine import EngineConfig
from dnas.models import ModelConfig
from dnas.pretrain import PretrainConfig
from dnas.retrain import RetrainConfig
from dnas.search.relax import Relaxation
from dnas.search.training import SearchConfig, check_relaxation
from dnas.select.solvers import SOLVERS
from dnas.space.choice import GRANULARITIES
from dnas.space.cost import COSTS
from dnas.space.energy import ENERGY, EnergyConfig
from dnas.space.granularity import Filters
from dnas.space.latency import LATENCY, MeasureConfig
from dnas.space.target import Target

ON_REQUEST = ("measure",)
"""Stages that are no part of `all`: preflight measures where a budget needs it."""
STAGES = ("preflight", "search", "select", "frontier", "retrain", "export", "report")


OPTIONS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun", "--info", "-i",
)  # fmt: skip
"""Hydra's own options that are followed by a value."""


class ConfigError(ValueError):
    """A key that is unknown, missing, of the wrong type, or in conflict with another."""


@dataclass(frozen=True)
class QuantConfig:
    """The grids. weight_narrow: symmetric weight grids without the lowest code (2 bits are then ternary)."""

    weight_narrow: bool = False


@dataclass(frozen=True)
class SpaceConfig:
    """Options of every choice, and who chooses.

    filters: shares of a group's filters; filters_by_layer: others, by glob of the path of a group's first layer.
    exclude: globs of module paths that stay at full width and 8 bits. granularity: `layer`, or `filter`, every filter its
    own weight bits (0 among them removes it), or either by glob; act_granularity: the same for the channels of activation
    tensors; filter_block: how many filters decide together. pairs: legal (weight bits, activation bits), as one choice.
    kernels: sides that square kernels may shrink to; min_depth: blocks that stay in a stage at least, None keeps all;
    branches: globs of modules that may be left out.
    """

    weight_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    act_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    filters: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    filters_by_layer: dict[str, tuple[float, ...]] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    calibration_images: int = 256
    granularity: str | dict[str, str] = "layer"
    act_granularity: str | dict[str, str] = "layer"
    filter_block: int = 1
    pairs: tuple[tuple[int, int], ...] | None = None
    kernels: tuple[int, ...] = ()
    min_depth: int | None = None
    branches: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Everything that `build_space` takes from here, by name."""
        names = (
            "weight_bits", "act_bits", "exclude", "granularity", "act_granularity", "filter_block", "pairs", "kernels",
            "min_depth", "branches",
        )  # fmt: skip
        filters: Filters = {"*": self.filters, **self.filters_by_layer} if self.filters_by_layer else self.filters
        return {"filters": filters, **{name: getattr(self, name) for name in names}}

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise ValueError(f"space.calibration_images is {self.calibration_images}; allowed: 1 or more")
        for key, found in (("granularity", self.granularity), ("act_granularity", self.act_granularity)):
            for value in [found] if isinstance(found, str) else found.values():
                if value not in GRANULARITIES:
                    raise ValueError(
                        f"space.{key} is {value!r}; allowed: {list(GRANULARITIES)}, or one of them by glob"
                    )


@dataclass(frozen=True)
class CostConfig:
    """functions: the user's own costs, name to import path of a function (layer, c_in, c_out, w, a) -> number.

    energy: what budget.energy_pj counts. latency: a table that stage=measure wrote; None measures where a budget needs it.
    any_machine: also one of another machine.
    """

    functions: dict[str, str] = field(default_factory=dict)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    latency: str | None = None
    any_machine: bool = False


@dataclass(frozen=True)
class BudgetConfig:
    """Upper bounds: up to 1 a share of the 8-bit full-width network, above 1 absolute; own: those on user-defined costs."""

    bops: float | None = None
    bops_uniq: float | None = None
    bops_accumulator: float | None = None
    macs: float | None = None
    weight_bits: float | None = None
    activation_traffic_bits: float | None = None
    peak_activation_bits: float | None = None
    energy_pj: float | None = None
    latency_us: float | None = None
    own: dict[str, float] = field(default_factory=dict)
    strength: float = 4.0
    rate: float = 0.02

    def caps(self) -> dict[str, float]:
        """The budgets that are set, by cost name."""
        names = [f.name for f in fields(self) if f.name not in ("own", "strength", "rate")]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None} | dict(self.own)

    def __post_init__(self) -> None:
        own = {f"own.{name}": value for name, value in self.own.items()}
        for name, value in ({f: v for f, v in self.caps().items() if f not in self.own} | own).items():
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"budget.{name} is {value}; allowed: a share above 0 and up to 1, or an absolute value above 1"
                )
        if not self.strength > 0 or self.rate < 0:
            raise ValueError(
                f"budget.strength is {self.strength}, budget.rate {self.rate}; needed: strength > 0, rate >= 0"
            )


@dataclass(frozen=True)
class SelectConfig:
    """solver: see `dnas.select`. time_limit: seconds; then the certificate names the gap. points: of the frontier."""

    solver: str = "auto"
    time_limit: float = 60.0
    points: int = 40

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS or self.points < 2:
            raise ValueError(
                f"select: solver is one of {list(SOLVERS)}, points 2 or more; found {self.solver!r}, {self.points}"
            )
        if not self.time_limit > 0:
            raise ValueError(f"select.time_limit is {self.time_limit}; allowed: seconds above 0")


@dataclass(frozen=True)
class ExportConfig:
    """formats: of `qcdq`, `qonnx`. images: run through onnxruntime; qonnx_images: through qonnx's executor.

    fold_batch_norm: into the steps, the integers' signs and the bias of the layer before, where it can be.
    """

    formats: tuple[str, ...] = ("qcdq", "qonnx")
    images: int = 1000
    qonnx_images: int = 100
    fold_batch_norm: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.formats) - {"qcdq", "qonnx"}
        if unknown or not self.formats:
            raise ValueError(f"export.formats is {list(self.formats)}; allowed: one or both of 'qcdq', 'qonnx'")
        if self.images < 1 or self.qonnx_images < 1:
            raise ValueError(
                f"export.images is {self.images}, export.qonnx_images {self.qonnx_images}; allowed: 1 or more"
            )


@dataclass(frozen=True)
class ReportConfig:
    """tensorboard: write events. title: of the report."""

    title: str = ""
    tensorboard: bool = True


@dataclass(frozen=True)
class Config:
    """One run. stage: one of the stages, or `all`. folder: the run folder. search_from: that of a run whose search is taken."""

    data: DataConfig
    model: ModelConfig
    stage: str = "all"
    seed: int = 0
    folder: str | None = None
    search_from: str | None = None
    quant: QuantConfig = field(default_factory=QuantConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    target: Target = field(default_factory=Target)
    cost: CostConfig = field(default_factory=CostConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    relax: Relaxation = field(default_factory=Relaxation)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.stage not in (*STAGES, *ON_REQUEST, "all"):
            raise ConfigError(f"stage={self.stage}; allowed: {[*STAGES, *ON_REQUEST, 'all']}")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}; allowed: 0 or more")
        taken = sorted(set(self.cost.functions) & {*COSTS, ENERGY, LATENCY})
        if taken:
            raise ConfigError(f"cost.functions.{taken[0]}: a built-in cost has this name; choose another one")
        missing = sorted(set(self.budget.own) - set(self.cost.functions))
        if missing:
            raise ConfigError(
                f"budget.own.{missing[0]} has no function; add it on the command line: "
                f"'+cost.functions.{missing[0]}=package.module:function'"
            )
        check_relaxation(self.search, self.relax)


def parse_config(content: DictConfig | Mapping[str, Any]) -> Config:
    """Turns a composed configuration into the typed one.

    Raises:
        ConfigError: an unknown key, a missing or a wrong value; the text names the key, its file and the fix.
    """
    plain = OmegaConf.to_container(content, resolve=True) if isinstance(content, DictConfig) else content
    return _build(Config, plain, "")


def _where(path: str) -> str:
    group = path.split(".")[0]
    is_group = "." in path or is_dataclass(get_type_hints(Config).get(group))
    return f"{path} (conf/{group}/*.yaml, or the command line)" if is_group else f"{path} (conf/config.yaml)"


def _build(kind: Any, content: Any, path: str) -> Any:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{_where(path)} is {content!r}; needed are keys {[f.name for f in fields(kind)]}")
    hints, known = get_type_hints(kind), {f.name for f in fields(kind)}
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            here = f"{path}.{key}" if path else str(key)
            raise ConfigError(
                f"unknown key {_where(here)}; "
                + (f"did you mean {close[0]!r}? " if close else "")
                + f"allowed here: {sorted(known)}"
            )
    values = {key: _convert(hints[key], value, f"{path}.{key}" if path else key) for key, value in content.items()}
    try:
        return kind(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_where(path) if path else 'configuration'}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    """The value as the annotated type, or an error; no silent rounding, no truthy strings."""
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _build(hint, value, path)
    origin, arguments = get_origin(hint), get_args(hint)
    if set(arguments) > {str} and origin is UnionType and type(None) not in arguments:  # text, or keys and values
        (other,) = (a for a in arguments if a is not str)
        return value if isinstance(value, str) and value != "???" else _convert(other, value, path)
    if type(None) in arguments:
        if value is None:
            return None
        (hint,) = (a for a in arguments if a is not type(None)) if len(arguments) == 2 else (Any,)
        return _convert(hint, value, path)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(
                f"{_where(path)} is {value!r}; needed is a list, e.g. [{', '.join('...' for _ in range(2))}]"
            )
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis or origin is list else list(arguments)
        if len(inner) != len(value):
            raise ConfigError(f"{_where(path)} is {value!r}; needed are {len(inner)} entries")
        return origin(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{_where(path)} is {value!r}; needed are keys and values")
        return {key: _convert(arguments[1], v, f"{path}.{key}") for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value == int(value):
        return int(value)
    if value == "???":
        raise ConfigError(f"{_where(path)} must be given; e.g. on the command line: {path}=...")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{_where(path)} is {value!r}, a {type(value).__name__}; needed is a {hint.__name__}")
    return value


def known_keys(kind: Any = Config, path: str = "") -> dict[str, bool]:
    """Every key of the configuration, dotted; True where anything may stand below it."""
    found: dict[str, bool] = {}
    for name, hint in get_type_hints(kind).items():
        here = f"{path}.{name}" if path else name
        arguments = [a for a in get_args(hint) if a is not type(None)]
        is_free = get_origin(hint) is dict or any(get_origin(a) is dict for a in arguments)
        found[here] = is_free
        if is_dataclass(hint):
            found |= known_keys(hint, here)
    return found


def check_syntax(argument: str, key: str, value: str) -> None:
    """Raises ConfigError where Hydra cannot read an override, as with blanks, brackets or letters beyond ASCII in a value."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException as error:
        quoted = value.replace("'", "\\'")
        raise ConfigError(
            f"{argument}: Hydra cannot read this value; quote it twice, for the shell and for Hydra: \"{key}='{quoted}'\""
        ) from error


def check_overrides(arguments: list[str], conf: Path) -> None:
    """Checks the keys and groups of a command line before Hydra composes, so that the error can name the fix.

    Raises:
        ConfigError: an unknown key, a group's file that does not exist, or an argument that is no override.
    """
    keys = known_keys()
    own_files = bool({"--config-dir", "-cd"} & set(arguments)) or any("searchpath" in a for a in arguments)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-") or before in OPTIONS_WITH_VALUE:
            continue
        if "=" not in argument:
            raise ConfigError(f"{argument!r} is not key=value; e.g. budget.bops=0.05")
        key, value = argument.split("=", 1)
        if key:
            check_syntax(argument, key, value)
        key = key.lstrip("+~").split("@")[0]
        if key.split(".")[0].split("/")[0] == "hydra":
            continue
        group = conf / key
        if key and group.is_dir() and "." not in key:
            files = sorted(path.stem for path in group.glob("*.yaml"))
            names = [] if own_files or "(" in value else value.split(",")
            for name in names:
                if name not in files and not name.startswith(("[", "{")) and (key, name) != ("experiment", "null"):
                    close = difflib.get_close_matches(name, files, 1)
                    raise ConfigError(
                        f"conf/{key}/{name}.yaml does not exist; "
                        + (f"did you mean {key}={close[0]}? " if close else "")
                        + f"there are: {', '.join(files)}"
                    )
            continue
        parts = key.split(".")
        free = any(keys.get(".".join(parts[:i]), False) for i in range(1, len(parts) + 1))
        if key not in keys and not free:
            close = difflib.get_close_matches(key, list(keys), 1)
            allowed = sorted(k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0])
            raise ConfigError(
                f"unknown key {_where(key)}; "
                + (f"did you mean {close[0]!r}? " if close else "")
                + (
                    f"allowed: {', '.join(allowed)}"
                    if allowed
                    else f"groups are: {', '.join(sorted(get_type_hints(Config)))}"
                )
            )
