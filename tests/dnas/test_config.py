from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dnas.cli import configuration_folder
from dnas.config import Config, ConfigError, check_overrides, known_keys, parse_config

CONF = configuration_folder()
LEAST: dict[str, Any] = {"data": {"source": "digits"}, "model": {"target": "dnas.models:dscnn"}}


def parsed(**groups: Any) -> Config:
    return parse_config({**LEAST, **groups})


def test_defaults_are_filled_in() -> None:
    config = parsed()
    assert config.stage == "all"
    assert config.space.weight_bits == (2, 3, 4, 6, 8)
    assert config.budget.caps() == {}
    assert config.target.pairs is None


def test_values_become_typed() -> None:
    config = parsed(
        space={"weight_bits": [2, 4], "filters": [1, 0.5]}, target={"pairs": [[4, 8], [8, 8]]},
        search={"optimiser": {"lr": 1}}, retrain={"baselines": []}, budget={"bops": 1, "weight_bits": 100_000},
    )  # fmt: skip
    assert config.space.weight_bits == (2, 4)
    assert config.space.filters == (1.0, 0.5)
    assert config.target.pairs == ((4, 8), (8, 8))
    assert isinstance(config.search.optimiser.lr, float)
    assert config.retrain.baselines == ()
    assert config.budget.caps() == {"bops": 1.0, "weight_bits": 100_000.0}
    assert parsed(search={"epochs": 3.0}).search.epochs == 3


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ({"search": {"epoch": 3}}, ["search.epoch ", "'epochs'", "conf/search/*.yaml"]),
        ({"search": {"optimiser": {"l": 3}}}, ["search.optimiser.l ", "lr"]),
        ({"sarch": {}}, ["sarch", "conf/config.yaml", "'search'"]),
        ({"search": {"epochs": "3"}}, ["search.epochs", "'3', a str", "float"]),
        ({"search": {"epochs": True}}, ["search.epochs", "bool"]),
        ({"search": {"searcher": "gumbel", "epochs": 2.5}}, ["search.epochs", "2.5"]),
        ({"search": {"epochs": None}}, ["search.epochs", "NoneType"]),
        ({"search": 3}, ["search", "needed are keys"]),
        ({"search": {"optimiser": None}}, ["search.optimiser", "needed are keys"]),
        ({"report": {"tensorboard": "yes"}}, ["report.tensorboard", "bool"]),
        ({"space": {"weight_bits": 4}}, ["space.weight_bits", "list"]),
        ({"space": {"weight_bits": ["4"]}}, ["space.weight_bits[0]", "int"]),
        ({"target": {"pairs": [[4]]}}, ["target.pairs[0]", "2 entries"]),
        ({"cost": {"functions": ["a"]}}, ["cost.functions", "keys and values"]),
        ({"cost": {"functions": {"energy": 3}}}, ["cost.functions.energy", "str"]),
        ({"cost": {"functions": {"macs": "a:b"}}}, ["cost.functions.macs", "built-in"]),
        ({"budget": {"own": {"energy": 0.5}}}, ["budget.own.energy", "cost.functions.energy"]),
        ({"budget": {"own": {"energy": -1}}}, ["budget.own.energy is -1"]),
        ({"budget": {"macs": float("nan")}}, ["budget.macs is nan", "conf/budget/*.yaml"]),
        ({"budget": {"rate": -1.0}}, ["budget.rate"]),
        ({"model": {"target": "???"}}, ["model.target", "must be given"]),
        ({"stage": "train"}, ["stage=train", "preflight"]),
        ({"seed": "one"}, ["seed", "conf/config.yaml", "int"]),
        ({"seed": -1}, ["seed=-1; allowed: 0 or more"]),
        ({"export": {"formats": []}}, ["export.formats"]),
        ({"search": {"searcher": "neighbourhood"}, "relax": {"mode": "softmax"}}, ["relax.mode", "search=gumbel"]),
        (
            {"search": {"searcher": "score_function"}, "relax": {"filters": "composition"}},
            ["relax.filters=independent"],
        ),
        (
            {"search": {"searcher": "score_function", "scores": "gradient"}, "relax": {"mode": "gumbel"}},
            ["search.scores", "measured, logits"],
        ),
    ],
    ids=str,
)
def test_errors_name_the_key(groups: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(**groups)
    for part in parts:
        assert part in str(caught.value)


def test_a_group_cannot_be_missing() -> None:
    with pytest.raises(ConfigError, match="model"):
        parse_config({"data": LEAST["data"]})


def test_known_keys_are_all_leaves() -> None:
    keys = known_keys()

    def leaves(kind: Any, path: str) -> None:
        for name, hint in get_type_hints(kind).items():
            assert path + name in keys
            if is_dataclass(hint):
                leaves(hint, f"{path}{name}.")

    leaves(Config, "")
    assert keys["model.arguments"]
    assert keys["data.train"]
    assert keys["budget.own"]
    assert not keys["search.epochs"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=resnet8", "data=digits", "budget.bops=0.05", "seed=0"], ["-m", "budget.bops=0.05,0.1", "seed=0,1,2"],
        ["model=resnet8,dscnn"], ["model=glob(*)"], ["model=choice(resnet8,dscnn)"], ["experiment=null"],
        ["+model.arguments.depth=20"], ["++engine.threads=2"], ["data.train._target_=a.B", "+data.train.split=train"],
        ["'+cost.functions.energy=a:b'".strip("'"), "+budget.own.energy=0.1"], ["hydra/launcher=slurm"],
        ["hydra.verbose=true"], ["--cfg", "job"], ["-c", "job", "seed=1"], ["--config-dir", "mine", "model=mine"],
        ["--help"], ["model.checkpoint='a=b.pth'"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_right_command_lines(arguments: list[str]) -> None:
    check_overrides(arguments, CONF)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("budget.bop=0.05", ["budget.bop", "'budget.bops'"]), ("+search.foo=1", ["search.foo", "epochs"]),
        ("++search.foo.bar=1", ["search.foo.bar"]), ("epochs=1", ["epochs", "search.epochs"]),
        ("model=resnet9", ["conf/model/resnet9.yaml", "model=resnet8"]),
        ("model=resnet8,resnet9", ["resnet9"]), ("model=null", ["conf/model/null.yaml"]), ("resnet8", ["key=value"]),
        ("model.checkpoint=a=b.pth", ["\"model.checkpoint='a=b.pth'\""]), ("data.path=dünn", ["\"data.path='dünn'\""]),
        ("=3", ["unknown key"]), ("search.optimiser.rate=1", ["search.optimiser.rate", "lr"]),
    ],
)  # fmt: skip
def test_wrong_command_lines(argument: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides(["seed=0", argument], CONF)
    for part in parts:
        assert part in str(caught.value)


def test_the_folder_is_beside_or_inside_the_package() -> None:
    assert (CONF / "config.yaml").is_file()
    assert isinstance(CONF, Path)
