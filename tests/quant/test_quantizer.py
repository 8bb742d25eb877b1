"""The learned-step kernel against a slow loop, and its gradients against plain autograd operations."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

import quant.quantizer
from quant.kernel import kernel_available
from quant.quantizer import fit_step, integers, quantize
from quant.spec import MIN_STEP, QuantSpec, one_or_each, widths

KINDS = ((True, False), (True, True), (False, False))
SPECS = [QuantSpec(bits, signed, narrow) for bits in (2, 3, 4, 8) for signed, narrow in KINDS]


def slow_code(x: float, step: float, spec: QuantSpec) -> int:
    """Rounds half to even in exact arithmetic."""
    return min(max(round(Fraction(x) / Fraction(step)), spec.lower), spec.upper)


def plain(x: Tensor, step: Tensor, spec: QuantSpec, elements: int) -> Tensor:
    """LSQ in ops that autograd knows: detached rounding, detached gradient scale (Esser et al. 2019, appendix B)."""
    scale = (elements * spec.upper) ** -0.5
    shape = [-1] + [1] * (x.dim() - 1) if step.dim() else []
    s = ((step - step * scale).detach() + step * scale).reshape(shape)
    v = torch.clamp(x / s, spec.lower, spec.upper)
    return ((v.round() - v).detach() + v) * s


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_codes_equal_exact_arithmetic_ties_included(spec: QuantSpec, generator: torch.Generator) -> None:
    step = 0.25  # a power of two: quotients are exact, and so are ties
    ties = (torch.arange(-600, 600) + 0.5) * step
    x = torch.cat([ties, torch.randn(500, generator=generator) * 3, torch.tensor([0.0, -0.0, 1e9, -1e9])])
    want = [slow_code(value, step, spec) for value in x.tolist()]
    assert integers(x, torch.tensor(step), spec).tolist() == want
    assert quantize(x, torch.tensor(step), spec).tolist() == [code * step for code in want]


def test_one_step_per_filter(generator: torch.Generator) -> None:
    spec = QuantSpec(4, True)
    x, step = torch.randn(5, 3, 2, 2, generator=generator), torch.rand(5, generator=generator) + 0.1
    want = torch.stack([quantize(x[i], step[i], spec) for i in range(5)])
    assert torch.equal(quantize(x, step, spec), want)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("case", ["per filter", "per tensor", "batched"])
def test_gradients_equal_plain_autograd(spec: QuantSpec, case: str, generator: torch.Generator) -> None:
    x = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    step = torch.rand(4 if case == "per filter" else (), generator=generator, dtype=torch.float64) / 2 + 0.1
    step.requires_grad_()
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    elements = {"per filter": 15, "per tensor": 60, "batched": 15}[case]
    want = torch.autograd.grad(plain(x, step, spec, elements), (x, step), upstream)
    got = torch.autograd.grad(quantize(x, step, spec, batched=case == "batched"), (x, step), upstream)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_gradient_where_none_is_asked_for(generator: torch.Generator) -> None:
    x = torch.randn(6, generator=generator)
    step = torch.tensor(0.3, requires_grad=True)
    quantize(x, step, QuantSpec(3, True)).sum().backward()
    assert step.grad is not None
    y = x.clone().requires_grad_()
    quantize(y, step.detach(), QuantSpec(3, True)).sum().backward()
    inside = (x / 0.3 >= -4) & (x / 0.3 <= 3)
    assert torch.equal(y.grad, inside.float())


@pytest.mark.parametrize("loaded", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fit_step_is_the_best_of_its_grid(
    spec: QuantSpec, loaded: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.quantizer, "kernel_available", lambda: loaded and kernel_available())
    x = torch.randn(3, 200, generator=generator)
    x = x if spec.signed else x.abs()

    def error(row: Tensor, step: float) -> float:
        return sum((slow_code(v, step, spec) * step - v) ** 2 for v in row.tolist())

    found = fit_step(x, spec, per_filter=True)
    for row, step in zip(x, found.tolist(), strict=True):
        largest = float(row.abs().max())
        best = error(row, step)
        grid = [largest / spec.upper * (0.025 + 0.975 * i / 80) for i in range(1, 81)]
        nearest = min(range(80), key=lambda i: abs(grid[i] - step))
        assert abs(grid[nearest] - step) < 1e-5 * step
        for other in (*range(max(nearest - 2, 0), min(nearest + 3, 80)), 79):
            assert best <= error(row, grid[other]) * (1 + 1e-4) + 1e-9
    assert torch.equal(fit_step(x.flatten(), spec, per_filter=False), fit_step(x, spec, per_filter=False))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_larger_step_fits_few_values_better(bits: int, generator: torch.Generator) -> None:
    spec, filters = QuantSpec(bits, True), torch.randn(50, 9, generator=generator)
    shares = torch.linspace(0.025, 2.0, 80)
    steps = filters.abs().amax(1, keepdim=True) / spec.upper * shares
    codes = (filters[:, None] / steps[..., None]).round().clamp(spec.lower, spec.upper)
    least = (codes * steps[..., None] - filters[:, None]).square().sum(2).amin(1)
    found = (quantize(filters, fit_step(filters, spec, True), spec) - filters).square().sum(1)
    assert float(found.sum()) < 1.05 * float(least.sum())


def test_fit_step_keeps_what_the_grid_holds() -> None:
    x, spec = torch.tensor([[-1.0, 0.0, 1.0]]), QuantSpec(2, True)
    assert torch.equal(quantize(x, fit_step(x, spec, True), spec), x)


def test_fit_step_of_zeros() -> None:
    spec = QuantSpec(4, True)
    x = torch.zeros(3, 10)
    assert torch.equal(quantize(x, fit_step(x, spec, True), spec), x)
    assert float(fit_step(x, spec, False)) > 0
    x[1] = torch.linspace(-1, 1, 10)
    steps = fit_step(x, spec, True)
    assert (steps >= MIN_STEP).all()
    assert steps[0] == steps[2]


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "word"),
    [
        (0, False, False, "1 to 16"),
        (17, True, False, "1 to 16"),
        (1, True, False, "signed"),
        (4, False, True, "narrow"),
    ],
)
def test_grids_that_do_not_exist(bits: int, signed: bool, narrow: bool, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        QuantSpec(bits, signed, narrow)


def test_ranges_of_grids() -> None:
    ranges = {
        (2, True, False): (-2, 1),
        (2, True, True): (-1, 1),
        (8, False, False): (0, 255),
        (1, False, False): (0, 1),
    }
    for grid, ends in ranges.items():
        assert (QuantSpec(*grid).lower, QuantSpec(*grid).upper) == ends


def test_grids_of_one_tensor() -> None:
    two, four = QuantSpec(2, True), QuantSpec(4, True)
    assert one_or_each(two) == one_or_each([two]) == one_or_each([two, two]) == (two,)
    assert one_or_each([two, four, two]) == (two, four, two)
    assert (widths([two]), widths([two, two]), widths([four, two])) == (2, 2, (4, 2))
    for wrong, text in (
        ([], "empty"),
        ([two, QuantSpec(2, False)], "signed"),
        ([two, QuantSpec(4, True, True)], "narrow"),
    ):
        with pytest.raises(ValueError, match=text):
            one_or_each(wrong)


def test_codes_of_every_filters_own_grid(generator: torch.Generator) -> None:
    specs = [QuantSpec(bits, True) for bits in (2, 3, 8)]
    x, step = torch.randn(3, 50, generator=generator) * 4, torch.tensor([0.5, 0.25, 0.125])
    codes = integers(x, step, specs)
    for i, spec in enumerate(specs):
        assert codes[i].tolist() == [slow_code(value, float(step[i]), spec) for value in x[i].tolist()]
