"""Shapes that ONNX shape inference cannot tell (padding and reshapes computed in the graph): those of one run."""

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper

_FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}


def measured_shapes(model: ModelProto, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of these tensors when onnxruntime runs the model on zeros.

    Args:
        model: with standard operators only and the sizes of its inputs known; not changed.
        names: tensors that it computes.

    Raises:
        ValueError: the size of an input is not known.
    """
    clone = ModelProto()
    clone.CopyFrom(model)
    outputs = {output.name for output in clone.graph.output}
    clone.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    feeds = {}
    for tensor in clone.graph.input:
        kind = tensor.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        if 0 in shape:
            raise ValueError(
                f"input {tensor.name!r} of the file has shape {shape}: sizes beyond the batch must be fixed"
            )
        feeds[tensor.name] = np.zeros(shape, _FLOATS.get(kind.elem_type, np.int64))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(clone.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {name: found.shape for name, found in zip(names, session.run(names, feeds), strict=True)}
