"""Writes a realised network as ONNX: QCDQ (standard operators) or QONNX (one Quant node per tensor).

The network is traced once with placeholder operators where Brevitas quantises; `quant.onnx_nodes` then expands them.
So the integers and step sizes in the file are the model's own, bit for bit, in either format.
"""

import copy
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from quant.brevitas import LearnedStepActivation, QuantisedLayer, quantised_layers
from quant.files import write_atomically
from quant.onnx_nodes import ACTIVATION, PLACEHOLDERS, WEIGHT, expand

Format = Literal["qcdq", "qonnx"]
FORMATS: tuple[Format, ...] = ("qcdq", "qonnx")
OPSET = 17
LAYERS_KEY = "dnas.layers"
"""Key of the JSON list of layers and widths in the file's metadata_props."""


class _Placeholder(torch.autograd.Function):
    @staticmethod
    def symbolic(g: Any, x: Any, kind: str, name: str) -> Any:
        result = g.op(f"{PLACEHOLDERS}::{kind}", x, name_s=name)
        result.setType(x.type())
        return result

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, name: str) -> Tensor:
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
        result: Tensor = _Placeholder.apply(x, self.kind, self.name)
        return result, None, None, None


@contextmanager
def exporter_warnings() -> Iterator[None]:
    """Silences what torch's TorchScript exporter says about itself and about Python values in a traced model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript-based ONNX export")
        warnings.filterwarnings("ignore", message="The feature will be removed", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield


def _trace(model: nn.Module, layers: list[QuantisedLayer], inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """The network in ONNX with placeholder operators; `model` is changed, so it must be a copy."""
    keys: dict[int, str] = {}
    for layer in layers:
        act: LearnedStepActivation = layer.module.input_quant  # type: ignore[assignment]
        weight: Any = layer.module.weight_quant
        weight.skip_create_quant_tensor = True
        weight.export_handler, weight.export_mode = _Handler(WEIGHT, layer.name), True
        if id(act) not in keys:
            keys[id(act)] = layer.name
            act.export_handler, act.export_mode = _Handler(ACTIVATION, layer.name), True
    with torch.no_grad():
        result = model(*inputs)
    outputs = ["output"] if isinstance(result, Tensor) else [f"output{i}" for i in range(len(result))]
    names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
    buffer = io.BytesIO()
    with exporter_warnings(), torch.no_grad():
        torch.onnx.export(
            model,
            inputs,
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in [*names, *outputs]},
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold batch normalisation into weights
            do_constant_folding=False,
            custom_opsets={PLACEHOLDERS: 1},
        )
    return onnx.load_from_string(buffer.getvalue())


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    path: str | Path,
    format: Format,
    names: Mapping[str, str] | None = None,
) -> None:
    """Writes a realised network as an ONNX file with a dynamic batch dimension.

    The operator that computes a quantised layer carries the layer's name. `metadata_props` holds under LAYERS_KEY a
    JSON list of {name, weight_bits, act_bits, act_signed, narrow}. Batch normalisation stays an operator of its own.

    Args:
        model: network with layers of `fixed_layer`; neither changed nor moved. Exported in eval mode.
        example_inputs: inputs of the network, batch dimension first.
        path: the file; replaced atomically.
        format: "qcdq" (QuantizeLinear, Clip, DequantizeLinear; runs anywhere) or "qonnx" (Quant nodes).
        names: the name to write for a module path, where it should differ from the path.

    Raises:
        ValueError: an unknown format, or a network without quantised layers.
    """
    if format not in FORMATS:
        raise ValueError(f"export: format is {format!r}; allowed: {', '.join(FORMATS)}")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    clone = copy.deepcopy(model).cpu().eval()
    layers = quantised_layers(clone)
    if not layers:
        raise ValueError("export: the model has no quantised layers; make them with quant.brevitas.fixed_layer")
    template = _trace(clone, layers, tuple(x.detach().cpu() for x in inputs))
    renamed = {layer.name: (names or {}).get(layer.name, layer.name) for layer in layers}
    result = expand(template, layers, format, renamed)
    described = [
        {
            "name": renamed[layer.name],
            "weight_bits": layer.weight.bits,
            "act_bits": layer.activation.bits,
            "act_signed": layer.activation.signed,
            "narrow": layer.weight.narrow,
        }
        for layer in layers
    ]
    onnx.helper.set_model_props(result, {LAYERS_KEY: json.dumps(described)})
    onnx.checker.check_model(result)
    write_atomically(Path(path), result.SerializeToString())
