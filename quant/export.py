"""Writes a realised network as ONNX: QCDQ (standard operators) or QONNX (one Quant node per tensor).

The network is traced once with placeholder operators where Brevitas quantises; `quant.onnx_nodes` then expands them.
So the integers and step sizes in the file are the model's own, bit for bit, in either format.
"""

import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.nn.modules.batchnorm import _BatchNorm
from torch.onnx import symbolic_helper, utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quant.brevitas import LearnedStepActivation, QuantisedLayer, quantised_layers
from quant.files import write_atomically
from quant.fold import fold, foldable
from quant.graph import LAYERS_KEY
from quant.modules import copied
from quant.onnx_nodes import ACTIVATION, NORM, PLACEHOLDERS, WEIGHT, expand
from quant.spec import widths

Format = Literal["qcdq", "qonnx"]
FORMATS: tuple[Format, ...] = ("qcdq", "qonnx")
OPSET = 17
LATER_OPSET = 18
"""For networks with operators that ONNX had not before (folding of patches: Col2Im)."""


class _Placeholder(torch.autograd.Function):
    @staticmethod
    def symbolic(g: Any, x: Any, kind: str, name: str, rank: int) -> Any:
        result = g.op(f"{PLACEHOLDERS}::{kind}", x, name_s=name, rank_i=rank)
        result.setType(x.type())
        return result

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, name: str, rank: int) -> Tensor:
        return x.clone()


