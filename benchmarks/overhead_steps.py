"""Training steps of one network, in every variant that `overhead.py` compares: each is a function without arguments.

All take the same batch and plain SGD with momentum over all parameters. "Ours" adds what our trainings add: gradient
clipping, the learning-rate schedule, floors of step sizes and, in a search, the cost, its penalty and Adam on the choices.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnas
from dnas.models.resnet import resnet8, resnet20, resnet56, resnet110
from dnas.recipe import Optimiser, OptimiserConfig
from dnas.search.relax import Relaxation
from dnas.search.supernet import Supernet
from quant.brevitas import LearnedStepQuant
from quant.kernel import kernel_available
from quant.layers import apply_layer, training_twin
from quant.modules import replace_module
from quant.quantizer import fit_step
from quant.spec import QuantSpec

Step = Callable[[], Any]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet110": resnet110,
}
WIDTHS = {1: (4,), 2: (4, 8), 3: (2, 4, 8), 5: (2, 3, 4, 6, 8), 8: (2, 3, 4, 5, 6, 7, 8, 9)}
RATE = 1e-5  # so that untrained deep networks stay as they are: only the time counts
SHARES = (0.25, 0.5, 0.75, 1.0)
QUANTISED = (nn.Conv2d, nn.Linear)


class Batch:
    """Random images (n, 3, 32, 32), labels, and a network to start from."""

    def __init__(self, network: str, size: int, device: torch.device, channels_last: bool = True) -> None:
        kernel_available()  # loaded before any graph is compiled
        torch.manual_seed(0)
        self.model = NETWORKS[network]().to(device).train()
        x = torch.randn(size, 3, 32, 32, device=device)
        self.x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        self.y = torch.randint(0, 10, (size,), device=device)


def _sgd(model: nn.Module, batch: Batch, compiled: bool = False) -> Step:
    """Forward, cross-entropy, backward, SGD."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE, momentum=0.9)
    if compiled:
        model.compile(dynamic=False)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(batch.x), batch.y).backward()
        optimiser.step()

    return step


def float_step(batch: Batch, compiled: bool = False) -> Step:
    """The network as it is."""
    return _sgd(copy.deepcopy(batch.model), batch, compiled)


# --- quantised by hand, as a user would write it


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _scaled(step: Tensor, elements: int, upper: int) -> Tensor:
    scale = (elements * upper) ** -0.5
    return step * scale + (step - step * scale).detach()


class HandQuantizer(nn.Module):
    """K learned steps from plain operations; their outputs are mixed by a softmax where there are several."""

    def __init__(self, specs: list[QuantSpec], steps: list[Tensor]) -> None:
        super().__init__()
        self.specs, self.steps = specs, nn.ParameterList([nn.Parameter(step) for step in steps])
        self.logits = nn.Parameter(torch.zeros(len(specs)))

    def versions(self, x: Tensor) -> list[Tensor]:
        found = []
        for step, spec in zip(self.steps, self.specs, strict=True):
            s = _scaled(step, x[0].numel(), spec.upper)
            s = s.reshape(-1, *[1] * (x.dim() - 1)) if s.dim() else s
            found.append(_round(torch.clamp(x / s, spec.lower, spec.upper)) * s)
        return found

    def forward(self, x: Tensor) -> Tensor:
        found = self.versions(x)
        return found[0] if len(found) == 1 else sum(p * v for p, v in zip(self.logits.softmax(0), found, strict=True))


class HandLayer(nn.Module):
    """A layer on hand-quantised input and weights; `naive` runs one layer per pair of widths."""

    def __init__(self, layer: nn.Module, widths: tuple[int, ...], naive: bool, image: bool) -> None:
        super().__init__()
        specs = [QuantSpec(bits, True) for bits in widths]
        acts = [QuantSpec(8, True)] if image else [QuantSpec(bits, False) for bits in widths]
        device = layer.weight.device
        self.layer, self.naive = layer, naive
        self.weight = HandQuantizer(specs, [fit_step(layer.weight.detach(), spec, True) for spec in specs])
        self.input = HandQuantizer(acts, [torch.tensor(3.0 / spec.upper, device=device) for spec in acts])

    def forward(self, x: Tensor) -> Tensor:
        if not self.naive:
            return apply_layer(self.layer, self.input(x), self.weight(self.layer.weight))
        weights = self.weight.versions(self.layer.weight)
        pairs = [
            apply_layer(self.layer, a, w) * (p * q)
            for a, p in zip(self.input.versions(x), self.input.logits.softmax(0), strict=True)
            for w, q in zip(weights, self.weight.logits.softmax(0), strict=True)
        ]
        return sum(pairs[1:], pairs[0])


def hand_step(batch: Batch, widths: tuple[int, ...], naive: bool = False, compiled: bool = False) -> Step:
    """LSQ, or a softmax mixture of LSQ quantisers, from plain operations."""
    model = copy.deepcopy(batch.model)
    for name, module in list(model.named_modules()):
        if isinstance(module, QUANTISED):
            replace_module(model, name, HandLayer(module, widths, naive, name == "conv1"))
    return _sgd(model, batch, compiled)


