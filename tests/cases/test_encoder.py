"""`nn.TransformerEncoderLayer`, which in evaluation mode bypasses its own modules on a fused path."""

import torch
from equivalence import build
from torch import Tensor, nn

import dnas
from dnas.space.architecture import Architecture


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.embed(x)).mean(1))


@torch.no_grad()
def test_masked_equals_realised() -> None:
    inputs = (torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1)),)
    model, given, supernet = build(Encoder, torch.float64, inputs, {})
    with supernet.quantisers_off():
        torch.testing.assert_close(supernet(*given), model(*given), rtol=1e-10, atol=1e-10)
    outputs = []
    for end in (0, -1):
        architecture = supernet.with_filters(
            Architecture(supernet.space, {c.name: c.options[end] for c in supernet.space.choices})
        )
        with supernet.evaluate_as(architecture):
            wanted = supernet(*given)
        torch.testing.assert_close(dnas.realise(supernet, architecture).eval()(*given), wanted, rtol=1e-10, atol=1e-10)
        outputs.append(wanted)
    assert not torch.allclose(outputs[0], outputs[1], rtol=1e-3)
    assert any(layer.name.endswith("linear1") for layer in supernet.space.layers)