class _Handler:
    """Brevitas export handler: puts one placeholder operator where the proxy quantises."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name

    def prepare_for_export(self, module: nn.Module) -> None:
        """Nothing to prepare: the integers are read from the model afterwards."""

    def attach_debug_info(self, module: nn.Module) -> None:
        """No debug information."""

    def __call__(self, x: Tensor) -> tuple[Tensor, None, None, None]:
        result: Tensor = _Placeholder.apply(x, self.kind, self.name, x.dim())
        return result, None, None, None


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silences what torch's TorchScript exporter says about itself and about Python values in a traced model.

    Of a graph that it cannot export, it prints all; there is no switch for that.
    """
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using the legacy TorchScript-based ONNX export")
            warnings.filterwarnings("ignore", message="The feature will be removed", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=TracerWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx\.")
            yield
    finally:
        torch._C._jit_onnx_log = log


class _Folds(TorchDispatchMode):
    """Whether a network folds patches into an image again."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func is torch.ops.aten.col2im.default
        return func(*args, **(kwargs or {}))


def _fold(g: Any, x: Any, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    """Col2Im for an image of the size traced: the exporter's own needs it as a constant of the model's code."""
    sizes = [symbolic_helper._get_const(value, "is", "fold") for value in (kernel, dilation, padding, stride)]
    image = g.op("Constant", value_t=torch.tensor(g.original_node.output().type().sizes()[2:]))
    block = g.op("Constant", value_t=torch.tensor(sizes[0]))
    return g.op("Col2Im", x, image, block, dilations_i=sizes[1], pads_i=[*sizes[2], *sizes[2]], strides_i=sizes[3])


@contextmanager
def _folding() -> Iterator[None]:
    utils.register_custom_op_symbolic("aten::col2im", _fold, LATER_OPSET)
    try:
        yield
    finally:
        utils.unregister_custom_op_symbolic("aten::col2im", LATER_OPSET)


def _trace(
    model: nn.Module, layers: list[QuantisedLayer], norms: Mapping[str, _BatchNorm], inputs: tuple[Tensor, ...]
) -> onnx.ModelProto:
    """The network in ONNX with placeholder operators; `model` is changed, so it must be a copy."""
    for name, norm in norms.items():

        def mark(module: nn.Module, args: Any, name: str = name) -> tuple[Tensor]:
            return (_Placeholder.apply(args[0], NORM, name, args[0].dim()),)

        norm.register_forward_pre_hook(mark)
    keys: dict[int, str] = {}
    for layer in layers:
        act: LearnedStepActivation = layer.module.input_quant  # type: ignore[assignment]
        weight: Any = layer.module.weight_quant
        weight.skip_create_quant_tensor = True
        weight.export_handler, weight.export_mode = _Handler(WEIGHT, layer.name), True
        if id(act) not in keys:
            keys[id(act)] = layer.name
            act.export_handler, act.export_mode = _Handler(ACTIVATION, layer.name), True
    with torch.no_grad(), _Folds() as folds:
        result = model(*inputs)
    count = sum(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
    outputs = ["output"] if isinstance(result, Tensor) else [f"output{i}" for i in range(count)]
    names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
    buffer = io.BytesIO()
    with quiet_exporter(), _folding(), torch.no_grad():
        torch.onnx.export(
            model,
            inputs,
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=LATER_OPSET if folds.found else OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in [*names, *outputs]},
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold batch normalisation into weights
            do_constant_folding=False,
            custom_opsets={PLACEHOLDERS: 1},
        )
    traced = onnx.load_from_string(buffer.getvalue())
    for node in traced.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Transpose" and attribute.name == "perm":  # torch writes movedim(1, -1) with a -1
                attribute.ints[:] = [place % len(attribute.ints) for place in attribute.ints]
    return traced


def _check_values(layers: list[QuantisedLayer], inputs: tuple[Tensor, ...]) -> None:
    """What runtimes would refuse, or compute nonsense from, is refused here."""
    for index, x in enumerate(inputs):
        if x.is_floating_point() and x.dtype != torch.float32:
            raise ValueError(f"export: input {index} is {x.dtype}; allowed: torch.float32. Give it as x.float()")
    for layer in layers:
        tensors = {"weight": layer.module.weight, "bias": layer.module.bias, "weight step": layer.weight_step}
        tensors["activation step"] = layer.activation_step
        for what, values in tensors.items():
            if not isinstance(values, Tensor):
                continue
            if values.dtype != torch.float32:
                raise ValueError(
                    f"export: layer {layer.name}: {what} is {values.dtype}; allowed: torch.float32. Export model.float()"
                )
            if not bool(values.isfinite().all()):
                raise ValueError(
                    f"export: layer {layer.name}: {what} holds values that are not finite: its training diverged. "
                    "Train again with a smaller learning rate"
                )


def _renamed(layers: list[str], names: Mapping[str, str]) -> dict[str, str]:
    """The name to write for every layer.

    Raises:
        ValueError: names for something else than a quantised layer, or one name for two.
    """
    unknown = sorted(set(names) - set(layers))
    if unknown:
        raise ValueError(f"export: names has {unknown}; quantised layers are {layers}")
    found = {layer: names.get(layer, layer) for layer in layers}
    twice = sorted(name for name, count in Counter(found.values()).items() if count > 1)
    if twice:
        raise ValueError(f"export: several layers would be named {twice}; give each a name of its own")
    return found


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    path: str | Path,
    format: Format,
    names: Mapping[str, str] | None = None,
    fold_batch_norm: bool = False,
) -> None:
    """Writes a realised network as an ONNX file with a dynamic batch dimension.

    The operator that computes a quantised layer carries the layer's name. `metadata_props` holds under LAYERS_KEY a
    JSON list of {name, weight_bits, act_bits, act_signed, narrow}; the bits are one number, or a list with one for each
    filter or input channel where they differ. Batch normalisation stays an operator of its own unless it is folded.

    Args:
        model: network with layers of `fixed_layer`; neither changed nor moved. Exported in eval mode.
        example_inputs: inputs of the network, batch dimension first.
        path: the file; replaced atomically.
        format: "qcdq" (QuantizeLinear, Clip, DequantizeLinear; runs anywhere) or "qonnx" (Quant nodes).
        names: the name to write for a module path, where it should differ from the path.
        fold_batch_norm: batch normalisation that reads a quantised layer's output, and alone does so, goes into the
            layer's float steps, the signs of its integers and its bias, where it can (see `quant.fold`). The entry of
            such a layer in the JSON list has its module path under "batch_norm". With its default optimisations
            onnxruntime computes such layers in integers and rounds their bias, which can move codes by one; `verify`
            runs what the file says.

    Raises:
        ValueError: an unknown format, a network without quantised layers, layers or inputs of another type than float32,
            values that are not finite, or names of no layer or for several.
    """
    if format not in FORMATS:
        raise ValueError(f"export: format is {format!r}; allowed: {', '.join(FORMATS)}")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    clone = copied(model).cpu().eval()
    layers = quantised_layers(clone)
    if not layers:
        raise ValueError("export: the model has no quantised layers; make them with quant.brevitas.fixed_layer")
    _check_values(layers, inputs)
    renamed = _renamed([layer.name for layer in layers], names or {})
    norms = foldable(clone) if fold_batch_norm else {}
    template = _trace(clone, layers, norms, tuple(x.detach().cpu() for x in inputs))
    layers, folded = fold(template, layers, norms)
    result = expand(template, layers, format, renamed)
    described = [
        {
            "name": renamed[layer.name],
            "weight_bits": widths(layer.weights),
            "act_bits": widths(layer.activations),
            "act_signed": layer.activations[0].signed,
            "narrow": layer.weights[0].narrow,
        }
        | ({"batch_norm": folded[layer.name]} if layer.name in folded else {})
        for layer in layers
    ]
    onnx.helper.set_model_props(result, {LAYERS_KEY: json.dumps(described)})
    onnx.checker.check_model(result)
    write_atomically(Path(path), result.SerializeToString())
