"""Modules that may be left out: squeeze-and-excitation, inside of blocks that may be left out, too."""

import pytest
import torch
from equivalence import check_elastic
from torch import nn

import dnas
from dnas.models import elastic_mobilenet
from dnas.search.measure import switch_options
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture


def network() -> nn.Module:
    return elastic_mobilenet(
        3, 5, stem=(8, 8), stem_stride=1, stages=(8, 12), strides=(1, 2), depth=3, expansion=4, last=(24, 24)
    )


def test_masked_equals_realised_with_kernels_depth_and_branches() -> None:
    supernet = check_elastic(
        network, draws=3, filters=(0.5, 0.75, 1.0), kernels=(3, 5), min_depth=2, branches=("*.se",)
    )
    kinds = [c.kind for c in supernet.space.searched()]
    assert (kinds.count("kernel"), kinds.count("branch"), kinds.count("depth")) == (6, 6, 2)
    assert len(supernet.space.gates_of("stages.1.2.se.reduce")) == 2


def test_a_branch_of_a_block_that_is_left_out_is_measured_where_the_block_runs() -> None:
    torch.manual_seed(0)
    model, x = network(), torch.randn(16, 3, 8, 8)
    model(x)
    space = dnas.build_space(model.eval(), x, (2, 4), (4, 8), (0.5, 1.0), min_depth=2, branches=("*.se",))
    supernet = Supernet(model, space)
    supernet.calibrate(x)
    full = {c.name: c.options[-1] for c in space.choices}
    shallow = {c.name: c.options[0] if c.kind == "depth" else c.options[-1] for c in space.choices}
    batch = x, torch.randint(5, (16,))
    opened, left_out = (
        switch_options(supernet, Architecture(space, options), [batch])[0] for options in (full, shallow)
    )
    last, first = "stages.1.2.se.branch", "stages.1.0.se.branch"
    assert left_out.values[last] == opened.values[last]
    assert left_out.values[last][0] != 0.0
    assert left_out.values[first] != opened.values[first]  # that block runs in both, among others


def test_choices_stand_in_the_order_of_the_model() -> None:
    space = dnas.build_space(network().eval(), torch.randn(2, 3, 8, 8), branches=("stages.*.se",))
    names = [c.name for c in space.choices if c.kind == "branch"]
    assert names == [f"stages.{stage}.{block}.se.branch" for stage in range(2) for block in range(3)]


@pytest.mark.parametrize(
    ("glob", "reason"), [("*.nothing", "matches no module"), ("stem", r"stem cannot be left out: it makes")]
)
def test_what_cannot_be_left_out_is_an_error(glob: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"space.branches.*{reason}"):
        dnas.build_space(network().eval(), torch.randn(2, 3, 8, 8), branches=(glob,))
