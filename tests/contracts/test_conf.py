"""Every file of conf/ composes, parses, and has exactly the keys that the code knows."""

import functools
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dnas.cli import configuration_folder
from dnas.config import Config, check_overrides, parse_config
from dnas.retrain import RetrainConfig
from dnas.search.relax import Relaxation
from dnas.search.training import SearchConfig

CONF = configuration_folder()
FILES = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml"))
GROUP_FILES = [name for name in FILES if name.count("/") == 1 and not name.startswith("experiment/")]
REQUIRED = {
    "data/cifar10.yaml": ["data.path=images.zip"],
    "data/image_folder.yaml": ["data.path=images.zip"],
    "data/custom.yaml": ["data.train._target_=my_package.Set", "+data.train.split=train"],
    "model/custom.yaml": ["model.target=my_package:Net", "+model.arguments.depth=20"],
    "relax/softmax.yaml": ["search=gumbel"],
    "relax/gumbel_soft.yaml": ["search=gumbel"],
    "experiment/binas_cifar10.yaml": ["data.path=images.zip"],
    "experiment/cifar10_resnet20.yaml": ["data.path=images.zip"],
    "experiment/cifar10_resnet8.yaml": ["data.path=images.zip"],
}


@functools.cache
def composed(*overrides: str) -> DictConfig:
    check_overrides(list(overrides), CONF)
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", list(overrides))


def override(name: str) -> str:
    group, _, file = name.partition("/")
    return f"{group}={Path(file).stem}"


def assert_keys(content: Any, kind: Any, path: str) -> None:
    """The keys of a composed node are the fields of its dataclass, no more and no fewer."""
    names = {field.name for field in fields(kind)}
    assert set(content) == names, f"{path}: only in YAML {set(content) - names}, only in code {names - set(content)}"
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            assert_keys(content[name], hint, f"{path}.{name}")


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name and not name.startswith("hydra/")])
def test_composes_and_parses(name: str) -> None:
    content = composed(override(name), *REQUIRED.get(name, []))
    plain = OmegaConf.to_container(content, resolve=True)
    parse_config(content)
    assert_keys(plain, Config, "config")


@pytest.mark.parametrize("name", [name for name in GROUP_FILES if not name.startswith("hydra/")])
def test_values_reach_the_typed_configuration(name: str) -> None:
    group = name.split("/")[0]
    parsed = getattr(parse_config(composed(override(name), *REQUIRED.get(name, []))), group)
    written = yaml.safe_load((CONF / name).read_text())
    for key, value in written.items():
        if (
            key != "defaults"
            and not isinstance(value, dict | list)
            and value not in ("???",)
            and "${" not in str(value)
        ):
            assert getattr(parsed, key) == value, f"{name}: {key}"


@pytest.mark.parametrize("name", FILES)
def test_begins_with_a_command(name: str) -> None:
    lines = (CONF / name).read_text().splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert first.startswith("# dnas "), first


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiment/")])
def test_experiments_list_only_differences(name: str) -> None:
    content = yaml.safe_load((CONF / name).read_text())
    groups = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
    overrides = [f"{key.removeprefix('override /')}={value}" for entry in groups for key, value in entry.items()]
    without = OmegaConf.to_container(composed(*overrides, *REQUIRED.get(name, [])), resolve=True)

    def check(own: Any, base: Any, path: str) -> None:
        for key, value in own.items():
            assert key in base, f"{path}{key} is not a key"
            if isinstance(value, dict):
                check(value, base[key], f"{path}{key}.")
            else:
                assert value != base[key], f"{path}{key}={value} is the default already"

    check(content, without, "")


def test_every_file_is_reached_by_one_group() -> None:
    groups = {field.name for field in fields(Config)} | {"experiment", "hydra"}
    assert {name.split("/")[0] for name in FILES if "/" in name} <= groups
    assert {name for name in FILES if "/" not in name} == {"config.yaml"}


def test_what_the_library_does_without_a_schedule_is_what_the_command_does() -> None:
    default = parse_config(composed())
    assert (SearchConfig(), RetrainConfig(), Relaxation()) == (default.search, default.retrain, default.relax)
