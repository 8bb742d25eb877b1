"""The user's model with every choice relaxed inside one forward pass."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnas.search.importance import filter_importance
from dnas.search.mixed import MixedActivation, MixedLayer, Sample
from dnas.search.relax import Relaxation, gumbel_noise, one_hot, probabilities, relax
from dnas.search.scores import Scores
from dnas.space.architecture import Architecture
from dnas.space.choice import Space
from dnas.space.cost import Cost, LayerCost, build_cost, reference_cost
from quant.spec import QuantSpec

SCORE_DECAY = 0.995


class Supernet(nn.Module):
    """The user's model, its layers mixed under a relaxation of a space's choices.

    In training mode every forward pass draws a new sample of the choices. In evaluation mode the network is discrete:
    the architecture given to `evaluate_as`, or else the most probable option of every choice.
    """

    ranks: Tensor
    temperature: Tensor
    draws: Tensor

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        relaxation: Relaxation | None = None,
        seed: int = 0,
        functions: Mapping[str, LayerCost] | None = None,
    ) -> None:
        """Copies the model; the user's own is left as it is.

        Args:
            model: the model that the space was built from, with the weights to start from.
            space: its space.
            relaxation: Gumbel-softmax, hard, by default.
            seed: of the sampling of choices.
            functions: the user's own costs per layer, by name.

        Raises:
            ValueError: the space is of another model.
        """
        super().__init__()
        self.space, self.relaxation = space, relaxation or Relaxation()
        self.functions = dict(functions or {})
        self.model = copy.deepcopy(model)
        for module in self.model.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # torch's fused evaluation path would bypass its linear layers
        self.choices = {choice.name: i for i, choice in enumerate(space.searched())}
        self.logits = nn.ParameterList([torch.zeros(len(choice.options)) for choice in space.searched()])
        self._sample = Sample()
        self._architecture: Architecture | None = None
        self._relaxed = False
        self._costs: dict[str, Cost] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self.register_buffer("temperature", torch.tensor(self.relaxation.start, dtype=torch.float64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._task_benefit = nn.ParameterList(
            [nn.Parameter(torch.zeros(len(c.options)), requires_grad=False) for c in space.searched()]
        )
        self._benefit_weight = nn.ParameterList(
            [nn.Parameter(torch.zeros(()), requires_grad=False) for _ in space.searched()]
        )
        self.multipliers = nn.ParameterDict()
        self._convert()
        self.to(next(self.model.parameters()).device)
        self.rank_filters()

    # --- construction

    def _convert(self) -> None:
        space = self.space
        offsets, total = [], 0
        for group in space.groups:
            offsets.append(total)
            total += group.size
        self._group_offsets = offsets
        self.register_buffer("ranks", torch.zeros(total, dtype=torch.int64))
        shrinking = {i for i, group in enumerate(space.groups) if min(space.choice(group.choice).options) < group.size}
        self._shrinking_groups = sorted(shrinking)
        self.activations = nn.ModuleDict()
        for layer in space.layers:
            if layer.act_choice not in self._activation_keys():
                options, found = space.choice(layer.act_choice).options, space.ranges[layer.act_choice]
                specs = tuple(QuantSpec(bits, found.signed) for bits in options)
                self.activations[_key(layer.act_choice)] = MixedActivation(
                    layer.act_choice, specs, found.steps, self._sample
                )
        for layer in space.layers:
            try:
                module = self.model.get_submodule(layer.name)
            except AttributeError as error:
                raise ValueError(
                    f"the model has no layer {layer.name!r}: the space was built from another model"
                ) from error
            shape = tuple(getattr(module, name, -1) for name in ("in_channels", "out_channels"))
            if isinstance(module, nn.Linear):
                shape = (module.in_features, module.out_features)
            if shape != (len(layer.inputs), len(layer.outputs)):
                raise ValueError(
                    f"{layer.name!r} is a {type(module).__name__} of {shape} channels, in the space of "
                    f"{(len(layer.inputs), len(layer.outputs))}: the space was built from another model"
                )
            specs = tuple(
                QuantSpec(bits, True, space.weight_narrow) for bits in space.choice(layer.weight_choice).options
            )
            pairs = list(zip(layer.inputs.group, layer.inputs.position, strict=True))
            masked = not layer.depthwise and bool(shrinking & set(layer.inputs.group))
            index = torch.tensor([offsets[g] + p for g, p in pairs]) if masked else None
            activation = self.activations[_key(layer.act_choice)]
            replace_module(
                self.model,
                layer.name,
                MixedLayer(module, layer.weight_choice, specs, activation, index, self._sample),  # type: ignore[arg-type]
            )

    def _activation_keys(self) -> set[str]:
        return {activation.choice for activation in self.activations.values()}  # type: ignore[misc]

    def mixed_layer(self, name: str) -> MixedLayer:
        """The mixed layer that stands at that module path of the user's model."""
        module = self.model.get_submodule(name)
        if not isinstance(module, MixedLayer):
            raise KeyError(f"{name!r} is not a layer of this space")
        return module

    @torch.no_grad()
    def rank_filters(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Orders every group's filters; an option keeps the first ones.

        Args:
            importance: per group (by its choice's name) shape (size,), larger is kept longer; by default
                `filter_importance`.
        """
        for index, group in enumerate(self.space.groups):
            offset = self._group_offsets[index]
            if importance is not None and group.choice in importance:
                value = importance[group.choice].to(self.ranks.device)
            else:
                layers = {name: self.mixed_layer(name).layer for name in group.members}
                value = filter_importance(self.space, index, layers, self.model).to(self.ranks.device)
            order = torch.argsort(value, descending=True, stable=True)
            self.ranks[offset + order] = torch.arange(group.size, device=order.device)

    @torch.no_grad()
    def calibrate(self, *inputs: Any) -> None:
        """Sets every activation step to the least squared error on these inputs, as the float network sees them."""
        seen: dict[MixedActivation, list[Tensor]] = {}
        handles = [
            module.register_forward_pre_hook(lambda m, args: seen.setdefault(m.activation, []).append(args[0].detach()))
            for module in self.model.modules()
            if isinstance(module, MixedLayer)
        ]
        training = {module: module.training for module in self.modules()}
        try:
            self.eval()
            with self.quantisers_off():
                self(*inputs)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in training.items():
                module.training = mode
        for activation, tensors in seen.items():
            activation.calibrate(torch.cat([t.flatten() for t in tensors]))

    # --- forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The user's model's forward, under a new sample in training mode, discrete in evaluation mode."""
        if self._sample.quantised:
            self._draw()
        return self.model(*inputs, **named)

    def _draw(self) -> None:
        sample, temperature = self._sample, float(self.temperature)
        sample.weights.clear()
        learns = self.training and torch.is_grad_enabled()
        searched = list(self.space.searched())
        if self.training:
            self.draws += 1
            sizes = [len(choice.options) for choice in searched]
            noise = gumbel_noise(sum(sizes), self._generator).split(sizes)
        for i, choice in enumerate(searched):
            logits = self.logits[i]
            if self.training:
                weights = relax(logits, self.relaxation, temperature, noise[i])
                if learns and weights.requires_grad:
                    weights.register_hook(partial(self._accumulate, i))
            elif self._relaxed:
                weights = probabilities(logits.detach(), self._price_temperature())
            else:
                weights = one_hot(self._discrete(choice.name), logits.detach())
            sample.weights[choice.name] = weights
        device = self.ranks.device
        for choice in self.space.choices:
            if not choice.searched:
                sample.weights[choice.name] = torch.ones(1, device=device)
        flat = torch.cat([sample.weights[c.name].detach() for c in searched]).tolist() if searched else []
        sample.portions = {choice.name: (1.0,) for choice in self.space.choices}
        for choice in searched:
            sample.portions[choice.name] = tuple(flat[: len(choice.options)])
            flat = flat[len(choice.options) :]
        sample.mask = self._mask()

    def _discrete(self, name: str) -> int:
        if self._architecture is not None:
            return self.space.choice(name).index(self._architecture[name])
        logits = self.logits[self.choices[name]]
        return len(logits) - 1 - int(logits.flip(0).argmax())  # of equal ones the dearest

    def _mask(self) -> Tensor | None:
        if not self._shrinking_groups:
            return None
        parts = []
        for index, group in enumerate(self.space.groups):
            offset = self._group_offsets[index]
            ranks = self.ranks[offset : offset + group.size]
            if index not in self._shrinking_groups:
                parts.append(torch.ones(group.size, device=ranks.device))
                continue
            counts = torch.tensor(self.space.choice(group.choice).options, device=ranks.device)
            weights = self._sample.weights[group.choice]
            keeps = (ranks.unsqueeze(0) < counts.unsqueeze(1)).to(weights.dtype)  # (K, size)
            parts.append(weights @ keeps)
        return torch.cat(parts)

    @torch.no_grad()
    def _accumulate(self, index: int, grad: Tensor) -> None:
        """Running mean of the task loss' gradient per option: only the task reaches a sample; the price does not."""
        if torch.isfinite(grad).all():
            self._task_benefit[index].mul_(SCORE_DECAY).sub_(grad - grad.mean(), alpha=1 - SCORE_DECAY)
            self._benefit_weight[index].mul_(SCORE_DECAY).add_(1 - SCORE_DECAY)

    @contextmanager
    def quantisers_off(self) -> Iterator[None]:
        """The user's own network at full precision and full width."""
        self._sample.quantised = False
        try:
            yield
        finally:
            self._sample.quantised = True

    @contextmanager
    def evaluate_relaxed(self) -> Iterator[None]:
        """Evaluation mode mixes all options by their probabilities: the network that a soft relaxation trains."""
        self._relaxed = True
        try:
            yield
        finally:
            self._relaxed = False

    @contextmanager
    def evaluate_as(self, architecture: Architecture) -> Iterator[None]:
        """Evaluation mode uses this architecture (and the filters it keeps) instead of the most probable options."""
        ranks = self.ranks.clone()
        self._architecture = architecture
        if architecture.kept is not None:
            importance = {}
            for index, group in enumerate(self.space.groups):
                first = torch.zeros(group.size, device=ranks.device)
                first[torch.tensor(architecture.kept[group.choice], device=ranks.device)] = 1e9
                offset = self._group_offsets[index]
                importance[group.choice] = first - ranks[offset : offset + group.size]
            self.rank_filters(importance)
        try:
            yield
        finally:
            self._architecture = None
            self.ranks.copy_(ranks)

    # --- what the search asks for

    def anneal(self, fraction: float) -> None:
        """Sets the temperature for this fraction (0 to 1) of the search."""
        self.temperature.fill_(self.relaxation.temperature(fraction))

    def probabilities(self) -> dict[str, Tensor]:
        """For every choice the probability of each option, shape (K,), differentiable in the logits."""
        device = self.ranks.device
        return {
            choice.name: probabilities(self.logits[self.choices[choice.name]], self._price_temperature())
            if choice.searched
            else torch.ones(1, device=device)
            for choice in self.space.choices
        }

    def _price_temperature(self) -> float:
        """Gumbel samples follow softmax(logits) at any temperature; a plain softmax mixes by softmax(logits / T)."""
        return float(self.temperature) if self.relaxation.mode == "softmax" else 1.0

    def cost_table(self, name: str) -> Cost:
        """The cost of that name, tabulated once."""
        if name not in self._costs:
            self._costs[name] = build_cost(self.space, name, self.functions)
        return self._costs[name]

    def cost(self, name: str, relative: bool = False) -> Tensor:
        """Expected cost under the choices' probabilities; shape (), differentiable. See `Cost.expectation`."""
        value = self.cost_table(name).expectation({k: p.double() for k, p in self.probabilities().items()})
        return value / reference_cost(self.space, name, functions=self.functions) if relative else value

    def scores(self, method: str = "gradient") -> Scores:
        """Task benefit of every option, price removed, never falling towards the dearer options.

        Args:
            method: `gradient`, the accumulated gradient of the task loss with respect to the sampled weight of each
                option; or `logits`, each logit plus the price that its option paid in training: multiplier times the
                marginal log cost (where the penalty and the task balance, the two differ by a constant).

        Raises:
            ValueError: an unknown method.
        """
        if method not in ("gradient", "logits"):
            raise ValueError(f"scores method is {method!r}; allowed: 'gradient', 'logits'")
        prices = self._prices() if method == "logits" else {}
        values: dict[str, tuple[float, ...]] = {}
        for choice in self.space.choices:
            if not choice.searched:
                values[choice.name] = (0.0,)
                continue
            i = self.choices[choice.name]
            if method == "gradient":
                found = self._task_benefit[i] / self._benefit_weight[i].clamp_min(1e-12)
            else:
                found = self.logits[i].detach() + prices[choice.name]
            values[choice.name] = tuple(found.double().tolist())
        return Scores(values, method).monotone()

    def _prices(self) -> dict[str, Tensor]:
        """Multiplier times the derivative of the log cost with respect to each option's probability, shape (K,)."""
        found = {name: p.detach().double().requires_grad_() for name, p in self.probabilities().items()}
        with torch.enable_grad():
            total = sum(
                (
                    state[0] * torch.log(self.cost_table(name).expectation(found))
                    for name, state in self.multipliers.items()
                ),
                torch.zeros((), dtype=torch.float64, device=self.ranks.device),
            )
            if not total.requires_grad:
                return {name: torch.zeros_like(p) for name, p in found.items()}
            grads = torch.autograd.grad(total, list(found.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if grad is None else grad.to(self.ranks.device)
            for (name, p), grad in zip(found.items(), grads, strict=True)
        }

    def most_probable(self) -> Architecture:
        """The argmax of every choice; it knows of no budget."""
        options = {c.name: c.options[self._discrete(c.name) if c.searched else 0] for c in self.space.choices}
        return self.with_filters(Architecture(self.space, options, functions=self.functions))

    def with_filters(self, architecture: Architecture) -> Architecture:
        """The architecture with the filters to keep filled in by this supernet's ranking, where it has none."""
        if architecture.kept is not None:
            return architecture
        kept = {}
        for index, group in enumerate(self.space.groups):
            offset = self._group_offsets[index]
            ranks = self.ranks[offset : offset + group.size]
            stays = (ranks < architecture[group.choice]).nonzero().flatten().tolist()
            kept[group.choice] = tuple(stays)
        return Architecture(
            architecture.space, architecture.options, kept, architecture.certificate, architecture.functions
        )

    # --- parameters and state

    def choice_parameters(self) -> Iterator[nn.Parameter]:
        """The logits of the choices."""
        return iter(self.logits)

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Weights of the model and step sizes."""
        others = {id(p) for p in (*self.logits, *self._task_benefit, *self._benefit_weight, *self.multipliers.values())}
        return (p for p in self.parameters() if id(p) not in others)

    def step_parameters(self) -> Iterator[nn.Parameter]:
        """The step sizes, a part of `weight_parameters`."""
        for module in self.modules():
            if isinstance(module, MixedActivation | MixedLayer):
                yield from module.steps

    def get_extra_state(self) -> dict[str, Any]:
        """State of the generator that draws the choices."""
        return {"generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the generator."""
        self._generator.set_state(state["generator"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; budget multipliers are created as the state needs them."""
        for key in state_dict:
            if key.startswith("multipliers."):
                self.multiplier(key.removeprefix("multipliers."))
        return super().load_state_dict(state_dict, strict, assign)

    def multiplier(self, name: str) -> nn.Parameter:
        """A budget's controller state, shape (2,): the multiplier and the draw it was last updated at."""
        if name not in self.multipliers:
            state = torch.tensor([0.0, -1.0], dtype=torch.float64, device=self.ranks.device)
            self.multipliers[name] = nn.Parameter(state, requires_grad=False)
        return self.multipliers[name]


def _key(choice: str) -> str:
    return choice.replace(".", "/")


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module at a path, and at every other path where the same module stands."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a second name of a module
            if child is old and parent is not module:
                setattr(parent, name, module)


def freeze(parameters: Iterable[nn.Parameter], frozen: bool) -> None:
    """Switches gradients of these parameters off or on."""
    for parameter in parameters:
        parameter.requires_grad_(not frozen)
