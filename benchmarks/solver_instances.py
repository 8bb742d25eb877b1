"""Instances for the selection's solvers: synthetic chains, and the spaces of real networks with random scores.

Chains as in section 7.3 of the estimator's design: L layers of 3x3 convolutions over four resolutions, K options each; an
option is a width and a pair of bits. BOPs of a layer are kappa c_in a_in c_out w, of rank one. What an option loses grows as
its width and its bits fall, times a log-normal sensitivity of the layer, with 15 % noise on every entry. A budget is the least
cost plus a share of the range. BINAS' spaces have its preset's choices, and scores as its estimator gives them: what an
option loses counts where its block runs, with joint effects of choices that meet in a layer.
"""

from dataclasses import dataclass

import hydra
import numpy as np
import torch
from torch import nn

from dnas.cli import configuration_folder
from dnas.config import parse_config
from dnas.models import elastic_mobilenet, mobilenet, resnet
from dnas.search.effects import gates_by_choice, pairs_of
from dnas.search.scores import Scores, nested
from dnas.select.problem import Problem
from dnas.space.build import build_space
from dnas.space.choice import Choice, Space
from dnas.space.cost import Cost, Factor, build_cost

BITS = (2, 3, 4, 6, 8)
SHARES = (0.25, 0.5, 0.75, 1.0)
WIDTHS = {25: 5, 40: 5, 60: 5}
"""For every number of options of a chain's layer how many widths it has; the others are pairs of bits."""
NOISE = 0.15
CHAIN_COSTS = ("bops", "weight_bits", "activation_traffic_bits")
NETWORKS = {
    "resnet8": resnet.resnet8,
    "resnet20": resnet.resnet20,
    "resnet56": resnet.resnet56,
    "mobilenetv2": lambda: mobilenet.mobilenetv2(classes=10, stem="cifar"),
}


PRESETS = {
    "elastic_mobilenet_cifar": ("elastic_mobilenet_cifar", "binas_cifar10", 32),
    "elastic_mobilenet": ("elastic_mobilenet", "binas_imagenet", 224),
}
"""BINAS' spaces: configuration of the model and of the space, and the images' side."""
JOINT = 0.1
"""Of a joint effect, in what one option of both choices loses."""


@dataclass(frozen=True)
class Instance:
    """kind: `chain`, or a network. size: layers and options of a chain. share: of every budget's range. costs: budgeted."""

    kind: str
    share: float
    costs: tuple[str, ...] = ("bops",)
    seed: int = 0
    size: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        size = f" {self.size[0]}x{self.size[1]}" if self.size[0] else ""
        return f"{self.kind}{size}, {self.share:.0%} of {' and '.join(self.costs)}, seed {self.seed}"

    def problem(self) -> Problem:
        if self.kind == "chain":
            return chain(*self.size, self.share, self.costs, self.seed)
        space = network_space(self.kind)
        return within(space, scores_of(self.kind, space, self.seed), self.share, self.costs)


def _losses(width: np.ndarray, weight: np.ndarray, act: np.ndarray) -> np.ndarray:
    return 1 / width - 1 + 4.0 ** (2 - weight) + 4.0 ** (2 - act)


