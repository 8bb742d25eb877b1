"""Networks that nobody here wrote go through dnas as they are: `python benchmarks/coverage.py [names]`.

Vision models of `transformers` (`pip install dnas[benchmarks]`), built from their configurations with random weights. Each,
in a process of its own: space, supernet and cost tables (seconds of the processor); the supernet without quantisers against
the model; a random architecture, masked against pruned in double precision; export to QCDQ and QONNX; verification of both
files on images.
Writes results/coverage.json after every model; models that are there already are left out unless they are named.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import onnx
import torch
from coverage_models import MODELS, Entry
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dnas
from dnas.run import source_commit
from dnas.search.supernet import Supernet
from dnas.space.architecture import Architecture
from dnas.space.choice import Layer, Space
from dnas.space.cost import COSTS
from quant.graph import read_layers
from quant.verify import check_parameters

RESULTS = Path(__file__).parent / "results" / "coverage.json"
MEMORY_GB = 12
IMAGES, QONNX_IMAGES = 4, 1
"""Images that onnxruntime and the integer reference run; images that qonnx's executor, which is slow, runs."""
QONNX_NODES = 12000
"""Operators beyond which a QONNX file is not run: its executor starts a session for each of them, which takes minutes."""
TIE = 1e-3
"""Steps from a rounding boundary within which two executors may differ: float32 sums of this depth, not of a small network."""
REASONS = (
    ("the network's input: 8 bits", "the network's input has 8 bits"),
    ("an output of the network", "outputs of the network keep their channels"),
    ("did not run", "does not run"),
    ("not a layer of its own", "products of two activations or without a layer stay float"),
    ("grouped convolution", "grouped convolutions stay whole"),
    ("its coupling could not be traced", "coupling not traced"),
    ("could not be followed", "channels could not be followed"),
    ("removing filters changes", "the smaller network computes something else"),
    ("are tied to each other", "channels of one layer are tied to each other"),
    ("reads only some", "a layer reads only some of the channels, or some twice"),
    ("the network's input or an operation outside", "channels that no layer produces"),
)
"""Parts of `Fixed.reason`, and what they are counted as."""


def kind_of(reason: str) -> str:
    """The group of a reason, without names."""
    for part, label in REASONS:
        if part in reason:
            return label
    found = re.match(r"(\w+) .*mixes or owns these channels", reason)
    return f"{found.group(1)} over the channels" if found else reason


def shares(space: Space) -> dict[str, float]:
    """Of the BOPs at 8 bits and full width (32-bit products at 8 bits as well): what is searched."""
    floats = sum(fixed.macs for fixed in space.fixed)
    products = sum(f.macs for f in space.fixed if f.name.rsplit(":", 1)[-1] in ("bmm", "mm", "addmm", "baddbmm"))
    total = sum(layer.full_macs for layer in space.layers) + floats

    def share(searched: Callable[[Layer], bool]) -> float:
        return sum(layer.full_macs for layer in space.layers if searched(layer)) / total

    def groups(layer: Layer) -> bool:
        sides = (*layer.inputs.counts, *layer.outputs.counts)
        return any(space.choice(space.groups[group].choice).searched for group in sides)

    def weights(layer: Layer) -> bool:
        return space.choice(layer.weight_choice).searched

    def acts(layer: Layer) -> bool:
        return space.choice(layer.act_choice).searched

    return {
        "macs": total,
        "bits": share(lambda layer: weights(layer) and acts(layer)),
        "weight_bits": share(weights),
        "filters": share(groups),
        "matrix_products": products / total,
        "float": floats / total,
    }


def random_options(space: Space, seed: int) -> Architecture:
    """One option of every choice, each as likely as the others."""
    generator = torch.Generator().manual_seed(seed)
    return Architecture(
        space,
        {c.name: c.options[int(torch.randint(len(c.options), (1,), generator=generator))] for c in space.choices},
    )


def first(output: Any) -> Tensor:
    """The first tensor of what a model returns: its logits."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def difference(found: Any, wanted: Any) -> float:
    """Largest difference of the logits, relative to the largest one."""
    a, b = first(found), first(wanted)
    return float((a - b).abs().max() / b.abs().max())


class Steps:
    """Runs the steps of one model; one that raises is recorded with its error, and those that need it are left out."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {"failed": {}}

    def run(self, name: str, step: Callable[[], Any]) -> Any:
        """What the step returns, or None where it fails."""
        try:
            return step()
        except Exception as error:
            self.result["failed"][name] = f"{type(error).__name__}: {error}"[:2000]
            return None


