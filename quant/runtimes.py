"""Runs exported files and returns the logits together with the integer codes of every quantised input."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quant.brevitas import quantised_layers
from quant.graph import ExportedLayer, layers_of
from quant.integer import IntegerReference
from quant.modules import copied


@dataclass(frozen=True, eq=False)
class Run:
    """One batch through one executor.

    Attributes:
        logits: the first output, shape (batch, classes), float.
        others: further outputs in their order; None for one that filled up batches change.
        codes: integer codes of every quantised input by use (name, name#1, ...), batch first, int16.
        scaled: the same inputs divided by their step before rounding, float64; only where the executor gives them.
    """

    logits: NDArray[Any]
    codes: dict[str, NDArray[np.int16]]
    scaled: dict[str, NDArray[np.float64]]
    others: tuple[NDArray[Any] | None, ...] = ()


Runner = Callable[[Tensor], Run]
"""Takes a batch of images (any number up to the one it was made for)."""


def _outputs(result: Any) -> list[NDArray[Any]]:
    """The tensors in nested tuples, lists and dicts, or of what can be indexed."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return [tensor.numpy() for tensor in tensors or [result[0]]]


def _use(name: str, seen: dict[str, Any]) -> str:
    count = sum(1 for key in seen if key.split("#")[0] == name)
    return name if count == 0 else f"{name}#{count}"


class TorchRunner:
    """Runs a copy of the network in torch, on the CPU, in evaluation mode: GPUs compute in other precisions (TF32)."""

    def __init__(self, model: nn.Module) -> None:
        """Copies the network."""
        self.model = copied(model).cpu().eval()
        self.layers = quantised_layers(self.model)

    def __call__(self, images: Tensor, given: Mapping[str, NDArray[np.int16]] | None = None) -> Run:
        """One batch.

        Args:
            images: as the network takes them.
            given: codes that quantised inputs are replaced by, by use; `Run.codes` and `Run.scaled` are then what the
                network itself makes of the layers before.
        """
        codes: dict[str, NDArray[np.int16]] = {}
        scaled: dict[str, NDArray[np.float64]] = {}
        handles = []
        for layer in self.layers:
            quantiser = layer.module.input_quant.quantiser  # type: ignore[union-attr]

            def hook(module: nn.Module, args: Any, name: str = layer.name, quantiser: Any = quantiser) -> Any:
                use = _use(name, codes)
                codes[use] = quantiser.codes(args[0]).to(torch.int16).numpy()
                scaled[use] = quantiser.scaled(args[0]).double().numpy()
                if given is None:
                    return None
                return (quantiser.values(torch.from_numpy(given[use]).to(args[0].dtype)), *args[1:])

            handles.append(layer.module.register_forward_pre_hook(hook))
        try:
            with torch.no_grad():
                logits, *others = _outputs(self.model(images.cpu()))
        finally:
            for handle in handles:
                handle.remove()
        return Run(logits, codes, scaled, tuple(others))


def integer_runner(reference: IntegerReference) -> Runner:
    """Runs the integer reference."""

    def run(images: Tensor) -> Run:
        codes: dict[str, NDArray[np.int16]] = {}
        handles = []
        for name, layer in reference.layers.items():

            def hook(module: Any, args: Any, name: str = name) -> None:
                codes[_use(name, codes)] = module.input_codes(args[0]).to(torch.int16).numpy()

            handles.append(layer.register_forward_pre_hook(hook))
        try:
            logits, *others = _outputs(reference(images.cpu()))
        finally:
            for handle in handles:
                handle.remove()
        return Run(logits, codes, {}, tuple(others))

    return run


def _padded(images: Tensor, batch: int) -> NDArray[np.float32]:
    """The images, the last one repeated up to `batch`."""
    missing = batch - images.shape[0]
    array: NDArray[np.float32] = images.cpu().numpy()
    return np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing > 0 else array


def _collect(results: list[NDArray[Any]], tensors: dict[str, Any], layers: list[ExportedLayer], count: int) -> Run:
    """Of the first `count` images; the batch may be longer, filled up with repetitions."""
    logits, *others = results
    codes = {}
    for layer in layers:
        values = tensors[layer.act_tensor]
        if len(values) % len(logits) == 0:  # windows and patches of an image stand together
            values = values[: len(values) // len(logits) * count]
        if values.dtype == np.float32:
            each = [-1 if i == layer.channel_axis % values.ndim else 1 for i in range(values.ndim)]
            values = np.round(values / (layer.act_step.reshape(each) if layer.act_step.ndim else layer.act_step))
        codes[layer.name] = values.astype(np.int16)
    size = len(logits)
    kept = [
        values[:count] if values.ndim and len(values) == size else values if count == size else None
        for values in others
    ]
    return Run(logits[:count], codes, {}, tuple(kept))


def cpu_session(model: str | Path | bytes) -> onnxruntime.InferenceSession:
    """A file (or its content) in onnxruntime on the CPU.

    Graph optimisations are off, so that every operator computes what the file says: fused 8-bit kernels may saturate
    on processors without VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def onnxruntime_runner(path: str | Path) -> Runner:
    """Runs a QCDQ file in onnxruntime on the CPU, see `cpu_session`."""
    model = onnx.load(str(path))
    layers = layers_of(model)
    known = [output.name for output in model.graph.output]
    types = {t.name: t.data_type for t in model.graph.initializer}
    zero_points = {n.input[0]: n.input[2] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for name in dict.fromkeys(layer.act_tensor for layer in layers):
        if name not in known:
            kind = types.get(zero_points.get(name, ""), TensorProto.UINT8)
            model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    session = cpu_session(model.SerializeToString())
    outputs = [output.name for output in session.get_outputs()]
    source = session.get_inputs()[0]

    def run(images: Tensor) -> Run:
        fixed = source.shape[0] if isinstance(source.shape[0], int) else images.shape[0]
        results = session.run(outputs, {source.name: _padded(images, fixed)})
        tensors = dict(zip(outputs, results, strict=True))
        return _collect(results[: len(known)], tensors, layers, images.shape[0])

    return run


@contextmanager
def _readable_by_onnxruntime(version: int) -> Iterator[None]:
    """Makes qonnx write its one-node models at an IR version that onnxruntime reads, not at onnx's newest."""
    from qonnx.core import onnx_exec

    original = onnx_exec.qonnx_make_model
    onnx_exec.qonnx_make_model = lambda graph, **kwargs: original(graph, **kwargs, ir_version=version)
    try:
        yield
    finally:
        onnx_exec.qonnx_make_model = original


def qonnx_runner(path: str | Path, batch: int) -> Runner:
    """Runs a QONNX file in qonnx's own executor, in batches of a fixed size (shorter ones are filled up).

    Args:
        path: the file.
        batch: images at a time.
    """
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = onnx.load(str(path))
    layers = layers_of(model)
    for tensor in [*model.graph.input, *model.graph.output]:
        tensor.type.tensor_type.shape.dim[0].dim_value = batch
    source, targets = model.graph.input[0].name, [output.name for output in model.graph.output]
    version = model.ir_version
    wrapper = ModelWrapper(model).transform(InferShapes())

    def run(images: Tensor) -> Run:
        with _readable_by_onnxruntime(version), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Output shapes disagree")  # of shapes that the graph computes
            tensors = execute_onnx(wrapper, {source: _padded(images, batch)}, return_full_exec_context=True)
        return _collect([tensors[name] for name in targets], tensors, layers, images.shape[0])

    return run
