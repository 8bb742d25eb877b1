"""What a training step costs in every variant, next to the float step: `python benchmarks/overhead.py`.

Time: all variants of a network live in one process; every round visits them in a new order, one untimed step and then
several timed ones, so that whatever else the machine does meets all alike. Ratios are to the eager float step with torch's
default layout, in the same run. Memory: the peak of a process of its own per variant. Writes results/overhead.json (machine,
versions, minimum, median and spread) and results/overhead.png, the README's table and picture.

On a GPU (--device cuda) the same steps are timed with events, and memory is that of torch's allocator.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from overhead_steps import (  # noqa: E402
    WIDTHS,
    Batch,
    Step,
    brevitas_step,
    fixed_step,
    float_step,
    hand_step,
    hgq_step,
    search_step,
    supernet,
)

import dnas  # noqa: E402
from dnas.engine import peak_memory_mb  # noqa: E402
from dnas.run import source_commit  # noqa: E402

RESULTS = HERE / "results"
BATCH = 64
PER_VISIT = 4
SECTIONS = ("networks", "outside", "depth")


def variants(network: str, device: torch.device) -> dict[str, Callable[[], Step]]:
    """Every variant by name; building is left to the caller."""
    last, first = Batch(network, BATCH, device), Batch(network, BATCH, device, channels_last=False)
    k3, k1 = WIDTHS[3], WIDTHS[1]
    found: dict[str, Callable[[], Step]] = {
        "float": lambda: float_step(first),
        "float, channels last": lambda: float_step(last),
        "float, compiled": lambda: float_step(last, compiled=True),
        "by hand W4A4": lambda: hand_step(last, k1),
        "by hand W4A4, compiled": lambda: hand_step(last, k1, compiled=True),
        "brevitas W4A4": lambda: brevitas_step(first, collecting=False),
        "brevitas W4A4, channels last": lambda: brevitas_step(last, collecting=False),
        "brevitas W4A4, collecting": lambda: brevitas_step(first, collecting=True),
        "by hand, mixture of 3x3": lambda: hand_step(last, k3),
        "by hand, one convolution per pair of 3x3": lambda: hand_step(last, k3, naive=True),
        "dnas fixed W4A4": lambda: fixed_step(last),
        "dnas fixed W4A4, Brevitas layers": lambda: fixed_step(last, twin=False),
        "dnas fixed W4A4, compiled": lambda: fixed_step(last, compiled=True),
        "dnas search": lambda: search_step(last),
        "dnas search, default layout": lambda: search_step(first),
        "dnas search, weights only": lambda: search_step(last, choices=False),
        "dnas search, soft mixture": lambda: search_step(last, mode="softmax"),
        "dnas search, compiled": lambda: search_step(last, compiled=True),
    }
    for count in WIDTHS:
        found[f"growth {count}"] = lambda count=count: search_step(last, WIDTHS[count])
        if count in (1, 3, 8):
            found[f"growth {count}, compiled"] = lambda count=count: search_step(last, WIDTHS[count], compiled=True)
    found["hgq2"] = lambda: hgq_step(network, last)
    return found


def timed(step: Step, device: torch.device) -> float:
    """Milliseconds of one step."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e3


