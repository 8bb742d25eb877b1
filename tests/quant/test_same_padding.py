"""`padding="same"` and `"valid"`: what torch.onnx writes for a dilated kernel, onnxruntime refuses."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from quantised_networks import act, fix
from torch import nn

from quant.export import FORMATS, export


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding="same", dilation=2),
        nn.Conv1d(4, 6, 4, padding="same"),
        nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(4, 1)),
        nn.Conv2d(4, 6, (2, 3), padding="valid", dilation=2),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, padding_mode="reflect"),
    ],
)
def test_the_exported_layer_pads_as_torch_does(layer: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, *([9] * (layer.weight.dim() - 2)))  # type: ignore[operator, union-attr]
    fixed = fix(layer, 4, act(4, True)).eval()
    with torch.no_grad():
        shape = layer(x).shape
        wanted = fixed(x)
    assert wanted.shape == shape
    for format in FORMATS:
        export(nn.Sequential(fixed), x, tmp_path / f"{format}.onnx", format)
    session = onnxruntime.InferenceSession(str(tmp_path / "qcdq.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)