def chain(layers: int, options: int, share: float, costs: tuple[str, ...], seed: int) -> Problem:
    """A chain of layers with one choice each."""
    generator = np.random.default_rng(seed)
    widths = WIDTHS[options]
    pairs = [(w, a) for w in BITS for a in BITS]
    taken = [pairs[i] for i in np.linspace(0, len(pairs) - 1, options // widths).round().astype(int)]
    table = np.array([(c, w, a) for c in np.linspace(0.25, 1.0, widths) for w, a in taken])
    choices, values, counts, positions = [], [], [], []
    for layer in range(layers):
        stage = layer * 4 // layers
        counts.append(np.floor(table[:, 0] * 16 * 2**stage))
        positions.append((32 // 2**stage) ** 2)
        loss = generator.lognormal() * _losses(*table.T) * (1 + NOISE * generator.normal(size=options))
        choices.append(Choice(f"layer{layer}", "option", tuple(range(options))))
        values.append(Factor((f"layer{layer}",), -loss))
    weight, act = table[:, 1], table[:, 2]
    factors: dict[str, list[Factor]] = {name: [] for name in CHAIN_COSTS}
    for layer in range(layers):
        own = counts[layer] * weight
        names = (f"layer{layer - 1}", f"layer{layer}") if layer else ("layer0",)
        before = (counts[layer - 1] * act, counts[layer - 1]) if layer else (np.array(24.0), np.array(3.0))
        factors["bops"].append(Factor(names, 9.0 * positions[layer] * np.multiply.outer(before[0], own)))
        factors["weight_bits"].append(Factor(names, 9.0 * np.multiply.outer(before[1], own)))
        factors["activation_traffic_bits"].append(Factor(names[-1:], positions[layer] * counts[layer] * act))
    found = [Cost(name, (tuple(factors[name]),), (0.0,)) for name in costs]
    limits = {cost.name: _limit(*_range(cost), share) for cost in found}
    return Problem(tuple(choices), tuple(values), tuple(found), limits)


def _range(cost: Cost) -> tuple[float, float]:
    """Sums of the tables' extremes: these grow with every choice, so that one architecture has them all."""
    return tuple(sum(float(take(f.table)) for f in cost.rows[0]) for take in (np.min, np.max))  # type: ignore[return-value]


def _limit(low: float, high: float, share: float) -> float:
    return float(int(low + share * (high - low)))


def network_space(name: str) -> Space:
    """A network for 32x32 images with all widths of bits and four shares of filters; or one of BINAS' spaces."""
    torch.manual_seed(0)
    if name in PRESETS:
        model, space, side = PRESETS[name]
        with hydra.initialize_config_dir(str(configuration_folder()), version_base=None):
            config = parse_config(hydra.compose("config", [f"model={model}", f"space={space}", "budget.bops=0.5"]))
        network: nn.Module = elastic_mobilenet(**config.model.arguments)
        return build_space(network.eval(), (torch.randn(2, 3, side, side),), **config.space.options)
    return build_space(NETWORKS[name](), (torch.randn(2, 3, 32, 32),), BITS, BITS, SHARES)


def random_scores(space: Space, seed: int) -> Scores:
    """Losses as those of a chain, with a sensitivity of every choice."""
    generator, values = np.random.default_rng(seed), {}
    for choice in space.choices:
        options = np.array(choice.options, dtype=np.float64)
        loss = options[-1] / options - 1 if choice.kind == "filters" else 4.0 ** (2 - options)
        loss = generator.lognormal() * loss * (1 + NOISE * generator.normal(size=len(options)))
        values[choice.name] = tuple((-loss).tolist())
    return Scores(values, "random").monotone(space)


def scores_of(kind: str, space: Space, seed: int) -> Scores:
    """Random scores of a network's space; of BINAS' as tables over choices and the depth of their stage."""
    return estimated_scores(space, seed) if kind in PRESETS else random_scores(space, seed)


def estimated_scores(space: Space, seed: int) -> Scores:
    """Scores as an estimator's: a main effect counts where its block runs, and so does that of two choices of a layer."""
    generator, plain, gates = np.random.default_rng(seed), random_scores(space, seed), gates_by_choice(space)
    values = {choice.name: (0.0,) * len(choice.options) for choice in space.choices}
    joint: dict[tuple[str, ...], np.ndarray] = {}
    effects: dict[tuple[str, ...], np.ndarray] = {
        (choice.name,): np.asarray(plain.values[choice.name]) for choice in space.searched()
    }
    for pair in pairs_of(space):
        sizes = [len(space.choice(name).options) for name in pair]
        scale = JOINT * min(float(np.ptp(effects[name,])) for name in pair)
        effects[pair] = scale * generator.normal(size=sizes)
    for names, table in effects.items():
        outer = dict(gate for name in names for gate in gates.get(name, ()) if gate[0] not in names)
        for gate, least in outer.items():
            table = table[..., None] * (np.arange(len(space.choice(gate).options)) >= least)
        whole = (*names, *outer)
        if len(whole) == 1:
            values[names[0]] = tuple(table.tolist())
        else:
            joint[whole] = joint.get(whole, np.zeros(table.shape)) + table
    return Scores(values, "random", tuple((names, nested(table.tolist())) for names, table in joint.items()))


def within(space: Space, scores: Scores, share: float, costs: tuple[str, ...]) -> Problem:
    """The problem of a space whose budgets are the least costs plus a share of the ranges."""
    found = [build_cost(space, name) for name in costs]
    limits = {c.name: _limit(c.at(space.extreme(False)), c.at(space.extreme(True)), share) for c in found}
    return Problem.of(space, scores, found, limits)
