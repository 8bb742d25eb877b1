"""Data sets: sources, splits and the cache."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from dnas.data import Data, DataConfig, DataError, Split, load_data, pictures
from dnas.data import folder as folder_module
from dnas.data.config import data_config

CONF = Path(__file__).parents[2] / "conf"
Files = dict[str, bytes]


def encoded(seed: int, size: tuple[int, int] = (6, 5), mode: str = "RGB", form: str = "PNG") -> bytes:
    """A random image of (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def image_files(test: bool = True, form: str = "PNG") -> Files:
    """20 training images of each of two classes, and 5 test images of each."""
    counts = {"train": 20, **({"test": 5} if test else {})}
    return {
        f"{part}/{label}/{number}.{form.lower()}": encoded(
            number + 100 * (label == "cat") + 1000 * (part == "test"), form=form
        )
        for part, count in counts.items()
        for label in ("ant", "cat")
        for number in range(count)
    }


def make_folder(root: Path, files: Files) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def make_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def config(path: Path, **keys: Any) -> DataConfig:
    return DataConfig(path=str(path), **{"cache": str(path.parent / "cache"), **keys})


def same(left: Data, right: Data) -> bool:
    return all(
        torch.equal(left.splits[name].images, right.splits[name].images)
        and torch.equal(left.splits[name].labels, right.splits[name].labels)
        for name in left.splits
    )


def rows(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images]


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DataConfig(source="digits", validation_share=0.2), 0)


def test_digits_are_divided_completely_and_by_class(digits: Data) -> None:
    assert {name: len(split) for name, split in digits.splits.items()} == {
        "weights": 539,
        "choices": 539,
        "validation": 269,
        "test": 450,
    }
    from sklearn.datasets import load_digits

    values = load_digits().images
    expected = sorted(np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes() for image in values)
    assert sorted(row for split in digits.splits.values() for row in rows(split)) == expected
    shares = torch.bincount(torch.cat([split.labels for split in digits.splits.values()])) / 1797
    for split in digits.splits.values():
        assert (torch.bincount(split.labels, minlength=10) - shares * len(split)).abs().max() < 2
    assert digits.image_shape == (1, 8, 8)
    assert len(digits.training()) == 1078


def test_splits_depend_on_the_split_seed_alone_and_the_test_split_on_nothing(digits: Data) -> None:
    again = load_data(DataConfig(source="digits", validation_share=0.2), 7)
    other = load_data(DataConfig(source="digits", validation_share=0.2, split_seed=1), 0)
    by_run = load_data(DataConfig(source="digits", validation_share=0.2, split_seed=None), 1)
    assert same(digits, again)
    assert same(other, by_run)
    assert not same(digits, other)
    assert torch.equal(digits.splits["test"].images, other.splits["test"].images)


def test_folder_zip_and_wrapped_zip_are_the_same_and_complete(tmp_path: Path) -> None:
    files = image_files()
    litter = {"train/ant/.DS_Store": b"x", "__MACOSX/train/ant/0.png": b"x", "README.txt": b"x"}
    folder = load_data(config(make_folder(tmp_path / "folder", {**files, **litter})), 0)
    packed = load_data(config(make_zip(tmp_path / "a.zip", {**files, **litter})), 0)
    wrapped = load_data(config(make_zip(tmp_path / "b.zip", {f"top/{name}": data for name, data in files.items()})), 0)
    assert same(folder, packed)
    assert same(folder, wrapped)
    assert folder.classes == ("ant", "cat")
    assert folder.image_shape == (3, 5, 6)
    for part in ("train", "test"):
        names = [name for name in folder.splits if (name == "test") == (part == "test")]
        found = {
            (row, int(y)) for n in names for row, y in zip(rows(folder.splits[n]), folder.splits[n].labels, strict=True)
        }
        expected = {
            (np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1).tobytes(), int("/cat/" in name))
            for name, data in files.items()
            if name.startswith(part)
        }
        assert found == expected
        assert sum(len(folder.splits[n]) for n in names) == len(expected)
    pixels = torch.cat([folder.splits[n].images for n in ("weights", "choices", "validation")]).double() / 255
    assert torch.allclose(folder.mean.double(), pixels.mean((0, 2, 3)))
    assert torch.allclose(folder.std.double(), pixels.std((0, 2, 3), correction=0))