def measure(builders: dict[str, Callable[[], Step]], rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Milliseconds of all variants, interleaved; variants that cannot be built are left out, with the reason."""
    steps: dict[str, Step] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, build in builders.items():
        start = time.perf_counter()
        try:
            steps[name] = build()
            steps[name]()
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        found[name] = {"first_step_seconds": round(time.perf_counter() - start, 2), "ms": []}
        print(f"{name}: built in {found[name]['first_step_seconds']} s", flush=True)
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            steps[name]()
            found[name]["ms"] += [timed(steps[name], device) for _ in range(PER_VISIT)]
    for value in found.values():
        times = sorted(value.pop("ms"))
        value |= {
            "min_ms": round(times[0], 2),
            "median_ms": round(statistics.median(times), 2),
            "quartiles_ms": [round(times[len(times) // 4], 2), round(times[3 * len(times) // 4], 2)],
            "n": len(times),
        }
    return found


def ratios(found: dict[str, dict[str, Any]], base: str = "float") -> None:
    """Adds ratios of minima and of medians to the base variant."""
    for value in found.values():
        value["ratio"] = round(value["min_ms"] / found[base]["min_ms"], 3)
        value["ratio_of_medians"] = round(value["median_ms"] / found[base]["median_ms"], 3)


def memory(network: str, name: str, device: torch.device) -> float:
    """Peak memory in MB of a new process that takes a few steps of one variant."""
    command = [sys.executable, __file__, "--network", network, "--peak", name, "--device", str(device)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return float(found.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        print(f"memory of {name}: {found.stderr.strip().splitlines()[-1:]}")
        return float("nan")


def peak(network: str, name: str, device: torch.device) -> float:
    """Peak memory of this process, after a few steps."""
    if name != "import":
        step = variants(network, device)[name]()
        for _ in range(3):
            step()
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_memory_mb()


def depth(rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """The search step over the float step for deeper and deeper networks; each pair in the same layout."""
    found = {}
    for network in ("resnet8", "resnet20", "resnet56", "resnet110"):
        batch = Batch(network, BATCH, device)
        with torch.no_grad():  # untrained blocks at full strength would blow gradients up along 110 layers
            for parameter in (p for n, p in batch.model.named_parameters() if n.endswith("bn2.weight")):
                parameter.fill_(0.1)
        pair = {"float": lambda b=batch: float_step(b), "search": lambda b=batch: search_step(b)}
        times = measure(pair, rounds, device)
        ratios(times)
        found[network] = times | {"draw_and_price_ms": round(draw_and_price(batch), 2)}
    return found


def draw_and_price(batch: Batch) -> float:
    """Milliseconds of what a search step does beside the network: a sample of all choices, the penalty and its gradient."""
    net, budget = supernet(batch, WIDTHS[3]), dnas.Budget(bops=0.1)

    def once() -> None:
        net._draw()
        budget.penalty(net).backward()

    once()
    return min(timed(once, batch.x.device) for _ in range(30))


def outside(rounds: int, device: torch.device) -> dict[str, Any]:
    """Share of a whole search step that is spent outside of the network's forward and backward and the optimiser."""
    from overhead_outside import shares

    return shares(rounds, device)


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def machine() -> dict[str, Any]:
    """Where this ran, and on what."""
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    settings = ("OMP_WAIT_POLICY", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS")
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in settings},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "brevitas", "hgq2", "keras") if _installed(name)},
        "commit": source_commit(),
        "batch": BATCH,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--network", choices=("resnet8", "resnet20"), default=None, help="only this one")
    parser.add_argument("--section", choices=SECTIONS, default=None, help="only this one, beside what is there already")
    parser.add_argument("--peak", default=None, help="print the peak memory of one variant (used by the script itself)")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch._dynamo.config.recompile_limit = 64  # all variants share their networks' code
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if given.peak:
        print(peak(given.network, given.peak, device))
        return
    networks = [given.network] if given.network else ["resnet8", "resnet20"]
    content: dict[str, Any] = {"type": "dnas.Overhead", "version": 1, "machine": machine(), "networks": {}}
    if given.section:
        content = json.loads(_path(device).read_text(encoding="utf-8"))
    if given.section in (None, "networks"):
        for network in networks:
            content["networks"][network] = _network(network, given.rounds, device)
            content.setdefault("import_mb", memory(network, "import", device))
            _write(content, device)
    if given.section in (None, "outside"):
        content["outside"] = outside(3 * given.rounds, device) | {"commit": source_commit()}
        _write(content, device)
    if given.section in (None, "depth"):
        content["depth"] = depth(max(given.rounds // 2, 3), device)
        content["depth_commit"] = source_commit()
        _write(content, device)


def _network(network: str, rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Times of all variants of one network, and memory of the most important ones."""
    builders = variants(network, device)
    if network != "resnet8":
        left_out = ("growth", "brevitas W4A4, c", "dnas search, d")
        builders = {name: build for name, build in builders.items() if not name.startswith(left_out)}
    times = measure(builders, rounds, device)
    ratios(times)
    for name in times:
        if network == "resnet8" or name in ("float", "brevitas W4A4", "dnas search", "dnas fixed W4A4"):
            times[name]["peak_mb"] = round(memory(network, name, device))
    return times


def _path(device: torch.device) -> Path:
    return RESULTS / ("overhead.json" if device.type == "cpu" else f"overhead_{device.type}.json")


def _write(content: dict[str, Any], device: torch.device) -> None:
    """After every section: what was measured is not lost with what comes after it."""
    from overhead_plot import plot

    RESULTS.mkdir(exist_ok=True)
    _path(device).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(content, _path(device).with_suffix(".png"))
    print(f"written: {_path(device)} and its picture", flush=True)


if __name__ == "__main__":
    main()
