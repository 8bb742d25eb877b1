"""Parts that a user has frozen: layers without gradients, batch norms that stay in evaluation mode."""

import pytest
import torch
from torch import Tensor, nn

import dnas
from dnas.recipe import reestimate_batch_norm


class Frozen(nn.Sequential):
    """Its first layer and the batch norm after it stay as they are."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        self[0].requires_grad_(False)
        assert isinstance(self[1], nn.BatchNorm2d)
        assert self[1].running_mean is not None
        self[1].running_mean.fill_(0.3)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self[1].eval()
        return self


def loader(images: int, size: int, generator: torch.Generator) -> torch.utils.data.DataLoader[tuple[Tensor, ...]]:
    x, y = torch.randn(images, 3, 8, 8, generator=generator), torch.randint(4, (images,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=size, drop_last=True)


@pytest.mark.parametrize("kernels", [(), (3,)])
def test_frozen_parts_stay_as_they_are(kernels: tuple[int, ...], generator: torch.Generator) -> None:
    model = Frozen()
    space = dnas.build_space(model, torch.randn(2, 3, 8, 8, generator=generator), kernels=kernels)
    supernet = dnas.Supernet(model, space)
    smallest = supernet.with_filters(dnas.Architecture.at(space, space.extreme(dearest=False)))
    small = dnas.realise(supernet, smallest)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert {"0.weight", "0.bias"} <= frozen
    batches = loader(32, 8, generator)
    dnas.retrain(small, batches, batches, config=dnas.RetrainConfig(epochs=1))
    after = small.state_dict()
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(after[name], before[name]), name
    for name in ("3.weight", "4.running_mean"):
        assert not torch.equal(after[name], before[name]), name


def test_a_loader_without_a_batch_is_refused(generator: torch.Generator) -> None:
    model = Frozen()
    space = dnas.build_space(model, torch.randn(2, 3, 8, 8, generator=generator))
    small = dnas.realise(dnas.Supernet(model, space), dnas.Architecture.at(space, space.extreme(dearest=True)))
    empty, batches = loader(8, 16, generator), loader(8, 8, generator)
    for train, validation in ((empty, batches), (batches, empty)):
        with pytest.raises(ValueError, match=r"DataLoader has no batches: .* drop_last"):
            dnas.retrain(small, train, validation, config=dnas.RetrainConfig(epochs=1))


def test_statistics_stay_where_no_batch_gives_others() -> None:
    model = Frozen()
    reestimate_batch_norm(model, [])
    assert isinstance(model[1], nn.BatchNorm2d)
    assert model[1].running_mean is not None
    assert torch.equal(model[1].running_mean, torch.full((8,), 0.3))
