"""The mixture, in plain torch and in the C++ kernel, against the sum of single quantisers: values and every gradient."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import quant.mixture
from quant.kernel import kernel_available
from quant.mixture import grid_bounds, mixture
from quant.quantizer import quantize
from quant.spec import MIN_STEP, QuantSpec

SPECS = tuple(QuantSpec(bits, True) for bits in (2, 4, 8))
BOUNDS = grid_bounds(SPECS)


@pytest.fixture(params=["plain", "kernel"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Plain torch, and the kernel, which has to build where there is a compiler: CI has one."""
    if request.param == "plain":
        monkeypatch.setattr(quant.mixture, "kernel_available", lambda: False)
    else:
        assert kernel_available()
    return request.param


def _setup(generator: torch.Generator, per_filter: bool) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    steps = torch.rand((3, 4) if per_filter else (3,), generator=generator, dtype=torch.float64) / 3 + 0.1
    return x, steps.requires_grad_()


@pytest.mark.usefixtures("backend")
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
    got = mixture(x, weights, steps, *BOUNDS, batched, hard=1.0 in portions)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    wanted = torch.autograd.grad(want, (x, weights, steps), upstream)
    found = torch.autograd.grad(got, (x, weights, steps), upstream)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("backend")
def test_one_hot_is_bit_for_bit_the_option(generator: torch.Generator) -> None:
    x = torch.randn(5, 7, generator=generator)
    steps = torch.rand(3, 5, generator=generator) / 5 + 0.01
    for k, spec in enumerate(SPECS):
        weights = torch.zeros(3)
        weights[k] = 1.0
        for hard in (True, False):
            assert torch.equal(mixture(x, weights, steps, *BOUNDS, hard=hard), quantize(x, steps[k], spec))


@pytest.mark.usefixtures("backend")
def test_every_option_gets_its_gradient_from_the_one_that_ran(generator: torch.Generator) -> None:
    x, steps = _setup(generator, True)
    weights = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    mixture(x, weights, steps, *BOUNDS, hard=True).backward(upstream)
    want = [float((upstream * quantize(x, s, spec)).sum().detach()) for s, spec in zip(steps, SPECS, strict=True)]
    assert weights.grad.tolist() == pytest.approx(want, rel=1e-12)
    assert steps.grad[2].all()
    assert not steps.grad[:2].any()


@pytest.mark.usefixtures("backend")
def test_no_weight_gives_zeros_with_zero_gradient(generator: torch.Generator) -> None:
    x, steps = _setup(generator, False)
    got = mixture(x, torch.zeros(3, dtype=torch.float64), steps, *BOUNDS)
    assert torch.equal(got, torch.zeros_like(x))
    got.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.usefixtures("backend")
def test_a_step_that_fell_below_the_smallest_can_come_back(generator: torch.Generator) -> None:
    x = torch.randn(6, generator=generator)
    steps = torch.tensor([-1.0], requires_grad=True)
    got = mixture(x, torch.ones(1), steps, *grid_bounds(SPECS[:1]), hard=True)
    assert torch.equal(got, quantize(x, torch.tensor(MIN_STEP), SPECS[0]))
    got.sum().backward()
    assert bool(steps.grad.any())


@pytest.mark.usefixtures("backend")
def test_not_a_number_stays_one(generator: torch.Generator) -> None:
    x = torch.randn(40, generator=generator)
    x[7] = float("nan")
    x.requires_grad_()
    weights = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    got = mixture(x, weights, torch.full((3,), 0.1), *BOUNDS, hard=True)
    assert got.isnan().nonzero().flatten().tolist() == [7]
    got.backward(torch.ones(40))
    assert weights.grad.isnan().all()


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda x: torch.cat([x, x], 3)[..., ::2],
    "with gaps as large as its rows": lambda x: (
        x[:, :4]
        .repeat_interleave(2, 2)
        .repeat_interleave(2, 3)
        .transpose(0, 1)
        .contiguous()[:, :, ::2, ::2]
        .transpose(0, 1)
    ),
    "expanded": lambda x: x[:, :1].expand(-1, 6, -1, -1),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_filter", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("upstream_layout", ["contiguous", "channels last"])
