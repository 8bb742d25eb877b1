"""Builds and loads the C++ kernels; without a compiler, plain torch computes the same."""

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch import library as torch_library

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.cpp", "depthwise.cpp"))
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-DAT_PARALLEL_OPENMP=1")
SWITCH = "DNAS_KERNEL"
"""Environment variable: `plain` computes with torch operators alone."""


def cache_folder() -> Path:
    """Where compiled code is kept between runs: $XDG_CACHE_HOME/dnas, by default ~/.cache/dnas."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnas"


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _library() -> Path:
    sources = [source.read_text(encoding="utf-8") for source in SOURCES]
    parts = (*sources, *FLAGS, torch.__version__, platform.machine(), _processor())
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"kernel_{digest}.so"


def _compile(library: Path) -> None:
    """Compiles in a process and a folder of their own and moves the result into place: one killed leaves no lock behind.

    Raises:
        RuntimeError: the last line that the compiler said.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        command = [sys.executable, "-P", __file__, folder]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            lines = [line for line in (found.stdout + found.stderr).splitlines() if line.strip()]
            reasons = [line for line in lines if "error" in line.lower()]
            raise RuntimeError((reasons or lines or ["the compiler said nothing"])[-1].strip())
        os.replace(Path(folder) / "dnas_kernel.so", library)


def _compile_here(folder: str) -> None:
    import ninja
    from torch.utils.cpp_extension import load

    os.environ["PATH"] = f"{ninja.BIN_DIR}:{os.environ.get('PATH', '')}"  # a venv that is not activated is not in it
    load(
        name="dnas_kernel",
        sources=[str(source) for source in SOURCES],
        extra_cflags=list(FLAGS),
        extra_ldflags=["-fopenmp"],
        build_directory=folder,
        is_python_module=False,
    )


def _describe() -> None:
    """Tells `torch.compile` the shapes and strides of what the kernels return."""

    def like(x: Tensor, steps: Tensor) -> Tensor:
        found = torch.empty_like(x)  # keeps the strides of tensors without gaps alone
        if steps.dim() == 2 and (found.stride() != x.stride() or x.stride(0) * x.shape[0] != x.numel()):
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        return found

    @torch_library.register_fake("dnas::mixture_forward")
    def _(x: Tensor, weights: Tensor, steps: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return like(x, steps)

    @torch_library.register_fake("dnas::mixture_backward")
    def _(
        grad: Tensor, x: Tensor, weights: Tensor, steps: Tensor, lower: Tensor, upper: Tensor, need_weights: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return like(x, steps), weights.new_empty(weights.shape), steps.new_empty(steps.shape)

    @torch_library.register_fake("dnas::mixture_backward_")
    def _(
        grad: Tensor, x: Tensor, weights: Tensor, steps: Tensor, lower: Tensor, upper: Tensor, need_weights: bool
    ) -> tuple[Tensor, Tensor]:
        return weights.new_empty(weights.shape), steps.new_empty(steps.shape)

    @torch_library.register_fake("dnas::depthwise_weight_grad")
    def _(
        grad: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
    ) -> Tensor:
        return x.new_empty((x.shape[1], 1, *kernel))


_loaded = False


def kernel_available() -> bool:
    """Whether the C++ kernel is loaded; the first call builds it if need be (seconds, once per machine).

    Where it cannot be built, a warning says why, once, and plain torch is used. Inside of a compiled graph nothing is
    built: the kernel is used where it is loaded already.
    """
    return _loaded if torch.compiler.is_compiling() else _load()


@cache
def _load() -> bool:
    global _loaded
    switch = os.environ.get(SWITCH, "auto")
    if switch not in ("auto", "plain"):
        raise ValueError(f"{SWITCH}={switch}; allowed: auto, plain")
    if switch == "plain":
        return False
    try:
        library = _library()
        if not library.exists():
            _compile(library)
        torch.ops.load_library(str(library))
        _describe()
        _loaded = True
    except Exception as error:  # whatever a foreign tool chain does, training goes on
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"the fast quantisation kernel could not be built ({reason}); plain torch is used, which is slower. Install a "
            f"C++ compiler and ninja, or set {SWITCH}=plain to use plain torch without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
    return _loaded


if __name__ == "__main__":
    _compile_here(sys.argv[1])
