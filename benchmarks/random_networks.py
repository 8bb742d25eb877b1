"""Random networks through the whole conversion: `python benchmarks/random_networks.py --networks 2000`.

Network number i grows from seed i (tests/random_networks.py) and must pass everything in `tests/equivalence.py::examine`:
the supernet without quantisers is the network, masked equals pruned in double precision, the MACs are those that torch counts
in the pruned plain network. Every fourth one is exported to QCDQ and run by onnxruntime, code by code. Writes
results/random_networks.json now and then, and goes on from there when the same command is given again.
"""

import argparse
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent)]

import torch  # noqa: E402
from equivalence import examine  # noqa: E402
from random_networks import grow  # noqa: E402

RESULT = HERE / "results" / "random_networks.json"
VERSIONS = ("torch", "brevitas", "onnx", "onnxruntime", "numpy")
WRITE_EVERY = 50
COUNTED = ("parts", "reasons", "exports", "failures")


def start(seed: int, every: int) -> dict[str, Any]:
    """Results before the first network."""
    return {
        "type": "dnas.RandomNetworks",
        "version": 1,
        "seed": seed,
        "export_every": every,
        "networks": 0,
        "groups": 0,
        "groups_that_can_be_pruned": 0,
        "seconds": 0.0,
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        **{name: {} for name in COUNTED},
    }


def kind_of(reason: str) -> str:
    """A reason without the module that it names."""
    words = ["<module>" if "." in word else word for word in reason.split()]
    return " ".join(words).replace(" in <module>", "")


def run_one(seed: int, folder: Path | None, counted: dict[str, Counter[str]]) -> tuple[int, int]:
    """One network; its groups, and those that can be pruned."""
    torch.manual_seed(seed)
    network = grow(random.Random(seed).choice)
    counted["parts"].update(network.used)
    try:
        found = examine(network, seed, folder)
    except Exception as error:  # whatever fails is a result
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0][:200]
        counted["failures"][f"network {seed}: {type(error).__name__}: {first} ({place.name}:{place.lineno})"] += 1
        return 0, 0
    counted["reasons"].update(kind_of(reason) for reason in found.fixed)
    if found.exported:
        counted["exports"][found.exported] += 1
    return found.groups, found.shrinking


def main() -> None:
    """Runs the networks that are not in the result file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--export-every", type=int, default=4)
    parser.add_argument("--anew", action="store_true", help="do not go on from the results that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    result = start(options.seed, options.export_every)
    if RESULT.exists() and not options.anew:
        before = json.loads(RESULT.read_text(encoding="utf-8"))
        if all(before[key] == result[key] for key in ("seed", "export_every", "versions")):
            result = before
    counted = {name: Counter(result[name]) for name in COUNTED}
    begun = time.perf_counter() - result["seconds"]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(result["networks"], options.networks):
            exported = i % options.export_every == 0
            groups, prunable = run_one(options.seed + i, Path(folder) if exported else None, counted)
            result["networks"] = i + 1
            result["groups"] += groups
            result["groups_that_can_be_pruned"] += prunable
            if (i + 1) % WRITE_EVERY == 0 or i + 1 == options.networks:
                result |= {name: dict(counter.most_common()) for name, counter in counted.items()}
                result["seconds"] = round(time.perf_counter() - begun, 1)
                waiting = RESULT.with_suffix(".part")
                waiting.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
                os.replace(waiting, RESULT)
                print(f"{i + 1} networks, {sum(counted['failures'].values())} failures", flush=True)


if __name__ == "__main__":
    main()
