"""Which layer of an exported network every microsecond belongs to, by onnxruntime's own profiler.

Between layers run operators that no layer's file has: activations, additions, poolings, quantisers that are not fused. They
are timed where they run, in whole networks, and counted with the layer that they are named after or follow.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from scipy.optimize import nnls

from dnas.space.architecture import Architecture
from dnas.space.cost import kept_channels, with_kernel
from dnas.space.latency import Key, LatencyTable, ones

RENAMED = re.compile(r"^fused | ?(_token_\d+|/duplicated)$")
"""What onnxruntime's optimiser adds to the name of a node."""
BLOCKED = "_nchwc"
"""What it adds to the name of a tensor that a convolution gives in its layout of blocked channels."""
RUNS = 30
"""Profiled runs of a network; medians count."""
PRIOR = 0.05
"""Weight, in profiled networks, of the times of single layers being right as they are."""


def owners(nodes: Sequence[Any], layers: Sequence[str], tensors: Mapping[str, str] | None = None) -> dict[str, str]:
    """The layer that every tensor of a graph is counted with, by the tensor's name.

    Args:
        nodes: in the order in which they run, each with `name`, `input` and `output`.
        layers: names of layers; a node is one's if its name is the layer's, or starts with it and a dot.
        tensors: of the graph that this one was made of; onnxruntime's blocked convolutions are named after what they give.

    Returns:
        of the node that makes it: the layer by the node's name, else that of the tensor it is named after, else that of the
        last node that gives it an input; tensors before all layers are left out.
    """
    made_by: dict[str, int] = {}
    found: dict[int, str] = {}
    for number, node in enumerate(nodes):
        name = RENAMED.sub("", RENAMED.sub("", node.name))
        named = [layer for layer in layers if name == layer or name.startswith(layer + ".")]
        sources = [made_by[i] for i in node.input if i in made_by and made_by[i] in found]
        if named:
            found[number] = max(named, key=len)
        elif tensors and (tensor := node.name.removesuffix(BLOCKED)) in tensors:
            found[number] = tensors[tensor]
        elif sources:
            found[number] = found[max(sources)]
        made_by.update(dict.fromkeys(node.output, number))
    return {tensor: found[number] for tensor, number in made_by.items() if number in found}


def layer_times(content: bytes, layers: Sequence[str], threads: int, whole: float, batch: int) -> dict[str, float]:
    """Microseconds of every layer and of what is counted with it, in one network.

    Args:
        content: an ONNX file.
        layers: names of layers.
        threads: of onnxruntime.
        whole: microseconds of the network without the profiler, whose own time is taken off every node alike.
        batch: images of a run.
    """
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feed = ones(session, batch)
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    tensors = owners(nodes, layers, owners(onnx.load_from_string(content).graph.node, layers))
    owner = {node.name: tensors[node.output[0]] for node in nodes if node.output[0] in tensors}
    times: dict[str, list[float]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            times.setdefault(name, []).append(float(event["dur"]))
    medians = {name: median(found) for name, found in times.items()}
    watching = (sum(medians.values()) - whole) / max(len(medians), 1)
    found = dict.fromkeys(owner.values(), 0.0)
    for name, value in medians.items():
        if name in owner:
            found[owner[name]] += value - watching
    return found


def table_entries(table: LatencyTable, architecture: Architecture) -> dict[str, Key]:
    """Which entry of a table each layer of an architecture is at; layers that are left out are missing."""
    space, positions = architecture.space, architecture.positions()
    found = {}
    for layer in space.layers:
        if not space.runs(layer.name, positions):
            continue
        c_in, c_out = (kept_channels(space, side, positions) for side in (layer.inputs, layer.outputs))
        beside = table.beside.get(layer.name)
        option = architecture[beside] if beside else 1
        found[layer.name] = (layer.name, c_in, c_out, with_kernel(space, layer, positions).kernel, option)
    return found


def refined(
    table: LatencyTable, networks: Sequence[Mapping[str, Key]], profiles: Sequence[Mapping[str, float]]
) -> LatencyTable:
    """The table with what else is counted with each layer: a constant and times per channel, none negative.

    Args:
        table: times of layers alone.
        networks: for each profiled network which entry of the table its layers are at; layers that are left out are missing.
        profiles: of the same networks, see `layer_times`.

    Returns:
        times fitted to the profiles, layer by layer, by least squares with a weak pull to the times as they were.
    """
    fits: dict[str, Callable[[Key], float]] = {}
    for layer in dict.fromkeys(key[0] for key in table.times):
        rows, seen = [], []
        for keys, profile in zip(networks, profiles, strict=True):
            if layer in keys and layer in profile:
                rows.append(_features(table, keys[layer]))
                seen.append(profile[layer])
        if rows:
            fits[layer] = _fitted(table, np.array(rows), np.array(seen))
    return replace(
        table, times={key: fits[key[0]](key) if key[0] in fits else value for key, value in table.times.items()}
    )


def _features(table: LatencyTable, key: Key) -> list[float]:
    return [table.times[key], 1.0, float(key[1]), float(key[2])]


def _fitted(table: LatencyTable, rows: Any, seen: Any) -> Callable[[Key], float]:
    scale = np.abs(rows).mean(0)
    pull = np.sqrt(PRIOR) * np.eye(rows.shape[1])
    target = pull @ np.array([scale[0], 0.0, 0.0, 0.0])
    found, _ = nnls(np.vstack([rows / scale, pull]), np.concatenate([seen, target]))
    return lambda key: max(float(np.array(_features(table, key)) / scale @ found), 0.1)
