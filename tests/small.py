"""A run small enough for tests, and the command `dnas` in this process and in others."""

import logging
import os
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "model=dscnn", "model.arguments.width=8", "model.arguments.blocks=1", "model.arguments.stem_kernel=[3,3]",
    "model.arguments.stem_padding=[1,1]", "data=digits", "data.limit_train=200", "budget.bops=0.2",
    "space.weight_bits=[2,4,8]", "space.act_bits=[2,4,8]", "space.filters=[0.5,1.0]", "space.calibration_images=32",
    "pretrain.epochs=2", "pretrain.batch_size=64", "search.epochs=2", "search.batch_size=32", "search.score_images=64",
    "search.train=always", "search.score_rounds=1", "retrain.epochs=2", "retrain.uniform_candidates=1", "export.images=20",
    "export.qonnx_images=2", "engine.progress=false",
)  # fmt: skip


def dnas(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit code."""
    from hydra.core.hydra_config import HydraConfig

    from dnas.cli import main

    path = list(sys.path)
    monkeypatch.setattr(sys, "argv", ["dnas", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:  # Hydra remembers the working directory, and its handlers the output, of this test
        HydraConfig.instance().cfg = None
        sys.path[:] = path
        for handler in [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]:
            logging.getLogger().removeHandler(handler)
    return 0


class Command:
    """The command in a process of its own, forked from one that has imported everything and computed nothing."""

    def __init__(self, folder: Path, *arguments: str, kill_at_write: int | None = None) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["dnas.cli"])
        self.output = folder / "output.txt"
        content: dict[str, Any] = {"folder": folder, "arguments": arguments, "output": self.output}
        self.process = context.Process(target=_command, kwargs=content | {"kill_at_write": kill_at_write})
        self.process.start()

    def wait(self) -> int:
        """The exit code; that of a killed process is minus the signal."""
        self.process.join(120)
        assert self.process.exitcode is not None, self.output.read_text()
        return self.process.exitcode

    def kill(self) -> int:
        self.process.kill()  # does nothing to one that has ended
        return self.wait()


def _command(folder: Path, arguments: tuple[str, ...], output: Path, kill_at_write: int | None) -> None:
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    writes, fsync = 0, os.fsync

    def flush(handle: int) -> None:
        """Every atomic write comes by here, before the file is moved into place."""
        nonlocal writes
        writes += 1
        if writes == kill_at_write:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = flush
    from dnas.cli import main

    sys.argv = ["dnas", *arguments]
    main()
