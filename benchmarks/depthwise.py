"""What the own weight gradient of 5x5 depthwise convolutions is worth: `python benchmarks/depthwise.py`, one thread.

Forward and backward pass of the elastic MobileNet for CIFAR-10, batch 128, with torch's gradient and with the own one,
interleaved in one process: the float network, the largest architecture at fixed widths, and the supernet.
And the gradient alone, of layers of such networks, also with 3x3 kernels, which are left to torch. Writes
results/depthwise.json.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

import hydra
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnas
from dnas.cli import configuration_folder
from dnas.run import source_commit
from quant.kernel import kernel_available
from quant.layers import training_twin

RESULT = Path(__file__).parent / "results" / "depthwise.json"
BATCH, ROUNDS = 128, 12
LAYERS = ((96, 5, 8), (144, 5, 4), (240, 5, 4), (96, 3, 8), (240, 3, 4))
"""Channels, side of the kernel, side of the images."""


def networks(x: Tensor) -> dict[str, nn.Module]:
    """What is trained, by name."""
    with hydra.initialize_config_dir(str(configuration_folder()), version_base=None):
        config = hydra.compose("config", ["model=elastic_mobilenet_cifar", "space=binas_cifar10"])
    arguments = {key: value for key, value in config.model.arguments.items() if key not in ("in_channels", "classes")}
    model = dnas.models.elastic_mobilenet(3, 10, **arguments)
    space = dnas.build_space(model, x[:8], kernels=(3, 5), min_depth=2, branches=("*.se",))
    supernet = dnas.Supernet(model, space)
    largest = dnas.Architecture(space, {choice.name: choice.options[-1] for choice in space.choices})
    return {
        "float": training_twin(model),
        "fixed": training_twin(dnas.realise(supernet, largest)),
        "supernet": supernet,
    }


def step(network: nn.Module, x: Tensor) -> float:
    """Seconds of a forward and backward pass."""
    network.zero_grad()
    start = time.perf_counter()
    F.cross_entropy(network(x), torch.arange(len(x)) % 10).backward()
    return time.perf_counter() - start


def layer(channels: int, kernel: int, size: int) -> dict[str, float]:
    """Milliseconds of a weight gradient."""
    grad, x = (torch.randn(BATCH, channels, size, size).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight, pad = (
        torch.randn(channels, 1, kernel, kernel).contiguous(memory_format=torch.channels_last),
        [kernel // 2] * 2,
    )
    calls: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], channels, [False, True, False]
        ),
        "own": lambda: torch.ops.dnas.depthwise_weight_grad(grad, x, [kernel] * 2, [1, 1], pad, [1, 1]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    found = {name: 1000 * min(values[1:]) for name, values in times.items()}
    return {"channels": channels, "kernel": kernel, "size": size, **found, "ratio": found["torch"] / found["own"]}


def main() -> None:
    """The command."""
    torch.manual_seed(0)
    assert kernel_available(), "the kernel could not be built"
    x = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    found: dict[str, dict[str, float]] = {}
    gradients: dict[str, Callable[[], bool]] = {"torch": lambda: False, "own": lambda: True}
    for name, network in networks(x).items():
        network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        times: dict[str, list[float]] = {"torch": [], "own": []}
        for _ in range(ROUNDS):
            for gradient, available in gradients.items():
                with mock.patch("quant.depthwise.kernel_available", available):
                    times[gradient].append(step(network, x))
        milliseconds = {gradient: 1000 * min(values[1:]) for gradient, values in times.items()}
        found[name] = {**milliseconds, "ratio": milliseconds["torch"] / milliseconds["own"]}
    content = {
        "type": "dnas.Depthwise", "version": 1, "steps": found, "layers": [layer(*sizes) for sizes in LAYERS],
        "batch": BATCH, "rounds": ROUNDS - 1, "threads": 1,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}, "commit": source_commit(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
