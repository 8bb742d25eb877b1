"""The mixture kernel against the sum of single quantisers, in value and in every gradient."""

import pytest
import torch
from torch import Tensor

from quant.mixture import mixture
from quant.quantizer import quantize
from quant.spec import QuantSpec

SPECS = tuple(QuantSpec(bits, True) for bits in (2, 4, 8))


def _setup(generator: torch.Generator, per_filter: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    x = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    shape = (4,) if per_filter else ()
    steps = [torch.rand(shape, generator=generator, dtype=torch.float64) / 3 + 0.1 for _ in SPECS]
    return x, tuple(step.requires_grad_() for step in steps)


@pytest.mark.parametrize("per_filter", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("portions", [(0.2, 0.5, 0.3), (0.0, 1.0, 0.0), (0.0, 0.4, 0.6), (1.0, 0.0, 0.0)])
def test_equals_the_sum_of_quantisers(
    per_filter: bool, batched: bool, portions: tuple[float, ...], generator: torch.Generator
) -> None:
    if per_filter and batched:
        pytest.skip("activations have one step")
    x, steps = _setup(generator, per_filter)
    weights = torch.tensor(portions, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    want = sum(w * quantize(x, s, spec, batched) for w, s, spec in zip(weights, steps, SPECS, strict=True))
    got = mixture(x, weights, steps, SPECS, batched)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    wanted = torch.autograd.grad(want, (x, weights, *steps), upstream)
    found = torch.autograd.grad(got, (x, weights, *steps), upstream, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_one_hot_is_bit_for_bit_the_option(generator: torch.Generator) -> None:
    x = torch.randn(5, 7, generator=generator)
    steps = tuple(torch.rand(5, generator=generator) / 5 + 0.01 for _ in SPECS)
    for k, spec in enumerate(SPECS):
        weights = torch.zeros(3)
        weights[k] = 1.0
        assert torch.equal(mixture(x, weights, steps, SPECS), quantize(x, steps[k], spec))


def test_every_option_gets_its_gradient_from_the_one_that_ran(generator: torch.Generator) -> None:
    x, steps = _setup(generator, True)
    weights = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    mixture(x, weights, steps, SPECS).backward(upstream)
    want = [float((upstream * quantize(x, s, spec)).sum().detach()) for s, spec in zip(steps, SPECS, strict=True)]
    assert weights.grad.tolist() == pytest.approx(want, rel=1e-12)
    assert steps[2].grad is not None
    assert steps[0].grad is None or not steps[0].grad.any()


def test_no_weight_gives_zeros_with_zero_gradient(generator: torch.Generator) -> None:
    x, steps = _setup(generator, False)
    got = mixture(x, torch.zeros(3, dtype=torch.float64), steps, SPECS)
    assert torch.equal(got, torch.zeros_like(x))
    got.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
