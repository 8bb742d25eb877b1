"""Parameters and buffers that are added or multiplied per channel: they lose the entries of removed filters."""

import torch
from equivalence import check
from torch import Tensor, nn

import dnas
from dnas.space.architecture import Architecture


class Tokens(nn.Module):
    """A class token, position embeddings, a layer scale and a buffer, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 8, 8))
        self.gamma = nn.Parameter(torch.rand(8) + 0.5)
        self.register_buffer("shift", torch.randn(8))
        self.up, self.down, self.fc = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.place
        x = x + self.gamma * self.down(self.up(self.norm(x)).relu()) - self.shift
        return self.fc(x[:, 0])


def test_masked_equals_realised() -> None:
    supernet = check(Tokens, (torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0)),))
    space = supernet.space
    assert {g.members for g in space.groups if space.choice(g.choice).searched} == {("embed", "down"), ("up",)}
    smallest = Architecture(space, {choice.name: choice.options[0] for choice in space.choices})
    realised = dnas.realise(supernet, smallest)
    shapes = {name: tuple(getattr(realised, name).shape) for name in ("token", "place", "gamma", "shift")}
    assert shapes == {"token": (1, 1, 2), "place": (1, 8, 2), "gamma": (2,), "shift": (2,)}
