"""ONNX files and the proof that they compute what the network computes: verify.json."""

import torch

from dnas.space.exported import check_costs
from dnas.stages.context import Run
from quant.export import export as write_onnx
from quant.graph import read_layers
from quant.verify import verify


def export(run: Run) -> None:
    """Writes model.<format>.onnx and verify.json.

    Raises:
        VerificationError: a file does not compute what the network computes, or its cost is not the architecture's.
    """
    config, architecture = run.config.export, run.architecture()
    model = run.realised(architecture, run.folder.file("model.safetensors"))
    images = run.images("test", config.images)
    for name in ("validation", "choices", "weights"):
        if len(images) < config.images:
            images = torch.cat([images, run.images(name, config.images - len(images))])
    files = {format: run.folder.file(f"model.{format}.onnx") for format in config.formats}
    for format, path in files.items():
        write_onnx(model, images[:2], path, format, fold_batch_norm=config.fold_batch_norm)  # type: ignore[arg-type]
    found = verify(model, images[:2], images, files, qonnx_images=config.qonnx_images)
    found["costs"] = {format: check_costs(architecture, read_layers(path)) for format, path in files.items()}
    run.folder.write_json("verify.json", found)
    for name, result in found["runtimes"].items():
        run.console.print(
            f"{name}: {result['images']} images, {result['differing_predictions']} predictions differ, largest logit "
            f"difference {result['largest_logit_difference']:.2g}, {result['ties']} float ties",
            highlight=False,
        )