def test_the_kernel_is_the_definition(
    layout: str, per_filter: bool, dtype: torch.dtype, upstream_layout: str, generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In every layout, for tensors of several blocks: values bit for bit, gradients up to the order of their sums."""
    x = LAYOUTS[layout](torch.randn(9, 6, 31, 16, generator=generator, dtype=torch.float64).to(dtype))
    steps = (torch.rand((3, 9) if per_filter else (3,), generator=generator) / 3 + 0.1).to(dtype)
    if layout == "empty" and per_filter:
        steps = steps[:, :0]
    upstream = LAYOUTS[upstream_layout](torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype))
    results = []
    for loaded in (True, False):
        monkeypatch.setattr(quant.mixture, "kernel_available", lambda loaded=loaded: loaded and kernel_available())
        inputs = [t.clone().requires_grad_() for t in (torch.tensor([0.0, 1.0, 0.0], dtype=dtype), steps)]
        own = x.detach().requires_grad_()
        y = mixture(own, *inputs, *BOUNDS, not per_filter, hard=True)
        results.append((y, *torch.autograd.grad(y, (own, *inputs), upstream)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for a, b in zip(results[0][2:], results[1][2:], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_number_of_threads_changes_no_bit(generator: torch.Generator) -> None:
    x = torch.randn(64, 4, 40, 40, generator=generator)
    upstream, threads, found = torch.randn(x.shape, generator=generator), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            weights, steps = (
                torch.tensor([0.0, 1.0, 0.0], requires_grad=True),
                torch.full((3,), 0.2, requires_grad=True),
            )
            mixture(x, weights, steps, *BOUNDS, True, hard=True).backward(upstream)
            found.append((weights.grad, steps.grad))
    finally:
        torch.set_num_threads(threads)
    for grads in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0], strict=True))


@pytest.mark.usefixtures("backend")
def test_half_precision_keeps_eight_bit_codes(generator: torch.Generator) -> None:
    x = torch.randn(50, generator=generator).bfloat16()
    got = mixture(x, torch.tensor([0.0, 0.0, 1.0]), torch.full((3,), 0.013), *BOUNDS, hard=True)
    assert torch.equal(got, quantize(x.float(), torch.tensor(0.013), SPECS[2]))


@pytest.mark.usefixtures("backend")
def test_autocast_does_not_round_steps(generator: torch.Generator) -> None:
    x = torch.randn(4, 50, generator=generator)
    weights, steps = torch.tensor([0.0, 1.0, 0.0]), torch.rand(3, 4, generator=generator) / 9 + 0.01
    want = mixture(x, weights, steps, *BOUNDS, hard=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixture(x, weights, steps, *BOUNDS, hard=True), want)


@pytest.mark.usefixtures("backend")
def test_steps_and_weights_may_be_views(generator: torch.Generator) -> None:
    x = torch.randn(4, 6, generator=generator)
    weights = torch.tensor([[0.0, 9.0], [1.0, 9.0], [0.0, 9.0]])[:, 0]
    steps = (torch.rand(4, 3, generator=generator) + 0.1).t()
    bounds = (torch.tensor([-3.0]).expand(3), torch.tensor([3.0]).expand(3))
    want = mixture(x, weights.contiguous(), steps.contiguous(), *(b.contiguous() for b in bounds), hard=True)
    assert torch.equal(mixture(x, weights, steps, *bounds, hard=True), want)


@pytest.mark.usefixtures("backend")
def test_a_step_that_is_not_used_may_be_anything(generator: torch.Generator) -> None:
    x = torch.randn(4, 6, generator=generator)
    steps = torch.tensor([float("nan"), 0.1, float("inf")])
    got = mixture(x, torch.tensor([0.0, 1.0, 0.0]), steps, *BOUNDS, hard=True)
    assert torch.equal(got, quantize(x, steps[1], SPECS[1]))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("steps", "grids"), [(torch.ones(3, 4), 3), (torch.ones(2), 3), (torch.ones(3), 2), (torch.ones(3, 6, 1), 3)]
)
def test_shapes_that_do_not_belong_together(steps: Tensor, grids: int) -> None:
    bounds = grid_bounds(SPECS[:grids])
    with pytest.raises(ValueError, match=r"needed is \(K,\)"):
        mixture(torch.zeros(6, 5), torch.tensor([0.0, 1.0, 0.0]), steps, *bounds)


@pytest.mark.usefixtures("backend")
def test_second_derivatives_are_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    y = mixture(x, torch.ones(1), torch.ones(1), *grid_bounds(SPECS[:1])).square().sum()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(y, x, create_graph=True)


def _portions(hard: bool, generator: torch.Generator) -> Tensor:
    if hard:
        marked = torch.randint(0, 3, (4,), generator=generator)
        return torch.nn.functional.one_hot(marked, 3).T.double().requires_grad_()
    return torch.rand(3, 4, generator=generator, dtype=torch.float64).softmax(0).requires_grad_()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("own_bounds", [True, False])
def test_weights_of_every_filter_are_mixtures_of_single_filters(
    hard: bool, own_bounds: bool, generator: torch.Generator
) -> None:
    x, steps = _setup(generator, True)
    weights = _portions(hard, generator)
    bounds = [bound.double().unsqueeze(1).repeat(1, 4) for bound in BOUNDS]
    if own_bounds:
        bounds[1][:, 2] -= 1
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    got = mixture(x, weights, steps, *(bounds if own_bounds else BOUNDS), hard=hard)
    rows = [
        mixture(x[f : f + 1], weights[:, f], steps[:, f : f + 1], *(b[:, f] for b in bounds), hard=hard)
        for f in range(4)
    ]
    want = torch.cat(rows)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    wanted = torch.autograd.grad(want, (x, weights, steps), upstream)
    found = torch.autograd.grad(got, (x, weights, steps), upstream)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("backend")
def test_every_filter_at_its_own_width_is_bit_for_bit_that_width(generator: torch.Generator) -> None:
    x = torch.randn(4, 7, generator=generator)
    steps = torch.rand(3, 4, generator=generator) / 5 + 0.01
    weights = torch.nn.functional.one_hot(torch.tensor([2, 0, 1, 2]), 3).T.float()
    found = mixture(x, weights, steps, *BOUNDS, hard=True)
    for f, k in enumerate((2, 0, 1, 2)):
        assert torch.equal(found[f], quantize(x[f], steps[k, f], SPECS[k]))


@pytest.mark.usefixtures("backend")
def test_filters_need_steps_of_their_own() -> None:
    with pytest.raises(ValueError, match="for the steps and then for any other"):
        mixture(torch.zeros(4, 5), torch.ones(3, 4), torch.ones(3), *BOUNDS)
