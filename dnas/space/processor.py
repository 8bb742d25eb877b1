"""What a measured time is valid for: the processor, and the instructions that decide how fast integers are."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux tells it."""
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Those that integer kernels are chosen by."""


def processor() -> str:
    """The processor's model name, as Linux tells it, else what Python knows."""
    return _first("model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """Which of `INSTRUCTIONS` the processor has: one name of clouds' processors stands for several kinds. Linux alone tells."""
    has = (_first("flags") or _first("Features")).split()
    return " ".join(name for name in INSTRUCTIONS if name in has)


def _first(key: str) -> str:
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")
