"""Data sets by import path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from dnas.data import Batches, Data, DataConfig, DataError, load_data
from dnas.data.sources import _image

CONF = Path(__file__).parents[2] / "conf"


def same(left: Data, right: Data) -> bool:
    return all(
        torch.equal(left.splits[name].images, right.splits[name].images)
        and torch.equal(left.splits[name].labels, right.splits[name].labels)
        for name in left.splits
    )


class Pairs:
    """A map-style data set."""

    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def pairs(kind: str, count: int = 60) -> Pairs:
    """Three classes of the same images in each of the accepted forms."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 6), generator=generator, dtype=torch.uint8)
    forms: dict[str, Callable[[Tensor], Any]] = {
        "numpy": lambda image: image.permute(1, 2, 0).numpy(),
        "pil": lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()),
        "uint8": lambda image: image,
        "float": lambda image: image.float() / 255.0,
    }
    return Pairs([(forms[kind](image), number % 3) for number, image in enumerate(images)])


BROKEN: list[tuple[Any, str]] = [
    ([], r"data\.train is empty"),
    ([(torch.zeros(3, 4, 4), 0.5)], r"data\.train\[0\] has the label 0\.5"),
    ([(torch.zeros(3, 4, 4), -1)], r"data\.train\[0\] has the label -1"),
    ([(torch.full((3, 4, 4), float("nan")), 0)], r"data\.train\[0\] contains NaN"),
    ([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 4, 5), 1)], r"data\.train\[1\] is 4x5.*data\.train\[0\] is 4x4"),
    ([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 4, 4), 2)], r"no image of class 1"),
    ([(torch.zeros(8, 8, 3, dtype=torch.uint8), 0)], r"\[channels, height, width\]"),
    ([(np.zeros((4, 4, 3)), 0)], r"allowed: a PIL image"),
    ([torch.zeros(3, 4, 4)], r"a pair \(image, label\)"),
    ([(torch.zeros(3, 4, 4), 0)] * 9, r"single class"),
]


def broken(case: int) -> Pairs:
    return Pairs(BROKEN[case][0])


def here(name: str) -> str:
    return f"{__name__}.{name}"


def test_data_sets_by_target_agree_in_all_forms() -> None:
    made = {}
    for kind in ("numpy", "pil", "uint8", "float"):
        node = {"_target_": here("pairs"), "kind": kind}
        made[kind] = load_data(DataConfig(source="dataset", train=node, test={**node, "count": 6}), 0)
    assert same(made["numpy"], made["pil"])
    assert same(made["numpy"], made["uint8"])
    assert len(made["pil"].splits["test"]) == 6
    assert made["pil"].classes == ("0", "1", "2")
    assert torch.allclose(made["float"].mean, made["pil"].mean)
    assert torch.allclose(made["float"].std, made["pil"].std)
    first = []
    for data in (made["pil"], made["float"]):
        loader = Batches(data.splits["weights"], batch_size=8, seed=0, mean=data.mean, std=data.std)
        first.append(next(loader.epoch(0))[0])
    assert torch.allclose(first[0], first[1], atol=1e-5)


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_errors_of_data_sets(case: int) -> None:
    with pytest.raises(DataError, match=BROKEN[case][1]):
        load_data(DataConfig(source="dataset", train={"_target_": here("broken"), "case": case}), 0)


def test_arrays_with_channels_first_are_refused() -> None:
    """As CIFAR-10's pickles hold them once reshaped: 32 channels of 3 x 32 pixels would be trained on."""
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    with pytest.raises(DataError, match=r"numpy array \[3, 32, 32\]; arrays are \[height, width, channels\]"):
        _image(images[0], "data.train[0]", DataConfig(name="x", source="dataset"))


def test_errors_of_targets() -> None:
    node = {"_target_": here("pairs"), "kind": "uint8"}
    for train, test, text in (
        (None, None, r"data\.train has no value"),
        ({"_target_": "nowhere.Pairs"}, None, r"data\.train: nowhere\.Pairs cannot be made"),
        ({"_target_": here("pairs")}, None, r"cannot be made.*kind"),
        (node, {**node, "kind": "float"}, r"data\.test delivers"),
    ):
        with pytest.raises(DataError, match=text):
            load_data(DataConfig(source="dataset", train=train, test=test), 0)


def test_a_data_set_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\ndef make():\n    return [(torch.full((1, 4, 4), float(i)), i % 2) for i in range(20)]\n"
    (tmp_path / "my_local_data.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert len(load_data(DataConfig(source="dataset", train={"_target_": "my_local_data.make"}), 0).training()) == 14


def test_configuration_file() -> None:
    target = here("pairs")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        test = f"data.test={{_target_: {target}, kind: pil, count: 6}}"
        train = [f"data.train._target_={target}", "+data.train.kind=pil"]
        custom = compose(overrides=["+data=custom", *train, test]).data
        nothing = compose(overrides=["+data=custom"]).data
    data = load_data(custom, 0)
    assert data.image_shape == (3, 4, 6)
    assert len(data.splits["test"]) == 6
    with pytest.raises(DataError, match=r"data\.train\._target_ has no value"):
        load_data(nothing, 0)
