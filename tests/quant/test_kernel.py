"""Building the kernel: killed builds leave nothing behind, and without a compiler training goes on."""

from pathlib import Path

import pytest
import torch
from torch import library as torch_library

import quant.kernel as kernel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dnas"


def test_a_build_leaves_the_library_and_nothing_else(cache: Path) -> None:
    library = kernel._library()
    assert library.parent == cache
    assert all(source.exists() for source in kernel.SOURCES)
    kernel._compile(library)
    assert [path.name for path in cache.iterdir()] == [library.name]


def test_another_processor_or_source_is_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernel._library()
    monkeypatch.setattr(kernel, "_processor", lambda: "another")
    assert kernel._library() != first
    monkeypatch.undo()
    monkeypatch.setattr(kernel, "FLAGS", (*kernel.FLAGS, "-g"))
    assert kernel._library().name != first.name


def test_without_a_compiler_a_warning_and_plain_torch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_loaded", False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match=r"could not be built .*DNAS_KERNEL=plain"):
        assert not kernel._load.__wrapped__()
    assert list(cache.iterdir()) == []


def test_plain_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_loaded", False)
    monkeypatch.setenv(kernel.SWITCH, "plain")
    assert not kernel._load.__wrapped__()


def test_a_misspelt_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel.SWITCH, "plane")
    with pytest.raises(ValueError, match="plane"):
        kernel._load.__wrapped__()


def test_shapes_and_strides_are_told_to_the_compiler() -> None:
    """What the fake kernel says of layouts is what the kernel does."""
    assert kernel.kernel_available()
    x = torch.randn(4, 3, 6, 5)
    layouts = (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x[..., ::2],
        torch.randn(4, 4, 8, 8)[:, :, ::2, ::2].transpose(0, 1),
    )
    lower, upper, weights = torch.tensor([-2.0, -8.0]), torch.tensor([1.0, 7.0]), torch.tensor([0.0, 1.0])
    for tensor in layouts:
        by_filter = torch.tensor([[1.0, 0.0]] * 4).T  # with the strides that a choice by filter has
        for steps, own in (
            (torch.full((2,), 0.1), weights), (torch.full((2, 4), 0.1), weights), (torch.full((2, 4), 0.1), by_filter)
        ):  # fmt: skip
            rest = (tensor, own, steps, lower, upper)
            torch_library.opcheck(torch.ops.dnas.mixture_forward, rest)
            for op in (torch.ops.dnas.mixture_backward, torch.ops.dnas.mixture_backward_):
                torch_library.opcheck(op, (torch.randn(tensor.shape), *rest, True))
