"""Folds batch normalisation into the float steps, the signs and the bias of the quantised layer that feeds it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quant.brevitas import QuantisedLayer, filter_axis
from quant.onnx_nodes import NORM, PLACEHOLDERS, WEIGHT, placed_name, placed_rank

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def foldable(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch normalisations with running statistics, by module path; subclasses may compute anything and stay."""
    norms = ((n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm) and type(m) in _KINDS)
    return {name: norm for name, norm in norms if norm.running_mean is not None and norm.running_var is not None}


def folded(layer: QuantisedLayer, norm: _BatchNorm) -> tuple[QuantisedLayer, Tensor] | None:
    """The layer that computes `norm` of the layer's output, in evaluation mode.

    With gamma / sigma of a filter as its factor, the filter's step absorbs the magnitude and its integers the sign; no
    integer changes its magnitude.

    Returns:
        the layer with other steps and codes, and its float32 bias, shape (out channels,), on the CPU. None where it is
        not possible: a step for several channels (grouped transposed convolution), a factor that is 0 or not finite, or
        the lowest code of a full grid under a negative factor.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
        factor = (variance + norm.eps).rsqrt()
        steps = layer.weight_step.cpu().double()
        if factor.shape != steps.shape:
            return None
        if norm.weight is not None:
            factor = factor * norm.weight.cpu().double()
        bias: Tensor | None = layer.module.bias  # type: ignore[assignment]
        shift = (0.0 if bias is None else bias.cpu().double()) - mean
        shift = shift * factor + (0.0 if norm.bias is None else norm.bias.cpu().double())
        steps, shift = (steps * factor.abs()).float(), shift.float()
        axis = filter_axis(layer.module)
        codes = layer.codes.cpu().transpose(0, axis).int()
        codes = codes * factor.sign().int().reshape(-1, *[1] * (codes.dim() - 1))
        upper = torch.tensor([spec.upper for spec in layer.weights])
        usable = torch.isfinite(steps) & (steps >= torch.finfo(torch.float32).tiny) & torch.isfinite(shift)
        if not bool((usable & (codes.flatten(1).amax(1) <= upper)).all()):
            return None
    codes = codes.to(torch.int8).transpose(0, axis).contiguous()
    return replace(layer, weight_step=steps, codes=codes), shift


class _Template:
    """A traced network with placeholders, and who makes and who reads its tensors."""

    def __init__(self, nodes: list[NodeProto], outputs: list[str]) -> None:
        self.producer = {output: node for node in nodes for output in node.output}
        self.readers: dict[str, list[NodeProto]] = {output: [NodeProto()] for output in outputs}
        for node in nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def layer_before(self, norm: NodeProto) -> tuple[str, NodeProto] | None:
        """Name and operator of the layer whose output this placeholder alone reads, if its weights have no other use."""
        operator = self.producer.get(norm.input[0])
        if operator is None or operator.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        if operator.op_type == "MatMul" and placed_rank(norm) != 2:  # the normalisation's channels are not the features
            return None
        alone, tensor = len(self.readers[norm.input[0]]) == 1, operator.input[1]
        while (weight := self.producer.get(tensor)) is not None:
            alone = alone and len(self.readers[tensor]) == 1
            if weight.domain == PLACEHOLDERS and weight.op_type == WEIGHT:
                return (placed_name(weight), operator) if alone else None
            if weight.op_type not in ("Transpose", "Identity"):
                return None
            tensor = weight.input[0]
        return None


def fold(
    template: onnx.ModelProto, layers: list[QuantisedLayer], norms: Mapping[str, _BatchNorm]
) -> tuple[list[QuantisedLayer], dict[str, str]]:
    """Takes the batch normalisations out of a traced network that read the output of a quantised layer, and alone do so.

    Args:
        template: the network with a NORM placeholder before each of `norms`; changed: none is left.
        layers: the network's layers.
        norms: of `foldable`.

    Returns:
        the layers as they are to be written, and the path of the folded normalisation by layer name. A normalisation
        that cannot be folded (see `folded`), or that a layer with several uses feeds, stays.
    """
    graph, by_name = template.graph, {layer.name: layer for layer in layers}
    nodes = list(graph.node)
    view = _Template(nodes, [output.name for output in graph.output])
    uses = [placed_name(node) for node in nodes if node.domain == PLACEHOLDERS and node.op_type == WEIGHT]
    done: dict[str, str] = {}
    renamed: dict[str, str] = {}
    result: list[NodeProto] = []
    for node in nodes:
        if node.op_type == "BatchNormalization" and node.output[0] in renamed:
            continue
        if node.domain != PLACEHOLDERS or node.op_type != NORM:
            result.append(node)
            continue
        renamed[node.output[0]] = node.input[0]
        before, readers, path = view.layer_before(node), view.readers.get(node.output[0], []), placed_name(node)
        if before is None or uses.count(before[0]) != 1 or [r.op_type for r in readers] != ["BatchNormalization"]:
            continue
        (name, operator), (reader,) = before, readers
        found = folded(by_name[name], norms[path])
        if found is None:
            continue
        by_name[name], bias = found
        done[name] = path
        stored = f"{name}.bias.folded"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(bias.numpy()), stored))
        if operator.op_type == "MatMul":
            result.append(helper.make_node("Add", [operator.output[0], stored], [reader.output[0]]))
        else:
            del operator.input[2:]
            operator.input.append(stored)
            operator.output[0] = reader.output[0]
        renamed[reader.output[0]] = reader.output[0]
    for node in result:
        for i, tensor in enumerate(node.input):
            node.input[i] = renamed.get(tensor, tensor)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in result]
    del graph.node[:]
    graph.node.extend(copies)
    return [by_name[layer.name] for layer in layers], done
