"""All choices in one matrix: what stands beyond a choice's own options neither acts nor learns."""

import pytest
import torch
from networks import Residual, example
from torch import Tensor

from dnas.search.choices import RelaxedChoices
from dnas.search.relax import MODES, Relaxation
from dnas.space.build import build_space

WIDTHS = {"weight_bits": (2, 3, 4, 6, 8), "act_bits": (4, 8), "filters": (0.25, 0.5, 1.0)}


def choices(mode: str = "gumbel_hard") -> RelaxedChoices:
    """Choices of five, two and three options, and some of one."""
    model = Residual()
    space = build_space(model, example(model), WIDTHS["weight_bits"], WIDTHS["act_bits"], WIDTHS["filters"])
    found = RelaxedChoices(space, Relaxation(mode), 0)
    assert {len(found.sizes) > 3, set(found.sizes) == {2, 3, 5}, len(found.fixed) > 0} == {True}
    with torch.no_grad():
        found.logits.copy_(torch.randn(found.logits.shape, generator=torch.Generator().manual_seed(2)))
        found.logits[~found.exists] = 50.0  # would win every draw if it took part
    return found


@pytest.mark.parametrize("mode", MODES)
def test_options_that_do_not_exist_are_never_drawn_and_get_no_gradient(mode: str) -> None:
    found = choices(mode)
    for _ in range(20):
        weights = found.sample()
        assert not weights[~found.exists].any()
        assert weights.sum(1).tolist() == pytest.approx([1.0] * len(found.sizes), abs=1e-6)
    (weights * torch.randn(weights.shape)).sum().backward()
    assert not found.logits.grad[~found.exists].any()
    assert bool(found.logits.grad[found.exists].any())
    assert not found.benefit[~found.exists].any()


def test_probabilities_are_those_of_each_choice_alone() -> None:
    found = choices()
    logits = found.rows(found.logits.detach())
    for name, value in found.probabilities().items():
        wanted: Tensor = torch.softmax(logits[name], 0) if name in logits else torch.ones(1)
        torch.testing.assert_close(value.detach(), wanted)


def test_parts_gather_gradients_where_they_belong() -> None:
    found = choices()
    matrix = torch.zeros(found.logits.shape, requires_grad=True)
    parts = found.parts(matrix)
    sum((i + 1) * parts[name].sum() for i, name in enumerate(found.index)).backward()
    wanted = torch.arange(1, len(found.sizes) + 1).unsqueeze(1) * found.exists
    assert torch.equal(matrix.grad, wanted.float())


def test_of_equally_probable_options_the_dearest() -> None:
    found = choices()
    with torch.no_grad():
        found.logits.zero_()
    assert found.most_probable() == [size - 1 for size in found.sizes]
    with torch.no_grad():
        found.logits[:, 0] = 1.0
    assert found.most_probable() == [0] * len(found.sizes)
    assert found.discrete(found.most_probable())[:, 0].tolist() == [1.0] * len(found.sizes)


def test_benefits_are_centred_on_the_options_that_exist() -> None:
    found = choices("softmax")
    (found.sample() * torch.arange(5.0)).sum().backward()  # the gradient of option k is k, whatever its choice
    for name, value in found.benefits().items():
        size = found.sizes[found.index[name].start]
        wanted = [(size - 1) / 2 - k for k in range(size)]
        assert value.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
