"""How well the sum over layers predicts the latency of whole networks: `python benchmarks/latency.py` writes the result file.

Random networks of a space are exported as QCDQ files with batch normalisation folded, or the same in floats, and timed in
onnxruntime: ten fit the line, twenty others judge it (`dnas stage=measure` does the same). Images of 32x32, one thread.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dnas
from dnas.models import elastic_mobilenet, mobilenetv2, resnet8
from dnas.run import source_commit
from dnas.space.latency import MeasureConfig
from dnas.stages.measure import measure_network

RESULT = Path(__file__).parent / "results" / "latency.json"
ALL = {"weight_bits": (8,), "act_bits": (8,)}
ELASTIC: dict[str, Any] = {
    "filters": {"*.expand.0": (0.5, 0.667, 1.0)}, "kernels": (3, 5), "min_depth": 2, "branches": ("*.se",),
}  # fmt: skip


def cases() -> dict[str, tuple[nn.Module, dict[str, Any], MeasureConfig]]:
    """Networks, the options of their spaces, and how they are timed."""
    elastic = elastic_mobilenet(
        3, 10, stem=(16, 16), stages=(16, 24, 40), strides=(1, 2, 1), last=(160, 160), hard_swish_from=1
    )
    mobilenet = mobilenetv2(3, 10, stem="cifar")
    return {
        "ResNet-8, 8 bits": (resnet8(3, 10), ALL, MeasureConfig()),
        "ResNet-8, 2 to 8 bits": (resnet8(3, 10), {}, MeasureConfig()),
        "ResNet-8, 8 bits, batch 8": (resnet8(3, 10), ALL, MeasureConfig(batch=8)),
        "ResNet-8, float": (resnet8(3, 10), ALL, MeasureConfig(precision="float")),
        "MobileNetV2, 8 bits": (mobilenet, ALL, MeasureConfig()),
        "ElasticMobileNet, 8 bits": (elastic, {**ALL, **ELASTIC}, MeasureConfig()),
        "ElasticMobileNet, float": (elastic, {**ALL, **ELASTIC}, MeasureConfig(precision="float")),
    }


def main() -> None:
    """The command."""
    rows = []
    for name, (model, options, config) in cases().items():
        torch.manual_seed(0)
        images = torch.randn(2, 3, 32, 32)
        space = dnas.build_space(model.eval(), images, **options)
        table = measure_network(model, images, space, config)
        rows.append(
            {
                "case": name, **asdict(config), "configurations": len(table.times), "slope": table.slope,
                "intercept": table.intercept, "machine": dict(table.machine), "checked": table.checked,
            }
        )  # fmt: skip
        print(
            name,
            {key: value for key, value in (table.checked or {}).items() if not isinstance(value, list)},
            flush=True,
        )
    versions = {name: version(name) for name in ("onnxruntime", "onnx", "torch")}
    content = {"type": "dnas.Latency", "commit": source_commit(), "versions": versions, "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
