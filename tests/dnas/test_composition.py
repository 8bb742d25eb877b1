"""Compositions: how many filters get each width, by largest remainder and by sensitivity."""

import pytest
import torch

from dnas.search.composition import Composition, largest_remainder
from dnas.search.relax import Relaxation


@pytest.mark.parametrize(
    ("shares", "total", "want"),
    [
        ((0.5, 0.5), 4, [2, 2]),
        ((0.4, 0.35, 0.25), 10, [4, 3, 3]),  # the later of two equal remainders
        ((0.9, 0.1), 4, [4, 0]),
        ((1.0, 0.0, 0.0), 7, [7, 0, 0]),
        ((0.34, 0.33, 0.33), 1, [1, 0, 0]),
    ],
)
def test_largest_remainder(shares: tuple[float, ...], total: int, want: list[int]) -> None:
    assert largest_remainder(shares, total) == want


def test_shares_are_laid_end_to_end_the_widest_first() -> None:
    found = Composition([slice(0, 4)], 5)
    assert found.rows == 2
    places = torch.tensor([2, 0, 3, 1, 0])  # filter 1 is the most sensitive
    weights = torch.tensor([[0.375, 0.5, 0.125], [0.2, 0.3, 0.5]], dtype=torch.float64)
    decided = found.expand(weights, places, torch.ones(5, 3, dtype=torch.bool), hard=False)
    want = [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]
    torch.testing.assert_close(decided, torch.tensor(want, dtype=torch.float64))
    torch.testing.assert_close(decided[:4].mean(0), weights[0])
    hard = found.expand(weights, places, torch.ones(5, 3, dtype=torch.bool), hard=True)
    assert hard.sum(1).tolist() == [1.0] * 5
    assert set(hard.flatten().tolist()) == {0.0, 1.0}


def test_gradients_are_those_of_finite_differences() -> None:
    found = Composition([slice(1, 7)], 8)
    generator = torch.Generator().manual_seed(1)
    places = torch.tensor([0, 3, 1, 0, 5, 4, 2, 0])
    upstream = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def value(logits: torch.Tensor) -> torch.Tensor:
        return (found.expand(logits.softmax(1), places, torch.ones(8, 3, dtype=torch.bool), False) * upstream).sum()

    assert torch.autograd.gradcheck(value, logits)


def test_samples_spread_as_those_of_a_multinomial() -> None:
    filters, shares = 64, torch.tensor([0.2, 0.3, 0.5])
    found = Composition([slice(0, filters)], filters)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, 1, 3, generator=generator).clamp(1e-9, 1 - 1e-9)
    noise = -torch.log(-torch.log(uniform))
    drawn = torch.stack([found.sample(shares.log().unsqueeze(0), Relaxation(), 1.0, n)[0] for n in noise])
    torch.testing.assert_close(drawn.mean(0), shares, rtol=0.05, atol=0.02)
    want = (shares * (1 - shares) / filters).sqrt()
    assert bool(((drawn.std(0) / want - 1).abs() < 0.4).all())