def brevitas_step(batch: Batch, collecting: bool) -> Step:
    """Brevitas' stock W4A4 layers, while they collect statistics (its first 300 steps by default) or after 20 such steps."""
    from brevitas import nn as qnn
    from brevitas.quant import Int8WeightPerChannelFloat

    options: dict[str, Any] = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
    model = copy.deepcopy(batch.model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            geometry = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            new: nn.Module = qnn.QuantConv2d(*geometry, bias=module.bias is not None, **options)
        elif isinstance(module, nn.Linear):
            new = qnn.QuantLinear(module.in_features, module.out_features, bias=True, **options)
        elif isinstance(module, nn.ReLU):
            new = qnn.QuantReLU(bit_width=4, collect_stats_steps=300 if collecting else 20)
        else:
            continue
        replace_module(model, name, new)
    model.to(batch.x.device).train()
    step = _sgd(model, batch)
    if not collecting:
        for _ in range(21):
            step()
    return step


# --- ours


def supernet(
    batch: Batch, widths: tuple[int, ...], shares: tuple[float, ...] = SHARES, mode: str = "gumbel_hard"
) -> Supernet:
    """A supernet of the batch's network. No target has 9 bits: the eighth width is added for the growth table alone."""
    legal = tuple(width for width in widths if width <= 8)
    space = dnas.build_space(batch.model, batch.x[:8], legal, legal, shares)
    if legal != widths:
        wide = {c.name for c in space.choices if c.options == legal}
        choices = tuple(replace(c, options=widths) if c.name in wide else c for c in space.choices)
        ranges = {n: replace(r, steps=(*r.steps, r.steps[-1] / 2)) if n in wide else r for n, r in space.ranges.items()}
        space = replace(space, choices=choices, ranges=ranges)
    return Supernet(batch.model, space, Relaxation(mode=mode)).train()


def search_step(
    batch: Batch,
    widths: tuple[int, ...] = WIDTHS[3],
    shares: tuple[float, ...] = SHARES,
    mode: str = "gumbel_hard",
    compiled: bool = False,
    choices: bool = True,
    net: Supernet | None = None,
) -> Step:
    """One batch trains weights, step sizes and, with `choices`, the choices under a budget, all together."""
    net, budget = net or supernet(batch, widths, shares, mode), dnas.Budget(bops=0.1)
    trained = {id(p) for p in net.weight_parameters()}
    named = [(name, p) for name, p in net.named_parameters() if id(p) in trained]
    optimiser = Optimiser(named, net.step_parameters(), OptimiserConfig(lr=RATE))
    adam = torch.optim.Adam(net.choice_parameters(), lr=RATE)
    if compiled:
        net.compile(dynamic=False)
    net.choices.logits.requires_grad_(choices)

    def step() -> None:
        loss = F.cross_entropy(net(batch.x), batch.y)
        if choices and net.choices.logits.numel():
            adam.zero_grad()
            loss = loss + budget.penalty(net)
        optimiser.step(loss, 0.5)
        if choices and net.choices.logits.numel():
            adam.step()

    return step


def fixed_step(batch: Batch, bits: int = 4, compiled: bool = False, twin: bool = True) -> Step:
    """The realised uniform network, through its training twin (as `dnas.retrain` does) or through Brevitas' layers."""
    net = supernet(batch, WIDTHS[3])
    model = dnas.realise(net, dnas.uniform_architecture(net.space, bits, bits)).train()
    steps = [module.step for module in model.modules() if isinstance(module, LearnedStepQuant)]
    optimiser = Optimiser(model.named_parameters(), steps, OptimiserConfig(lr=RATE))
    run = training_twin(model) if twin else model
    if compiled:
        run.compile(dynamic=False)

    def step() -> None:
        optimiser.step(F.cross_entropy(run(batch.x), batch.y), 0.5)

    return step


def hgq_step(network: str, batch: Batch) -> Step:
    """HGQ2 on Keras' torch backend, per-weight widths (optional: pip install hgq2; KERAS_BACKEND=torch)."""
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from hgq.config import LayerConfigScope, QuantizerConfigScope
    from hgq.layers import QConv2D, QDense

    blocks = {"resnet8": 1, "resnet20": 3}[network]

    def conv(x: Any, filters: int, stride: int, kernel: int = 3) -> Any:
        x = QConv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
        return keras.layers.BatchNormalization()(x)

    with (
        QuantizerConfigScope(default_q_type="kif"),
        LayerConfigScope(enable_ebops=True, beta0=1e-8),
    ):
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.ReLU()(conv(inputs, 16, 1))
        width = 16
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                width = 16 * 2**stage
                y = keras.layers.ReLU()(conv(x, width, stride))
                y = conv(y, width, 1)
                skip = x if stride == 1 else conv(x, width, stride, 1)
                x = keras.layers.ReLU()(keras.layers.Add()([y, skip]))
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, QDense(10)(x))
    images = batch.x.permute(0, 2, 3, 1).contiguous()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images, training=True), batch.y) + sum(model.losses)
        loss.backward()
        optimiser.step()

    return step
