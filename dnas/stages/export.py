"""ONNX files and the proof that they compute what the network computes: verify.json."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch

from dnas.space.exported import check_costs
from dnas.stages.context import Run
from quant.export import export as write_onnx
from quant.files import write_atomically
from quant.graph import read_layers
from quant.verify import verify


def export(run: Run) -> None:
    """Writes model.<format>.onnx and verify.json, when all of them are verified: until then what was there before stays.

    Raises:
        VerificationError: a file does not compute what the network computes, or its cost is not the architecture's.
    """
    config, architecture = run.config.export, run.architecture()
    model = run.realised(architecture, run.folder.file("model.safetensors"))
    images = run.images("test", config.images)
    for name in ("validation", "choices", "weights"):
        if len(images) < config.images:
            images = torch.cat([images, run.images(name, config.images - len(images))])
    with tempfile.TemporaryDirectory() as folder:
        files = {format: Path(folder) / f"model.{format}.onnx" for format in config.formats}
        for format, path in files.items():
            write_onnx(model, images[:2], path, format, fold_batch_norm=config.fold_batch_norm)  # type: ignore[arg-type]
        found = verify(model, images[:2], images, files, qonnx_images=config.qonnx_images)
        found["costs"] = {format: check_costs(architecture, read_layers(path)) for format, path in files.items()}
        if run.engine.rank == 0:
            run.folder.forget("export")  # from here on files and verify.json may be of different exports
        for path in files.values():
            write_atomically(run.folder.file(path.name), partial(shutil.copyfile, path))
    run.folder.write_json("verify.json", found)
    for name, result in found["runtimes"].items():
        run.console.print(
            f"{name}: {result['images']} images, {result['differing_predictions']} predictions differ, largest logit "
            f"difference {result['largest_logit_difference']:.2g}, {result['ties']} float ties",
            highlight=False,
        )
