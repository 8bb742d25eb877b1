"""Modules that may be left out: squeeze-and-excitation, inside of blocks that may be left out, too."""

import pytest
import torch
from equivalence import check_elastic
from torch import nn

import dnas
from dnas.models import elastic_mobilenet


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
