"""Recurrent layers are not searched, but their multiplications are listed and counted."""

import torch
from torch import Tensor, nn

import dnas
from dnas.space.choice import FLOAT_BITS


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        sequence = self.lstm(torch.relu(self.conv(x)).transpose(1, 2))[0]
        return self.head(self.gru(sequence)[0][:, -1])


def test_recurrent_layers_are_counted_at_32_bits() -> None:
    space = dnas.build_space(Recurrent(), torch.randn(2, 4, 10))
    counted = {}
    for fixed in space.fixed:
        place = fixed.name.split(":")[0]
        counted[place] = counted.get(place, 0) + fixed.macs
    steps = 10
    assert counted["lstm"] == steps * 4 * 6 * (8 + 6)
    assert counted["gru"] == steps * 3 * 5 * (6 + 5)
    smallest = dnas.Architecture(space, {choice.name: choice.options[0] for choice in space.choices})
    layers = sum(layer.full_macs * smallest[layer.weight_choice] * smallest[layer.act_choice] for layer in space.layers)
    recurrent = (counted["lstm"] + counted["gru"]) * FLOAT_BITS**2
    assert smallest.cost("bops") == recurrent + layers
    assert smallest.cost("macs") == counted["lstm"] + counted["gru"] + sum(layer.full_macs for layer in space.layers)