@torch.no_grad()
def measure(entry: Entry) -> dict[str, Any]:
    """Everything about one model."""
    steps = Steps()
    result = steps.result
    model, images = entry.build(), entry.images(IMAGES)
    example = images[:2]
    result["parameters"] = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    space: Space | None = steps.run("space", lambda: dnas.build_space(model, example))
    built = time.process_time()
    if space is None:
        return result
    result["seconds"] = {"space": built - start}
    result |= {"shares": shares(space), "layers": len(space.layers), "choices": sum(1 for _ in space.searched())}
    result["fixed"] = dict(Counter(kind_of(fixed.reason) for fixed in space.fixed).most_common())
    supernet: Supernet | None = steps.run("supernet", lambda: Supernet(model, space))
    if supernet is None:
        return result
    converted = time.process_time()
    steps.run("costs", lambda: [supernet.cost_table(name) for name in COSTS])
    result["seconds"] |= {"supernet": converted - built, "costs": time.process_time() - converted}
    supernet.eval()

    def equal() -> bool:
        with supernet.quantisers_off():
            return torch.equal(first(supernet(example)), first(model(example)))

    result["equal_without_quantisers"] = steps.run("equality", equal)
    steps.run("realise and export", lambda: _exported(supernet, images, result, steps))
    result["pruned_equals_masked"] = steps.run("pruned", lambda: _pruned(supernet, example))
    return result


def _pruned(supernet: Supernet, example: Tensor) -> float:
    """Masked against pruned, relative difference, in double precision."""
    supernet = supernet.double()
    architecture = supernet.with_filters(random_options(supernet.space, 1))
    with supernet.evaluate_as(architecture):
        wanted = supernet(example.double())
    return difference(dnas.realise(supernet, architecture).eval()(example.double()), wanted)


def _exported(supernet: Supernet, images: Tensor, result: dict[str, Any], steps: Steps) -> None:
    small: nn.Module = dnas.realise(supernet, random_options(supernet.space, 1)).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = {format: Path(folder) / f"{format}.onnx" for format in ("qcdq", "qonnx")}
        result["verified"] = {}
        for format, path in files.items():
            steps.run(f"export {format}", lambda f=format, p=path: dnas.export(small, images[:2], p, f))
            if path.exists():
                start = time.process_time()
                found = steps.run(f"verify {format}", lambda f=format, p=path: _verified(small, images, f, p))
                if found:
                    result["verified"][format] = found | {"seconds": time.process_time() - start}


def _verified(small: nn.Module, images: Tensor, format: str, path: Path) -> dict[str, Any]:
    """What verification says; of large QONNX files the integers, steps and grids alone are compared."""
    nodes = len(onnx.load(str(path)).graph.node)
    if format == "qonnx" and nodes > QONNX_NODES:
        check_parameters(small, read_layers(path), format)
        return {"nodes": nodes, "run": False}
    count = IMAGES if format == "qcdq" else QONNX_IMAGES
    found = dnas.verify(small, images[:2], images[:count], {format: path}, batch=2, qonnx_images=count, tie=TIE)
    return {"nodes": nodes, "run": True, **found["runtimes"]}


def _one(name: str) -> dict[str, Any]:
    """A model in a process of its own, with a limit of memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--one", name, "--write", str(path)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        return {"failed": {"process": f"exit code {done.returncode}: {done.stderr[-1500:]}"}}


def _line(name: str, found: dict[str, Any]) -> str:
    share = found.get("shares", {})
    return (
        f"{name:24} bits {share.get('bits', 0):6.1%} filters {share.get('filters', 0):6.1%} "
        f"s {sum(found.get('seconds', {}).values()):6.1f} pruned {found.get('pruned_equals_masked')} "
        f"verified {sorted(found.get('verified', {}))} failed {found['failed']}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--one", help="measure this model in this process (used by the script itself)")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if given.one:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_GB * 2**30,) * 2)
        warnings.simplefilter("ignore")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
        found = measure(MODELS[given.one])
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        given.write.write_text(json.dumps(found), encoding="utf-8")
        return
    unknown = set(given.names) - set(MODELS)
    if unknown:
        sys.exit(f"no such model: {sorted(unknown)}; allowed: {', '.join(MODELS)}")
    for name in given.names or [name for name in MODELS if name not in _read()["models"]]:
        entry = MODELS[name]
        found = _one(name) | {"variant": entry.variant, "family": entry.family, "side": entry.side}
        found["commit"] = source_commit()
        content = _read()
        models = content["models"] | {name: found}
        content["models"] = {key: models[key] for key in MODELS if key in models}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(_line(name, found), flush=True)


def _read() -> dict[str, Any]:
    """What was measured before, with the versions of now."""
    packages = ("torch", "transformers", "onnxruntime", "qonnx", "brevitas")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.exists() else {}
    machine = {"cores": os.cpu_count(), "threads": int(os.environ.get("OMP_NUM_THREADS", 2))}
    return {"type": "dnas.Coverage", "version": 1, "versions": versions, "machine": machine, "models": before}


if __name__ == "__main__":
    main()
