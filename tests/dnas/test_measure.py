import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.realise import realise
from dnas.recipe import distillation_losses
from dnas.search.measure import measure_scores, switch_options
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.batch_norm import batch_statistics
from dnas.space.build import build_space
from tests.networks import Chain, example

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def supernet(generator: torch.Generator) -> Supernet:
    model = Chain()
    supernet = Supernet(model, build_space(model, example(model), (2, 4, 8), (2, 8), (0.5, 1.0)))
    for _ in range(3):  # running statistics that are not those of the batches below
        supernet(torch.randn(8, 3, 8, 8, generator=generator))
    return supernet


@pytest.fixture
def batches(generator: torch.Generator) -> Batches:
    x, y = torch.randn(40, 3, 8, 8, generator=generator), torch.randint(5, (40,), generator=generator)
    return list(zip(x.split((16, 16, 8)), y.split((16, 16, 8)), strict=True))


def base(supernet: Supernet, position: int) -> Architecture:
    return Architecture(
        supernet.space, {c.name: c.options[min(position, len(c.options) - 1)] for c in supernet.space.choices}
    )


def brute_force(
    supernet: Supernet, architecture: Architecture, batches: Batches, teacher: nn.Module | None, share: float
) -> float:
    """Loss of the realised network, its batch norms by the statistics of all images at once."""
    small = realise(supernet, architecture)
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    with torch.no_grad(), batch_statistics(small):
        logits = small(x)
        loss = F.cross_entropy(logits, y)
        if teacher is not None:
            loss = (1 - share) * loss + share * distillation_losses(logits, teacher(x)).mean()
    return float(loss)


@pytest.mark.parametrize(("position", "share"), [(0, 0.0), (1, 0.5), (9, 1.0)])
def test_equals_realising_every_switched_architecture(
    supernet: Supernet, batches: Batches, position: int, share: float
) -> None:
    teacher = Chain().eval() if share else None
    start = base(supernet, position)
    reference = brute_force(supernet, start, batches, teacher, share)
    values = {}
    for choice in supernet.space.choices:
        switched = [Architecture(supernet.space, {**start.options, choice.name: option}) for option in choice.options]
        values[choice.name] = tuple(reference - brute_force(supernet, a, batches, teacher, share) for a in switched)
    found, _ = switch_options(supernet, start, batches, teacher, share)
    assert found.method == "measured"
    for name, scores in values.items():
        assert found.values[name] == pytest.approx(scores, abs=1e-4), name


def test_errors_are_those_of_a_mean_over_images(supernet: Supernet, batches: Batches) -> None:
    """Against the losses of the realised networks image by image."""
    start = base(supernet, 9)
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def losses(architecture: Architecture) -> Tensor:
        small = realise(supernet, architecture)
        with torch.no_grad(), batch_statistics(small):
            return F.cross_entropy(small(x), y, reduction="none").double()

    _, errors = switch_options(supernet, start, batches)
    reference = losses(start)
    for choice in supernet.space.searched():
        halves = []
        for option in choice.options[:-1]:
            gain = reference - losses(Architecture(supernet.space, {**start.options, choice.name: option}))
            halves.append(float(gain.std(correction=1)) ** 2 / len(y) / 2)
        wanted = [*(half**0.5 for half in halves), (sum(halves) / len(halves)) ** 0.5]
        assert errors[choice.name] == pytest.approx(wanted, rel=1e-3), choice.name


def test_leaves_the_supernet_as_it_was(supernet: Supernet, batches: Batches) -> None:
    before = copy.deepcopy(supernet.state_dict())
    modes = [module.training for module in supernet.modules()]
    first = measure_scores(supernet, base(supernet, 1), batches)
    assert [module.training for module in supernet.modules()] == modes
    for name, value in supernet.state_dict().items():
        assert name.endswith("_extra_state") or torch.equal(value, before[name]), name
    assert measure_scores(supernet, base(supernet, 1), batches) == first


def test_scores_never_fall_and_are_finite(supernet: Supernet, batches: Batches) -> None:
    scores = measure_scores(supernet, base(supernet, 1), batches)
    scores.check(supernet.space)
    for values in scores.values.values():
        assert all(a <= b for a, b in pairwise(values))


def test_the_size_of_the_batches_does_not_matter(supernet: Supernet, batches: Batches) -> None:
    """They are regrouped: batch norms see all images at once."""
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    one = measure_scores(supernet, base(supernet, 1), [(x, y)])
    other = measure_scores(supernet, base(supernet, 1), list(zip(x.split(1), y.split(1), strict=True)))
    for name, values in one.values.items():
        assert other.values[name] == pytest.approx(values, abs=1e-5)


def test_more_bits_are_worth_more(generator: torch.Generator) -> None:
    """A network that reproduces its labels exactly only with fine weights: two bits score below eight everywhere."""
    model = Chain().eval()
    x = torch.randn(128, 3, 8, 8, generator=generator)
    supernet = Supernet(model, build_space(model, (x,), (2, 8), (2, 8), (1.0,)))
    supernet.calibrate(x)
    with torch.no_grad():
        y = model.train()(x).argmax(1)
    scores = measure_scores(supernet, base(supernet, 9), [(x, y)], copy.deepcopy(model).train(), 1.0)
    worth = {c.name: scores.values[c.name][-1] - scores.values[c.name][0] for c in supernet.space.searched()}
    assert sum(value > 0 for value in worth.values()) >= len(worth) - 1, worth
