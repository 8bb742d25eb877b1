"""Activations that differ between the columns of an image, as padding makes them: steps are fitted to all of them."""

import pytest
import torch
from torch import Tensor, nn

from dnas.search.supernet import Supernet
from dnas.space.build import build_space
from quant.quantizer import CALIBRATION_ELEMENTS, drawn, fit_step, quantize
from quant.spec import QuantSpec

SIDE = 32


class Bordered(nn.Module):
    """Two convolutions; what the second one reads is ten times larger away from the left column."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.full((SIDE,), 1.0)
        scale[0] = 0.1
        return self.second(torch.relu(self.first(x)) * scale).mean((2, 3))


def error(x: Tensor, step: Tensor, spec: QuantSpec) -> float:
    return float((quantize(x, step.detach(), spec) - x).square().mean())


@pytest.mark.parametrize("by_channel", [False, True])
def test_steps_fit_the_whole_tensor(by_channel: bool) -> None:
    torch.manual_seed(0)
    model, images = Bordered().eval(), torch.randn(64, 3, SIDE, SIDE)
    granularity = "filter" if by_channel else "layer"
    space = build_space(model, (images,), (2, 4, 8), (2, 4, 8), (1.0,), act_granularity=granularity)
    supernet = Supernet(model, space)
    with torch.no_grad():
        scale = torch.ones(SIDE)
        scale[0] = 0.1
        seen = torch.relu(model.first(images)) * scale
    for calibrated in (False, True):  # from the example inputs, and from images of a search
        if calibrated:
            supernet.calibrate(images)
        activation = supernet.mixed_layer("second").activation
        for steps, spec in zip(activation.steps, activation.specs, strict=True):
            if by_channel and calibrated:
                for channel in range(16):
                    whole = seen[:, channel]
                    best = fit_step(whole.flatten(), spec, per_filter=False)
                    assert error(whole, steps[channel], spec) < 1.1 * error(whole, best, spec)
            else:
                best = fit_step(seen.flatten(), spec, per_filter=False)
                assert error(seen, steps.flatten()[0], spec) < 1.1 * error(seen, best, spec)


def test_entries_are_drawn_from_every_column_and_always_the_same() -> None:
    columns = torch.arange(256 * 16 * SIDE * SIDE) % SIDE
    found = drawn(columns)
    assert len(found) == CALIBRATION_ELEMENTS
    expected = CALIBRATION_ELEMENTS / SIDE
    assert (
        float(((torch.bincount(found, minlength=SIDE) - expected) ** 2 / expected).sum()) < 70
    )  # chi-squared, 31: p 1e-4
    assert torch.equal(found, drawn(columns))
    assert torch.equal(drawn(columns[:100]), columns[:100])