def test_test_share_and_limit_are_stratified_and_repeatable(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", image_files(test=False, form="JPEG"))
    whole = load_data(config(path, test_share=0.25), 0)
    limited = load_data(config(path, test_share=0.25, limit_train=20, split_seed=5, mean=[0.5] * 3, std=[1.0] * 3), 3)
    assert whole.splits["test"].labels.bincount().tolist() == [5, 5]
    assert torch.equal(whole.splits["test"].images, limited.splits["test"].images)
    assert [len(limited.splits[name]) for name in ("weights", "choices", "validation")] == [9, 9, 2]
    assert limited.mean.tolist() == [0.5] * 3
    for seed in range(5):
        drawn = load_data(config(path, test_share=0.25, limit_train=20, split_seed=seed), 0)
        parts = [row for name in ("weights", "choices", "validation") for row in rows(drawn.splits[name])]
        assert len(set(parts)) == 20
        assert not set(parts) & set(rows(drawn.splits["test"]))
    everything = [row for split in whole.splits.values() for row in rows(split)]
    assert len(everything) == len(set(everything)) == 40


def test_cache_is_used_and_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = pictures.decode

    def counting(content: bytes, where: str, *rest: Any) -> Any:
        decoded.append(where)
        return original(content, where, *rest)

    monkeypatch.setattr(folder_module, "decode", counting)
    root = make_folder(tmp_path / "folder", image_files())
    first = load_data(config(root), 0)
    assert len(decoded) == 50
    assert same(first, load_data(config(root), 0))
    assert len(decoded) == 50
    changed = root / "test/cat/0.png"
    changed.write_bytes(encoded(999))
    os.utime(changed, ns=(1, 1))
    second = load_data(config(root), 0)
    assert len(decoded) == 100
    assert not same(first, second)
    assert load_data(config(root, image_size=4), 0).image_shape == (3, 4, 4)
    assert len(decoded) == 150
    for file in (tmp_path / "cache").iterdir():
        assert file.suffix == ".safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    assert same(second, load_data(config(root), 0))
    assert len(decoded) == 200
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    assert same(second, load_data(config(root, cache=str(blocked)), 0))
    assert same(second, load_data(config(root, cache=None), 0))
    assert len(decoded) == 300


def test_grey_and_odd_sizes_are_converted_on_request(tmp_path: Path) -> None:
    odd = {"train/ant/x.png": encoded(1, (9, 7), "L")}
    path = make_folder(tmp_path / "folder", {**image_files(), **odd})
    assert load_data(config(path, channels=3, image_size=[5, 6]), 0).image_shape == (3, 5, 6)
    assert load_data(config(path, channels=1, image_size=8), 0).image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("extra", "keys", "text"),
    [
        ({"train/ant/x.png": encoded(1)[:-40]}, {}, r"train/ant/x\.png.*cannot be decoded.*delete it"),
        ({"train/ant/x.jpeg": encoded(1, (64, 64), form="JPEG")[:900]}, {}, r"train/ant/x\.jpeg.*cannot be decoded"),
        ({"train/ant/x.png": b"no image"}, {}, r"train/ant/x\.png.*cannot be decoded"),
        ({"train/ant/x.png": b""}, {}, r"train/ant/x\.png.*cannot be decoded"),
        ({"train/ant/notes.txt": b"x"}, {}, r"notes\.txt.*not an image by its name"),
        ({"train/x.png": encoded(1)}, {}, r"train/x\.png.*does not lie in a class directory"),
        ({"val/ant/0.png": encoded(1)}, {}, r"holds the directory val.*validation_share"),
        ({"test/dog/0.png": encoded(1)}, {}, r"class dog is in test, but not in train"),
        ({"train/ant/x.png": encoded(1, (7, 5))}, {}, r"x\.png.*is 5x7.*ant/0\.png.*is 5x6.*data\.image_size"),
        ({"train/ant/x.png": encoded(1, mode="L")}, {}, r"x\.png.*has 1 channel.*has 3.*data\.channels=3"),
        ({"train/eel/x.png": encoded(1)}, {}, r"class eel has 1 of 41 images"),
        ({}, {"limit_train": 1}, r"data\.limit_train"),
        ({}, {"mean": [0.5]}, r"data\.mean has 1 number"),
        ({}, {"image_size": [4]}, r"data\.image_size is \[4\]"),
        ({}, {"validation_share": 1.0}, r"data\.validation_share is 1\.0"),
        ({}, {"augment": "mixup"}, r"data\.augment is 'mixup'; allowed: none, crop_flip, shift"),
        ({}, {"source": "digits"}, r"data\.path is set, but data\.source=digits"),
        ({}, {"channels": 2}, r"data\.channels is 2"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_errors_of_folders(tmp_path: Path, packed: bool, extra: Files, keys: dict[str, Any], text: str) -> None:
    files = {**image_files(), **extra}
    path = make_zip(tmp_path / "a.zip", files) if packed else make_folder(tmp_path / "folder", files)
    with pytest.raises(DataError, match=text):
        load_data(config(path, **keys), 0)
    assert not list(tmp_path.glob("cache/.*"))


@pytest.mark.parametrize("part", ["Test", "testing", "eval", "holdout", "TRAIN"])
@pytest.mark.parametrize("packed", [False, True])
def test_images_that_would_not_be_used_are_refused(tmp_path: Path, packed: bool, part: str) -> None:
    """Else test images are drawn from the training images, and the user's own are left alone."""
    files = image_files(test=False)
    files |= {name.replace("train/", f"{part}/"): content for name, content in files.items()}
    files |= {"docs/pictures/a.png": encoded(1), "README.txt": b"of other things"}
    path = make_zip(tmp_path / "a.zip", files) if packed else make_folder(tmp_path / "folder", files)
    with pytest.raises(DataError, match=rf"images of the same classes in {part}.* rename it to test"):
        load_data(config(path), 0)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_as_other_programs_write_them(tmp_path: Path) -> None:
    files = image_files()
    wanted = load_data(config(make_zip(tmp_path / "plain.zip", files)), 0)
    dotted = make_zip(tmp_path / "dotted.zip", {f"./{name}": content for name, content in files.items()})
    backward = make_zip(tmp_path / "back.zip", {name.replace("/", "\\"): content for name, content in files.items()})
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as archive:
        for name in files:
            archive.writestr(name, encoded(12345))  # updated since
        for name, content in files.items():
            archive.writestr(name, content)
    for path in (dotted, backward, twice):
        assert same(load_data(config(path), 0), wanted), path


@pytest.mark.parametrize("given", ["", None, "own"])
def test_the_cache_is_where_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """An empty variable is none, by the XDG convention."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if given is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / given) if given else "")
    load_data(config(make_zip(tmp_path / "a.zip", image_files()), cache="default"), 0)
    wanted = tmp_path / ("own" if given else "home/.cache") / "dnas"
    assert [path.suffix for path in wanted.iterdir()] == [".safetensors"]


def test_a_file_that_keeps_its_time_and_size_is_decoded_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "folder", image_files(form="BMP"))
    for path in root.rglob("*.bmp"):
        os.utime(path, ns=(0, 0))
    before = load_data(config(root), 0)
    for number, path in enumerate(sorted(root.rglob("*.bmp"))):
        path.write_bytes(encoded(5000 + number, form="BMP"))
        os.utime(path, ns=(0, 0))
    assert not same(load_data(config(root), 0), before)


def test_errors_of_paths(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"no zip")
    (tmp_path / "folder").mkdir()
    alone = {name: data for name, data in image_files().items() if "/ant/" in name}
    for path, text in (
        (tmp_path / "absent.zip", r"absent\.zip, where nothing exists"),
        (tmp_path / "no.zip", r"no\.zip is not a readable zip"),
        (make_zip(tmp_path / "empty.zip", {}), r"empty\.zip holds no files"),
        (tmp_path / "folder", r"folder holds no files"),
        (make_zip(tmp_path / "flat.zip", {"a/0.png": encoded(0)}), r"has no images in train/"),
        (make_zip(tmp_path / "one.zip", alone), r"single class, ant"),
    ):
        with pytest.raises(DataError, match=text):
            load_data(config(path), 0)
    empty = make_folder(tmp_path / "full", image_files())
    (empty / "train/dog").mkdir()
    with pytest.raises(DataError, match="train/dog holds no images"):
        load_data(config(empty), 0)
    damaged = make_zip(tmp_path / "damaged.zip", image_files())
    content = bytearray(damaged.read_bytes())
    content[60:90] = bytes(30)  # inside the first file
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"train/ant/0\.png in .*damaged\.zip cannot be decoded"):
        load_data(config(damaged), 0)


def test_configuration_files(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", image_files())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"data.path={path}", f"data.cache={tmp_path}", "data.image_size=[4,4]"]
        packed = compose(overrides=["+data=cifar10", *overrides]).data
        for name in ("digits", "image_folder", "cifar10", "custom"):
            assert set(compose(overrides=[f"+data={name}"]).data) == set(vars(DataConfig()))
        digits = data_config(compose(overrides=["+data=digits"]).data)
    assert load_data(packed, 0).name == "CIFAR-10 (JPEG)"
    assert digits.augment == "shift"
    assert digits.cache == "default"
    for key, value, text in (
        ("path", "???", r"data\.path has no value"),
        ("limit_train", "many", r"`data` does not fit.*many"),
        ("limits", 3, r"limits.*allowed keys: name, source"),
    ):
        with pytest.raises(DataError, match=text):
            load_data(OmegaConf.create({**packed, key: value}), 0)


def test_splits_are_not_in_order_of_classes(tmp_path: Path) -> None:
    """Calibration, batch statistics and verification read splits in order: no stretch may be of one class."""
    data = load_data(config(make_folder(tmp_path / "images", image_files()), validation_share=0.3), 0)
    for split in data.splits.values():
        changes = int((split.labels[1:] != split.labels[:-1]).sum())
        assert changes > 1, "one change is all that two classes in order have"
