"""What every stage starts from: the configuration, the folder, and loaders of what earlier stages wrote."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from hydra.utils import get_object
from rich.console import Console
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from dnas.board import Board
from dnas.checkpoint import load_state
from dnas.config import Config, parse_config
from dnas.data import Batches, Data, Split, digests, load_data
from dnas.engine import Engine, EngineConfig, derived_seed
from dnas.models import ModelConfig, build_model
from dnas.models.imports import make_working_directory_importable
from dnas.realise import realise
from dnas.run import RunError, RunFolder, is_run_folder, stored_config
from dnas.search.budget import Budget
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.conventions import LayerCost
from dnas.space.energy import ENERGY
from dnas.space.latency import LATENCY, LatencyTable
from quant.files import write_atomically


@dataclass
class Run:
    """One run: everything here is derived from the configuration and the files of the folder.

    table: of measured times, while it is no file of the folder.
    """

    config: Config
    folder: RunFolder
    engine: Engine
    console: Console
    table: LatencyTable | None = None

    @cached_property
    def data(self) -> Data:
        """The data set, split.

        Raises:
            RunError: it is not what the run began with: other images would be in the splits.
        """
        found = load_data(self.config.data, self.config.seed)
        path = self.folder.file("preflight.json")
        before = json.loads(path.read_text(encoding="utf-8")).get("data") if path.exists() else None
        changed = [] if before is None else [name for name, digest in digests(found).items() if before[name] != digest]
        if changed:
            raise RunError(
                f"{self.folder.path}: the images or labels of {', '.join(changed)} are not those that the run began with; test "
                "images could have been trained on. Restore the data set, or use another folder=..."
            )
        return found

    @cached_property
    def functions(self) -> Mapping[str, LayerCost]:
        """The user's own costs.

        Raises:
            RunError: one of them cannot be imported.
        """
        make_working_directory_importable()
        found: dict[str, LayerCost] = {}
        table = self._table()
        if table is not None:
            found[LATENCY] = table.cost()
        if self.config.budget.energy_pj is not None:
            found[ENERGY] = self.config.cost.energy.table
        for name, target in self.config.cost.functions.items():
            try:
                found[name] = get_object(target.replace(":", "."))
            except Exception as error:
                raise RunError(
                    f"cost.functions.{name}={target} cannot be imported ({str(error).splitlines()[0]}); needed is "
                    "package.module:function, installed or in the directory in which the command is started"
                ) from error
        return found

    def _table(self) -> LatencyTable | None:
        """The table of measured times: preflight's, or that of the folder, also on another machine than its own."""
        path = self.folder.file("latency.json")
        if self.table is None and path.exists():
            return LatencyTable.from_json(path.read_text(encoding="utf-8"))
        return self.table

    @cached_property
    def budget(self) -> Budget:
        """The budgets of the configuration."""
        found = self.config.budget
        return Budget(strength=found.strength, rate=found.rate, functions=self.functions, **found.caps())

    @cached_property
    def space(self) -> Space:
        """The space that preflight wrote, or the search after it."""
        return Space.from_json(self.folder.read("space.json", "preflight"))

    def take_space(self, space: Space) -> None:
        """Another one, for this stage and all later ones."""
        if space != self.space:
            write_atomically(self.folder.file("space.json"), space.to_json())
            self.space = space

    @cached_property
    def shape(self) -> tuple[tuple[int, ...], int]:
        """Shape of an image and number of classes; as preflight wrote them, so that a run loads without its data."""
        path = self.folder.file("preflight.json")
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if "image_shape" in stored:
            return tuple(stored["image_shape"]), int(stored["classes"])
        return self.data.image_shape, len(self.data.classes)

    def model(self, config: ModelConfig | None = None) -> nn.Module:
        """The user's network as it starts: with the checkpoint's weights, or initialised from the seed."""
        torch.manual_seed(derived_seed(self.config.seed, "model"))
        shape, classes = self.shape
        return build_model(config or self.config.model, shape[0], classes, shape).to(self.engine.device)

    def float_model(self) -> nn.Module:
        """The trained float network, in evaluation mode.

        Raises:
            RunError: the search stage has not got that far.
        """
        path = self.folder.file("float.safetensors")
        if not path.exists():
            raise RunError(f"{path} is missing; run stage=search in this folder first")
        model = self.model(replace(self.config.model, checkpoint=None, checkpoint_skip=[]))
        load_model(model, path, device=str(self.engine.device))
        return model.eval()

    def supernet(self, trained: bool = True) -> Supernet:
        """The supernet, as the search left it or as it starts."""
        seed = derived_seed(self.config.seed, "choices")
        supernet = Supernet(self.float_model(), self.space, self.config.relax, seed, self.functions)
        supernet.to(self.engine.device)
        if not trained:
            return supernet
        path = self.folder.file("search.ckpt")
        if not path.exists():
            raise RunError(f"{path} is missing; run stage=search in this folder first")
        supernet.load_state_dict(load_state(path)["training"]["supernet"])
        return supernet.eval()

    def starting_supernet(self) -> Supernet:
        """The one whose weights and step sizes retraining starts from, see `retrain.start`; filters rank alike in both."""
        if self.config.retrain.start == "supernet":
            return self.supernet()
        found = self.supernet(trained=False)
        found.calibrate(self.images("weights", self.config.space.calibration_images))
        return found

    def architecture(self) -> Architecture:
        """What select chose."""
        found = Architecture.from_json(self.folder.read("architecture.json", "select"), self.space)
        return Architecture(found.space, found.options, found.kept, found.certificate, self.functions)

    def realised(self, architecture: Architecture, weights: Path | None, supernet: Supernet | None = None) -> nn.Module:
        """The network of an architecture, with weights from a file where one is given."""
        model = realise(supernet or self.supernet(), architecture)
        if weights is not None:
            if not weights.exists():
                raise RunError(f"{weights} is missing; run stage=retrain in this folder first")
            load_model(model, weights, device=str(self.engine.device))
        return model.to(self.engine.device).eval()

    def batches(self, split: Split | str, size: int, shuffle: bool, name: str = "") -> Batches:
        """Batches of a split; shuffled ones are augmented and complete, and no larger than this process's share of it."""
        data = self.data
        chosen = data.splits[split] if isinstance(split, str) else split
        size = max(1, min(size, len(chosen) // (self.engine.world_size if shuffle else 1)))
        return Batches(
            chosen,
            batch_size=size,
            seed=derived_seed(self.config.seed, "batches", name),
            mean=data.mean,
            std=data.std,
            augment=data.augment if shuffle else "none",
            device=self.engine.device,
            shuffle=shuffle,
            drop_last=shuffle,
            rank=self.engine.rank if shuffle else 0,
            world_size=self.engine.world_size if shuffle else 1,
            channels_last=self.config.engine.channels_last,
        )

    def images(self, split: Split | str, count: int | None = None) -> Tensor:
        """Normalised images of a split, in its order; shape (count, channels, height, width)."""
        chosen = self.data.splits[split] if isinstance(split, str) else split
        count = len(chosen) if count is None else min(count, len(chosen))
        return next(iter(self.batches(chosen.take(torch.arange(count)), count, False).epoch(0)))[0]

    def board(self, name: str, enabled: bool = True) -> Board:
        """TensorBoard events in the folder."""
        wanted = enabled and self.config.report.tensorboard and self.engine.rank == 0
        return Board(self.folder.file("tensorboard") / name if wanted else None)


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a model's weights as safetensors, shared ones once."""
    write_atomically(path, lambda temporary: save_model(model, str(temporary)))


def open_folder(path: Path, engine: Engine | None = None, console: Console | None = None) -> Run:
    """A run from its folder alone.

    Raises:
        RunError: the folder holds no run.
    """
    if not is_run_folder(path):
        raise RunError(f"{path} is not a run folder of dnas; it needs config.yaml, as dnas writes it")
    folder = RunFolder(path)
    config = as_started(parse_config(stored_config(path)), folder)
    return Run(config, folder, engine or Engine(config.engine), console or Console())


def as_started(config: Config, folder: RunFolder) -> Config:
    """The configuration with relative paths as they were meant in the directory in which the run was started.

    The user's modules in that directory are found, too.
    """
    start = folder.started_in()
    if start is None or start == Path.cwd():
        return config
    if str(start) not in sys.path:
        sys.path.append(str(start))

    def located(path: str | None) -> str | None:
        return path if path is None else str(start / Path(path).expanduser())

    data = replace(config.data, path=located(config.data.path))
    cost = replace(config.cost, latency=located(config.cost.latency))
    return replace(
        config, data=data, cost=cost, model=replace(config.model, checkpoint=located(config.model.checkpoint)),
        search_from=located(config.search_from),
    )  # fmt: skip


def load(run_folder: str | Path, device: str = "cpu") -> nn.Module:
    """The finished network of a run: realised, with its retrained weights, in evaluation mode.

    Args:
        run_folder: folder of a run whose retrain stage is done; nothing in it is unpickled.
        device: where to, as `engine.device`, whatever the run was trained on.

    Returns:
        the network; `architecture` is an attribute of it.

    Raises:
        RunError: no run, or not finished so far.
    """
    run = open_folder(Path(run_folder), Engine(EngineConfig(device=device, progress=False)))
    return run.realised(run.architecture(), run.folder.file("model.safetensors"))
