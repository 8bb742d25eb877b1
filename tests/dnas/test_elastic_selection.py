"""Selection over kernels, depth and branches: exact solvers agree, also with joint scores and several budgets."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

import dnas
from dnas.models import elastic_mobilenet, resnet20
from dnas.search.scores import Scores, nested
from dnas.select.pareto_front import frontier
from dnas.select.select import select
from dnas.space.choice import Space


def scores(space: Space, seed: int, joint: bool = False) -> Scores:
    generator = np.random.default_rng(seed)
    values = {c.name: tuple(np.sort(generator.normal(0, 1, len(c.options))).tolist()) for c in space.choices}
    tables = []
    for layer in space.layers if joint else ():
        names = (layer.weight_choice, layer.act_choice)
        shape = [len(space.choice(name).options) for name in names]
        tables.append((names, nested(generator.normal(0, 0.5, shape).tolist())))
    return Scores(values, "random", tuple(tables))


def elastic() -> Space:
    torch.manual_seed(0)
    model = elastic_mobilenet(
        3, 5, stem=(8, 8), stem_stride=1, stages=(8, 12), strides=(1, 2), depth=3, expansion=4, last=(16, 16)
    )
    return dnas.build_space(
        model.eval(), torch.randn(2, 3, 8, 8), (2, 8), (4, 8), {"*.expand.0": (0.5, 1.0)}, kernels=(3, 5), min_depth=1,
        branches=("*.se",),
    )  # fmt: skip


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("caps", [{"bops": 0.15}, {"bops": 0.3, "weight_bits": 0.4}], ids=["one", "two"])
def test_labels_and_highs_agree(caps: Mapping[str, float], joint: bool) -> None:
    space, budget = elastic(), dnas.Budget(**caps)
    found = {solver: select(scores(space, 3, joint), space, budget, solver=solver) for solver in ("labels", "highs")}
    labels, highs = found["labels"].certificate, found["highs"].certificate
    assert labels is not None
    assert highs is not None
    assert (labels.method, labels.gap) == ("labels", 0.0)
    assert labels.value == pytest.approx(highs.value, abs=2e-4 * abs(highs.value))
    for cost, limit in budget.limits(space).items():
        assert found["labels"].cost(cost) <= limit


def test_a_front_of_a_resnet_with_depth_is_proven() -> None:
    torch.manual_seed(0)
    space = dnas.build_space(resnet20(3, 10).eval(), torch.randn(2, 3, 32, 32), min_depth=1)
    points = frontier(scores(space, 0), space, "bops", 8)
    certificates = [point.certificate for point in points]
    assert len(points) >= 6
    assert all(certificate is not None and certificate.gap < 1e-6 for certificate in certificates)
    values = [certificate.value for certificate in certificates if certificate]
    costs = [point.cost("bops") for point in points]
    assert values == sorted(values)
    assert costs == sorted(costs)
    depths = [[point[c.name] for c in space.choices if c.kind == "depth"] for point in points]
    assert depths[0] < depths[-1]
