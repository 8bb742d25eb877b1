"""Measured latency as a cost: every distinct configuration of a layer, timed in onnxruntime on the machine at hand.

On this runtime every width up to 8 bits runs as int8: latency moves with filters, kernels and depth, not with bits.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from dnas.space.choice import ChannelMap, Layer, Space, read_typed
from dnas.space.processor import instructions, processor
from dnas.space.trace import evaluating
from quant.brevitas import padding_of

LATENCY = "latency_us"
"""Name of the cost: microseconds."""
PRECISIONS = ("int8", "float")
Key = tuple[str, int, int, int, int]
"""Layer, kept input and output channels, kernel elements, and the option of the branch beside it (1 where there is none)."""
NOTES = {
    "int8": "onnxruntime runs every width up to 8 bits as int8: latency moves with filters, kernels and depth, not with bits",
    "float": "the same networks without quantisers: latency moves with filters, kernels and depth",
}
"""What a table of each precision says."""


class LatencyError(ValueError):
    """A table that does not fit: another machine, or a layer that it does not have."""


@dataclass(frozen=True)
class MeasureConfig:
    """How layers are timed.

    precision: `int8` (as in QCDQ files with batch normalisation folded) or `float`. threads: of onnxruntime. batch: images.
    rounds: passes over all configurations, so that a slow minute hits none alone; seconds: for one configuration in one
    round. networks: random ones that are exported and timed whole; a third fits the correction, the others judge it; 0 leaves
    the sums as they are.
    """

    precision: str = "int8"
    threads: int = 1
    batch: int = 1
    rounds: int = 3
    seconds: float = 0.01
    networks: int = 30

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"measure.precision is {self.precision!r}; allowed: {list(PRECISIONS)}")
        if min(self.threads, self.batch, self.rounds) < 1 or not self.seconds > 0:
            raise ValueError("measure: threads, batch and rounds >= 1 and seconds > 0 are needed")
        if self.networks and self.networks < 9:
            raise ValueError(f"measure.networks is {self.networks}; allowed: 0, or 9 and more")


@dataclass(frozen=True)
class Shape:
    """What a layer's time depends on, but for its channels and kernel.

    inputs: spatial sizes of its input (empty for linear layers; then `rows` vectors per image); stride, padding
        (`quant.brevitas.padding_of`), dilation.
    requantised: whether its output is quantised at once, so that onnxruntime runs it in integers; else it gives floats.
    """

    kind: str
    inputs: tuple[int, ...]
    rows: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    requantised: bool = True


@dataclass(frozen=True)
class Configuration:
    """One layer to be timed: its shape, kept input and output channels, groups, and side of the kernel."""

    shape: Shape
    c_in: int
    c_out: int
    groups: int
    side: tuple[int, ...]


def requantised_layers(content: bytes, layers: Sequence[str]) -> set[str]:
    """The layers whose output an exported file quantises at once, but for a ReLU, or clips.

    Args:
        content: a QCDQ file.
        layers: names of its layers, in the order in which they run.

    Raises:
        LatencyError: the network multiplies elsewhere than in layers that run once.
    """
    graph = onnx.load_from_string(content).graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weighted = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    if len(weighted) != len(layers):
        raise LatencyError(
            f"budget.{LATENCY}: the exported network multiplies {len(weighted)} times, but has {len(layers)} layers that "
            "can be timed alone (products of two activations and layers that run twice cannot); use other budgets"
        )
    found = set()
    for layer, node in zip(layers, weighted, strict=True):
        while True:
            following = readers.get(node.output[0], [])
            if len(following) != 1 or following[0].op_type not in ("Relu", "Clip", "QuantizeLinear"):
                break
            node = following[0]
            if node.op_type == "QuantizeLinear":
                found.add(layer)
                break
    return found


def layer_shapes(model: nn.Module, x: Tensor, space: Space, requantised: Collection[str]) -> dict[str, Shape]:
    """The shapes of a space's layers, from one forward pass.

    Args:
        model: the user's, at full width.
        x: an image batch.
        space: its layers.
        requantised: those whose output is quantised at once.
    """
    found: dict[str, Shape] = {}

    def hook(name: str) -> Callable[..., None]:
        def run(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            size = tuple(args[0].shape)
            kind = type(module).__name__
            if isinstance(module, nn.modules.conv._ConvNd):
                found[name] = Shape(
                    kind, size[2:], 1, module.stride, padding_of(module), module.dilation, name in requantised
                )
            else:
                found[name] = Shape(kind, (), max(int(np.prod(size[1:-1])), 1), (), (), (), name in requantised)

        return run

    handles = [model.get_submodule(layer.name).register_forward_hook(hook(layer.name)) for layer in space.layers]
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _channel_counts(space: Space, side: ChannelMap) -> list[int]:
    """Every number of channels that a side may keep."""
    parts = []
    for group, count in side.counts.items():
        size = space.groups[group].size
        options = space.choice(space.groups[group].choice).options
        parts.append([count * option // size for option in options])
    return sorted({sum(kept) for kept in product(*parts)})


def configurations(
    space: Space, shapes: Mapping[str, Shape], model: nn.Module, beside: Mapping[str, str]
) -> dict[Key, Configuration]:
    """For every entry of a table what has to be timed.

    Args:
        space: without choices by filter.
        shapes: of its layers.
        model: the user's; for the kernels of layers whose kernel is not searched.
        beside: see `LatencyTable`; without their branch these layers are quantised at once where they are not with it, or
            the other way round.
    """
    found = {}
    for layer in space.layers:
        own = tuple(int(k) for k in getattr(model.get_submodule(layer.name), "kernel_size", ()))
        sides = [(k, k) for k in space.choice(layer.kernel_choice).options] if layer.kernel_choice else [own]
        ins, outs = _channel_counts(space, layer.inputs), _channel_counts(space, layer.outputs)
        for c_in, c_out, side in product(ins, outs, sides):
            if layer.depthwise and c_in != c_out:
                continue
            groups = c_out if layer.depthwise else layer.groups
            shape = shapes[layer.name]
            if side and shape.padding and side != own:
                border = [(a - b) // 2 * d for a, b, d in zip(own, side, shape.dilation, strict=True)]
                padding = tuple(p - b for p, b in zip(shape.padding, border, strict=True))
                shape = replace(shape, padding=padding)
            elements = int(np.prod(side)) if side else 1
            for option in (0, 1) if layer.name in beside else (1,):
                own_shape = shape if option else replace(shape, requantised=not shape.requantised)
                found[layer.name, c_in, c_out, elements, option] = Configuration(own_shape, c_in, c_out, groups, side)
    return found


def build_file(configuration: Configuration, config: MeasureConfig) -> bytes:
    """An ONNX file of one layer: float, or int8 with quantised input, weight and output as in QDQ files."""
    shape, c_in, c_out = configuration.shape, configuration.c_in, configuration.c_out
    linear = not shape.inputs
    size = [config.batch * shape.rows, c_in] if linear else [config.batch, c_in, *shape.inputs]
    weight_size = [c_out, c_in] if linear else [c_out, c_in // configuration.groups, *configuration.side]
    nodes, tensors = [], []
    x, w = "x", "w"
    if config.precision == "int8":
        codes = np.ones(weight_size, dtype=np.int8)
        tensors += [
            numpy_helper.from_array(codes, "codes"),
            numpy_helper.from_array(np.array(0.05, dtype=np.float32), "step"),
        ]
        tensors += [numpy_helper.from_array(np.full(c_out, 0.01, dtype=np.float32), "steps")]
        tensors += [
            numpy_helper.from_array(np.array(0, dtype=np.uint8), "zero"),
            numpy_helper.from_array(np.zeros(c_out, dtype=np.int8), "zeros"),
        ]
        nodes += [helper.make_node("DequantizeLinear", ["x", "step", "zero"], ["xd"])]
        nodes += [helper.make_node("DequantizeLinear", ["codes", "steps", "zeros"], ["w"], axis=0)]
        x = "xd"
    else:
        tensors.append(numpy_helper.from_array(np.full(weight_size, 0.01, dtype=np.float32), "w"))
    tensors.append(numpy_helper.from_array(np.zeros(c_out, dtype=np.float32), "b"))
    integers = config.precision == "int8" and shape.requantised
    last = "yf" if integers else "y"
    if linear:
        nodes.append(helper.make_node("Gemm", [x, w, "b"], [last], transB=1))
    else:
        pads = [*shape.padding, *shape.padding][: 2 * len(shape.inputs)]  # twice, or different ones
        nodes.append(
            helper.make_node(
                "Conv", [x, w, "b"], [last], strides=list(shape.stride), pads=pads, dilations=list(shape.dilation),
                group=configuration.groups,
            )
        )  # fmt: skip
    if integers:
        nodes.append(helper.make_node("QuantizeLinear", [last, "step", "zero"], ["y"]))
    kind = TensorProto.UINT8 if config.precision == "int8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", kind, size)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8 if integers else TensorProto.FLOAT, [None] * len(size))], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    content: bytes = model.SerializeToString()
    return content


def empty_file() -> bytes:
    """An ONNX file that hands on one number: what a call costs by itself."""
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    content: bytes = model.SerializeToString()
    return content


def ones(session: onnxruntime.InferenceSession, batch: int) -> dict[str, Any]:
    """Inputs of a session that are 1 everywhere; where the file leaves the number of images open, so many of them."""
    kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    return {
        given.name: np.ones([d if isinstance(d, int) else batch for d in given.shape], dtype=kinds[given.type])
        for given in session.get_inputs()
    }


def runner(content: bytes, threads: int, batch: int) -> Callable[[], None]:
    """Runs an ONNX file once in onnxruntime on the CPU, all optimisations on, on so many images of ones."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = ones(session, batch)
    return lambda: session.run(None, feed)


