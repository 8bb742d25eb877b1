"""Batches: order, augmentation against a slow version, limits and processes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dnas.data import Batches, Data, DataConfig, DataError, Split, batches, load_data
from dnas.data.load import moments
from dnas.loaders import as_batches, first_batches, span


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DataConfig(source="digits", validation_share=0.2), 0)


def _batches(data: Data, augment: str, **keys: Any) -> Batches:
    arguments: dict[str, Any] = {"batch_size": 8, "seed": 1, "mean": data.mean, "std": data.std, "augment": augment}
    return Batches(data.splits["weights"], **{**arguments, **keys})


def _all(loader: Batches, epoch: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    parts = list(loader.epoch(epoch, start))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.parametrize(("augment", "padding"), [("none", 0), ("crop_flip", 4), ("shift", 1)])
def test_augmentation_against_a_slow_version(augment: str, padding: int) -> None:
    images = torch.randint(0, 256, (50, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(50))
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    loader = Batches(split, batch_size=16, seed=3, mean=mean, std=std, augment=augment)
    order, moves, flips = loader._plan(2)
    x, y = _all(loader, 2)
    assert torch.equal(y, order)
    assert sorted(y.tolist()) == list(range(50))
    for place in range(50):
        picture = images[order[place]].numpy().astype(np.float64)
        if augment == "crop_flip" and flips[place]:
            picture = picture[:, :, ::-1]
        slow = np.zeros((3, 7, 9))
        for row in range(7):
            for column in range(9):
                r, c = row + int(moves[place, 0]) - padding, column + int(moves[place, 1]) - padding
                if 0 <= r < 7 and 0 <= c < 9:
                    slow[:, row, column] = picture[:, r, c]
        slow = (slow / 255 - mean.numpy()[:, None, None]) / std.numpy()[:, None, None]
        np.testing.assert_allclose(x[place].numpy(), slow, atol=1e-5)
    assert moves.min() == 0
    assert moves.max() == 2 * padding
    assert 10 < flips.sum() < 40


def test_batches_depend_on_seed_and_epoch_alone(digits: Data) -> None:
    loader = _batches(digits, "crop_flip")
    torch.manual_seed(0)
    x, y = _all(loader, 3)
    torch.manual_seed(1)
    assert torch.equal(x, _all(_batches(digits, "crop_flip", batch_size=100), 3)[0])
    assert torch.equal(x[16:], _all(loader, 3, start=2)[0])
    assert not torch.equal(y, _all(loader, 4)[1])
    assert not torch.equal(y, _all(_batches(digits, "none", seed=2), 3)[1])
    split = digits.splits["weights"]
    alone = batches(split, 8, 1, 3, "crop_flip", digits.mean, digits.std)
    assert torch.equal(x, torch.cat([part for part, _ in alone]))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(_all(_batches(digits, "none", shuffle=False))[1], split.labels)


def test_lengths_limits_and_processes(digits: Data) -> None:
    assert len(_batches(digits, "none")) == 68
    assert len(_batches(digits, "none", drop_last=True)) == 67
    x, y = _all(_batches(digits, "shift"))
    assert torch.equal(x[:20], _all(_batches(digits, "shift", images_limit=20))[0])
    assert len(_batches(digits, "none", images_limit=10**6)) == 68
    for rank in range(4):  # 539 = 4 * 134 + 3
        part, labels = _all(_batches(digits, "shift", rank=rank, world_size=4))
        assert torch.equal(part, x[rank:536:4])
        assert torch.equal(labels, y[rank:536:4])
    shares = [_all(_batches(digits, "none", shuffle=False, rank=rank, world_size=4))[1] for rank in range(4)]
    assert sum(len(share) for share in shares) == 539


def test_errors_of_batches(digits: Data) -> None:
    for keys, text in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 600, "drop_last": True}, "make no batch of 600"),
        ({"images_limit": 0}, "images_limit is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"mean": torch.zeros(3)}, "needed: \\[1\\]"),
    ):
        with pytest.raises(DataError, match=text):
            _batches(digits, "none", **keys)
    with pytest.raises(DataError, match="augment is 'cut'"):
        _batches(digits, "cut")


def test_a_constant_channel_has_deviation_one() -> None:
    assert moments([torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)]) == (torch.tensor([0.2]), torch.ones(1))


def test_the_first_images_of_an_epoch_are_as_many_as_were_asked_for() -> None:
    loader = as_batches(DataLoader(TensorDataset(torch.arange(100), torch.zeros(100)), 16), torch.device("cpu"))
    for images, sizes in ((40, [16, 16, 8]), (32, [16, 16]), (16, [16]), (17, [16, 2]), (1000, [16] * 6 + [4])):
        assert [len(x) for x, _ in first_batches(loader, images)] == sizes


@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_of_an_epoch_of_a_users_loader_are_of_one_order(shuffle: bool) -> None:
    """Each part is asked for by itself, torch's generator somewhere else by then; another epoch has another order."""
    loader = DataLoader(TensorDataset(torch.arange(100), torch.zeros(100)), 10, shuffle=shuffle)
    batches = as_batches(loader, torch.device("cpu"), seed=3)

    def images(first: int, last: int) -> list[int]:
        return [int(i) for x, _ in span(batches, first, last) for i in x]

    found: list[int] = []
    for part in range(8):
        torch.manual_seed(part)
        before = torch.get_rng_state()
        found += images(5 * part, 5 * part + 5)
        assert torch.equal(torch.get_rng_state(), before)
    epochs = [found[i : i + 100] for i in range(0, 400, 100)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert (epochs[0] != epochs[1]) == shuffle
    assert images(0, 40) == found
    assert (
        images(0, 10) != [int(i) for x, _ in as_batches(loader, torch.device("cpu"), 4).epoch(0) for i in x]
    ) == shuffle


def test_rounds_take_other_images_of_a_loader_in_fixed_order() -> None:
    loader = DataLoader(TensorDataset(torch.arange(100), torch.zeros(100)), 10)
    batches = as_batches(loader, torch.device("cpu"))
    found = [[int(i) for x, _ in first_batches(batches, 25, epoch) for i in x] for epoch in range(5)]
    assert found[:3] == [list(range(25)), list(range(30, 55)), list(range(60, 85))]
    assert found[3] == [*range(90, 100), *range(15)]  # and from the start again
    assert found[4] == list(range(20, 45))
