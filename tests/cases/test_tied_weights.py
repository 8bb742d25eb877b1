"""One weight in two modules: neither loses filters, and they stay tied in the realised network."""

import torch
from equivalence import check
from torch import Tensor, nn

import dnas


class Tied(nn.Module):
    """Tokens in, the embedding's weight once more at the end, and two layers with one weight between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.up, self.down, self.out = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.b(self.a(self.embed(tokens)).relu())
        return self.out(self.down(self.up(x).relu()))


def test_masked_equals_realised() -> None:
    tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(0))
    supernet = check(Tied, (tokens,))
    space = supernet.space
    assert {g.members for g in space.groups if space.choice(g.choice).searched} == {("up",)}
    assert "shares its weight" in {fixed.name: fixed.reason for fixed in space.fixed}["a.filters"]
    realised = dnas.realise(supernet, supernet.most_probable())
    assert realised.out.weight is realised.embed.weight
    assert realised.a.weight is realised.b.weight