def microseconds(runs: Sequence[Callable[[], None]], rounds: int, seconds: float) -> list[float]:
    """Microseconds of every run: the smallest of the rounds' medians; every round times all of them, in turn.

    Args:
        runs: what is timed.
        rounds: passes over all of them.
        seconds: for one run in one round; at least five times.
    """
    medians: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for i, run in enumerate(runs):
            run()
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < 5 or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                times.append(1e6 * (time.perf_counter() - start))
            medians[i].append(median(times))
    return [min(found) for found in medians]


def machine(config: MeasureConfig) -> dict[str, Any]:
    """What a table is valid for."""
    return {
        "processor": processor(), "instructions": instructions(),
        "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "precision": config.precision,
        "threads": config.threads, "batch": config.batch,
    }  # fmt: skip


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds of every layer's configurations.

    The time of an empty call is taken off. machine: what it is valid for. slope, intercept: a whole network takes about
    slope * (sum over its layers) + intercept; the intercept is no part of the cost. beside: for some layers the branch whose
    absence changes how they run: what follows it decides whether a layer is computed in integers. checked: how well all
    of that holds. geometry: of every layer what else its time depends on.
    """

    times: Mapping[Key, float]
    machine: Mapping[str, Any]
    slope: float = 1.0
    intercept: float = 0.0
    beside: Mapping[str, str] = field(default_factory=dict)
    checked: Mapping[str, Any] | None = None
    geometry: Mapping[str, Any] = field(default_factory=dict)

    def cost(self) -> "LatencyCost":
        """The table as a cost of layers."""
        return LatencyCost(self)

    def to_json(self) -> str:
        """JSON with `type` and `version`."""
        content = {
            "type": "dnas.LatencyTable", "version": 2, "note": NOTES[self.machine.get("precision", "int8")],
            "machine": dict(self.machine), "slope": self.slope, "intercept": self.intercept, "beside": dict(self.beside),
            "checked": self.checked, "geometry": dict(self.geometry),
            "times": [[*key, round(value, 3)] for key, value in self.times.items()],
        }  # fmt: skip
        return json.dumps(content, indent=1)

    @staticmethod
    def from_json(text: str, here: Mapping[str, Any] | None = None) -> "LatencyTable":
        """Reads what `to_json` wrote.

        Args:
            text: the file.
            here: this machine; None reads a table of any machine.

        Raises:
            LatencyError: a table of another machine.
            ValueError: another type or version.
        """
        content = read_typed(text, "dnas.LatencyTable", 2)
        if here is not None and content["machine"] != dict(here):
            there = content["machine"]
            keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
            other = {key: (there.get(key), here.get(key)) for key in keys}
            raise LatencyError(
                f"this latency table was measured elsewhere (there, here: {other}); measure here (cost.latency=null), or "
                "allow it with cost.any_machine=true"
            )
        times = {(name, int(a), int(b), int(k), int(o)): float(t) for name, a, b, k, o, t in content["times"]}
        return LatencyTable(
            times, content["machine"], float(content["slope"]), float(content["intercept"]), content["beside"],
            content["checked"], content.get("geometry", {}),
        )  # fmt: skip


@dataclass(frozen=True)
class LatencyCost:
    """A `LayerCost`: microseconds of a layer, whole ones, so that budgets hold in integers.

    option: of the branch beside a layer, where the table knows one.
    """

    table: LatencyTable
    option: int = 1

    @property
    def beside(self) -> Mapping[str, str]:
        """For some layers the choice that `at` takes an option of."""
        return self.table.beside

    def at(self, option: int) -> "LatencyCost":
        """The cost of layers at an option of the choice beside them."""
        return replace(self, option=option)

    def __call__(self, layer: Layer, c_in: int, c_out: int, weight_bits: int, act_bits: int) -> float:
        """Microseconds.

        Raises:
            LatencyError: a configuration that was not measured.
        """
        key = (layer.name, c_in, c_out, layer.kernel, self.option if layer.name in self.beside else 1)
        if key not in self.table.times:
            raise LatencyError(
                f"the latency table has no entry for {layer.name} with {c_in} input and {c_out} output channels and "
                f"{layer.kernel} kernel elements; measure this space anew (dnas stage=measure, or cost.latency=null)"
            )
        return float(max(1, round(self.table.slope * self.table.times[key])))


def measure_latency(
    model: nn.Module,
    x: Tensor,
    space: Space,
    config: MeasureConfig,
    requantised: Collection[str] = (),
    beside: Mapping[str, str] | None = None,
) -> LatencyTable:
    """Times every distinct configuration of a space's layers.

    Args:
        model: the user's, at full width.
        x: an image batch.
        space: its space, without choices by filter.
        config: how.
        requantised: layers whose output is quantised at once, see `requantised_layers`.
        beside: see `LatencyTable`.

    Raises:
        LatencyError: a layer that cannot be timed alone: choices by filter, or a kind that ONNX has no layer for.
    """
    for layer in space.layers:
        if layer.kind not in ("Conv1d", "Conv2d", "Conv3d", "Linear"):
            raise LatencyError(
                f"budget.{LATENCY}: {layer.name} is a {layer.kind}, which is not timed; use other budgets"
            )
    if any(choice.by_filter for choice in space.searched()):
        raise LatencyError(f"budget.{LATENCY} goes with whole layers; leave space.granularity at layer")
    beside = beside or {}
    wanted = configurations(space, layer_shapes(model, x, space, requantised), model, beside)
    distinct = list(dict.fromkeys(wanted.values()))
    files = [empty_file(), *(build_file(found, config) for found in distinct)]
    call, *found_times = microseconds(
        [runner(file, config.threads, config.batch) for file in files], config.rounds, config.seconds
    )
    times = {found: max(value - call, 0.1) for found, value in zip(distinct, found_times, strict=True)}
    return LatencyTable({key: times[found] for key, found in wanted.items()}, machine(config), beside=beside)
