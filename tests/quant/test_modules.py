"""What a model's code holds beside its parts: copies and exchanged layers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from quant.layers import training_twin
from quant.modules import copied, replace_module


class Keeping(nn.Module):
    """Keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.kept: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [{"hidden": self.layer(x)}]
        return self.kept[0]["hidden"].relu()


def test_a_model_that_keeps_a_tensor_of_its_graph_is_copied() -> None:
    model, x = Keeping(), torch.randn(4, 3)
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    found = copied(model)
    assert isinstance(found, Keeping)
    assert torch.equal(found.kept[0]["hidden"], model.kept[0]["hidden"])
    assert not found.kept[0]["hidden"].requires_grad
    assert found.layer.weight is not model.layer.weight
    assert torch.equal(found(x), model(x))
    twin = training_twin(model)
    assert isinstance(twin, Keeping)
    assert twin.layer.weight is model.layer.weight


class Listed(nn.Module):
    """Runs layers out of lists that are no module lists."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.steps = [self.first, ("relu", self.second)]
        self.named = {"last": [self.third]}
        self.named["itself"] = self.named  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.named["last"][0](self.steps[1][1](self.steps[0](x)).relu())  # type: ignore[index,operator]
        return found


def test_layers_are_exchanged_in_lists_as_well() -> None:
    model, x = copied(Listed()), torch.randn(4, 3)
    ran: list[str] = []
    for name in ("first", "second", "third"):
        new = nn.Linear(3, 3)
        new.register_forward_hook(lambda *_, name=name: ran.append(name))
        old = model.get_submodule(name)
        replace_module(model, name, new)
        assert model.get_submodule(name) is new
        assert old not in model.modules()
    model(x)
    assert ran == ["first", "second", "third"]
