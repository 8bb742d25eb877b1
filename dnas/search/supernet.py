"""The user's model with every choice relaxed inside one forward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.search.choices import RelaxedChoices
from dnas.search.gated import add_gate
from dnas.search.importance import filter_importance
from dnas.search.mixed import Channels, Mixed, MixedActivation, MixedLayer, Sample, read_by_activations
from dnas.search.normalise import MixedNorm, mask_indices
from dnas.search.order import allowed, filter_table, first_ranked, force_first, keeping_order, place, place_filters
from dnas.search.relax import HARD, Relaxation
from dnas.search.scores import Scores, as_scores, no_scores
from dnas.space.architecture import Architecture
from dnas.space.attention import separate_attention
from dnas.space.batch_norm import centred
from dnas.space.choice import Choice, Position, Space
from dnas.space.conventions import LayerCost
from dnas.space.cost import Cost, build_cost, reference_cost
from dnas.space.examples import batch_of
from dnas.space.plain import with_plain_layers
from quant.modules import copied, replace_module
from quant.spec import QuantSpec


class Supernet(nn.Module):
    """The user's model, its layers mixed under a relaxation of a space's choices.

    In training mode every forward pass draws a new sample of the choices. In evaluation mode the network is discrete:
    the architecture given to `evaluate_as`, or else the most probable option of every choice.
    """

    ranks: Tensor
    channel_options: Tensor
    channel_choices: Tensor
    only_option: Tensor

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
        plain = with_plain_layers(separate_attention(model))
        self.model = copied(model) if plain is model else plain
        for module in self.model.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # torch's fused evaluation path would bypass its linear layers
        self.choices = RelaxedChoices(space, self.relaxation, seed)
        self._sample = Sample()
        self._architecture: Architecture | None = None
        self._taken: Mapping[str, Position] | None = None
        self._relaxed = self._sampled = False
        self._costs: dict[str, Cost] = {}
        self._rows: dict[str, Tensor] = {}
        self.multipliers = nn.ParameterDict()
        self._convert()
        self.to(next(self.model.parameters()).device)
        self.rank_filters()
        layers = {layer.name: self.mixed_layer(layer.name) for layer in self.space.layers}
        place_filters(self.space, self.choices, layers, self.model)

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
        self._shrinks = bool(shrinking)
        width = self.choices.exists.shape[1]
        options, rows = filter_table(space, self.choices, width)
        only = F.one_hot(torch.tensor([0]), width).to(self.choices.logits.dtype)  # weights of a choice of one option
        self.register_buffer("only_option", only, persistent=False)
        self.register_buffer("channel_options", options, persistent=False)
        self.register_buffer("channel_choices", rows, persistent=False)
        self.activations = nn.ModuleDict()
        inputs = {fixed.name for fixed in space.fixed}  # an activation in this list is the network's own input
        for layer in space.layers:
            if layer.act_choice.replace(".", "/") not in self.activations:
                choice, found = space.choice(layer.act_choice), space.ranges[layer.act_choice]
                specs = tuple(QuantSpec(bits, found.signed) for bits in choice.act_bits)
                channels = None
                if choice.by_filter:
                    linear = isinstance(self.model.get_submodule(layer.name), nn.Linear)
                    channels = Channels(len(layer.inputs), choice.block, -1 if linear else 1)
                self.activations[choice.name.replace(".", "/")] = MixedActivation(
                    choice.name, specs, found.steps, self._sample, choice.name not in inputs, channels
                )
        for layer in space.layers:
            try:
                module = self.model.get_submodule(layer.name)
            except AttributeError as error:
                raise ValueError(f"the model has no layer {layer.name!r}: the space was built from another") from error
            shape = tuple(getattr(module, name, -1) for name in ("in_channels", "out_channels"))
            if isinstance(module, nn.Linear):
                shape = (module.in_features, module.out_features)
            if shape != (len(layer.inputs), len(layer.outputs)):
                raise ValueError(
                    f"{layer.name!r} is a {type(module).__name__} of {shape} channels, in the space of "
                    f"{(len(layer.inputs), len(layer.outputs))}: the space was built from another model"
                )
            choice = space.choice(layer.weight_choice)
            specs = tuple(QuantSpec(bits, True, space.weight_narrow) for bits in choice.weight_bits)
            block = choice.block if choice.by_filter else 0
            pairs = list(zip(layer.inputs.group, layer.inputs.position, strict=True))
            masked = not layer.depthwise and bool(shrinking & set(layer.inputs.group))
            index = torch.tensor([offsets[g] + p for g, p in pairs]) if masked else None
            activation = self.activations[layer.act_choice.replace(".", "/")]
            kernel = space.choice(layer.kernel_choice) if layer.kernel_choice else None
            replace_module(
                self.model,
                layer.name,
                MixedLayer(module, choice.name, specs, activation, index, self._sample, block, kernel),  # type: ignore[arg-type]
            )

        for name, (through, index) in mask_indices(space, offsets, shrinking).items():
            norm = self.model.get_submodule(name)
            replace_module(self.model, name, MixedNorm(norm, through, index, self._sample))
        for gate in space.gates:
            add_gate(self.model.get_submodule(gate.module), space, gate, self._sample)

    def mixed_layer(self, name: str) -> MixedLayer:
        """The mixed layer that stands at that module path of the user's model."""
        module = self.model.get_submodule(name)
        if not isinstance(module, MixedLayer):
            raise KeyError(f"{name!r} is not a layer of this space")
        return module

    @torch.no_grad()
    def rank_filters(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Orders every group's filters; an option keeps the first ones, equally many of each of the group's blocks.

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
            blocks = value.reshape(group.blocks, -1)
            order = torch.argsort(blocks, dim=1, descending=True, stable=True)
            order = order + torch.arange(0, group.size, blocks.shape[1], device=order.device).unsqueeze(1)
            self.ranks[offset + order.T.flatten()] = torch.arange(group.size, device=order.device)
        force_first(self.space, self.choices, self._group_offsets, self.ranks)

    @torch.no_grad()
    def calibrate(self, *inputs: Any) -> None:
        """Sets every activation step to the least squared error on these inputs, as the float network sees them.

        Batch norms that have seen nothing yet are `centred`.

        Raises:
            ValueError: a tensor is negative that was not when the space was built.
        """
        with centred(self, batch_of(inputs)), self.quantisers_off():
            read = read_by_activations(self.model, lambda: self(*inputs))
        for activation, values in read.items():
            activation.calibrate(values)
            if activation.channels is not None:
                place(self.choices, activation, values, values.square().mean(1).cpu())

    # --- forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The user's model's forward, under a new sample in training mode, discrete in evaluation mode."""
        if self._sample.quantised:
            self._draw()
        if self._compiled and not (self.training and torch.is_grad_enabled() and self._sample.quantised):
            with torch.compiler.set_stance("force_eager"):  # an evaluation is not worth a graph of its own
                return self.model(*inputs, **named)
        return self.model(*inputs, **named)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `nn.Module.compile`, for training: the network is compiled, the drawing of choices stays outside."""
        self.model.compile(*args, **kwargs)

    @property
    def _compiled(self) -> bool:
        return self.model._compiled_call_impl is not None

    def _draw(self) -> None:
        sample, choices = self._sample, self.choices
        sample.hard = not self._relaxed
        if (self.training or self._sampled) and self._taken is None:
            matrix, sample.hard = choices.sample(), self.relaxation.mode in HARD
        elif self._relaxed:
            matrix = choices.chances().detach()
        else:
            matrix = choices.discrete(self._positions())
        if self._compiled and self.training and torch.is_grad_enabled() and not matrix.requires_grad:
            matrix.requires_grad_()  # one compiled graph serves steps that train choices and steps that do not
        sample.weights, sample.mask = choices.parts(matrix), self._mask(matrix)

    def _positions(self) -> list[int]:
        """Of every decision, where the option is that evaluation uses."""
        found = self._taken
        if found is None and self._architecture is not None:
            found = self._architecture.positions()
        if found is None:
            return self.choices.most_probable()
        taken: list[int] = []
        for name in self.choices.index:
            position = found[name]
            taken += [position] if isinstance(position, int) else position
        return taken

    def _mask(self, weights: Tensor) -> Tensor | None:
        """Per channel of every group the weight of the options that keep it: shape (channels,)."""
        if not self._shrinks:
            return None
        rows = torch.cat([weights, self.only_option]).index_select(0, self.channel_choices)
        return (rows * (self.ranks.unsqueeze(1) < self.channel_options)).sum(1)

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
    def evaluate_sampled(self) -> Iterator[None]:
        """Evaluation mode draws a sample in every forward pass, as training does: what a search by single options trains."""
        self._sampled = True
        try:
            yield
        finally:
            self._sampled = False

    @contextmanager
    def taking(self, positions: Mapping[str, Position]) -> Iterator[None]:
        """Every mode uses these positions, for every choice of the space, and the filters' ranking as it is."""
        self._taken = positions
        try:
            yield
        finally:
            self._taken = None

    @contextmanager
    def evaluate_as(self, architecture: Architecture) -> Iterator[None]:
        """Evaluation mode uses this architecture (and the filters it keeps) instead of the most probable options."""
        ranks = self.ranks.clone()
        self._architecture = architecture = self.with_filters(architecture)
        if architecture.kept:
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
            force_first(self.space, self.choices, self._group_offsets, self.ranks)

    # --- what the search asks for

    def anneal(self, fraction: float) -> None:
        """Sets the temperature for this fraction (0 to 1) of the search."""
        self.choices.temperature.fill_(self.relaxation.temperature(fraction))

    @property
    def temperature(self) -> Tensor:
        """Temperature of the relaxation; shape ()."""
        return self.choices.temperature

    @property
    def draws(self) -> Tensor:
        """Samples drawn so far; shape ()."""
        return self.choices.draws

    def logits(self) -> dict[str, Tensor]:
        """The logits of every searched choice, shape (K,), or (decisions, K) where every filter has its own.

        What is changed in place is changed in the supernet.
        """
        return self.choices.logit_rows()

    def probabilities(self) -> dict[str, Tensor]:
        """For every choice the probability of each option, shape (K,) or (decisions, K), differentiable in the logits."""
        return self.choices.probabilities()

    def cost_table(self, name: str) -> Cost:
        """The cost of that name, tabulated once."""
        if name not in self._costs:
            self._costs[name] = build_cost(self.space, name, self.functions)
        return self._costs[name]

    def cost(self, name: str, relative: bool = False) -> Tensor:
        """Expected cost under the choices' probabilities; shape (), differentiable. See `Cost.expectation`."""
        value = self._expectation(name, self.choices.chances())
        return value / reference_cost(self.space, name, functions=self.functions) if relative else value

    def _expectation(self, name: str, chances: Tensor) -> Tensor:
        cost = self.cost_table(name)
        if not cost.choices:
            return cost.expected_rows(chances).amax()
        if name not in self._rows:
            index, last = self.choices.index, len(self.choices.sizes)
            rows: list[int] = []
            for choice, decisions in cost.decisions.items():
                count = decisions.stop - decisions.start
                first = index[choice].start if choice in index else None
                rows += [last] * count if first is None else range(first, first + count)
            self._rows[name] = torch.tensor(rows, device=chances.device)
        probabilities = torch.cat([chances, self.only_option.detach()]).double()
        return cost.expectation(probabilities.index_select(0, self._rows[name].to(chances.device)))

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
        choices = self.choices
        if method == "gradient":
            found = choices.benefits()
        else:
            own = choices.logits if choices.composition is None else torch.log(choices.chances().clamp_min(1e-6))
            found = choices.rows(own.detach() + self._prices())
        values = {choice.name: no_scores(choice) for choice in self.space.choices}
        values |= {name: as_scores(value.double().tolist()) for name, value in found.items()}
        return Scores(values, method).monotone(self.space)

    def _prices(self) -> Tensor:
        """Multiplier times the derivative of the log cost with respect to each option's probability, shape (D, K)."""
        chances = self.choices.chances().detach().requires_grad_()
        with torch.enable_grad():
            total = chances.sum().double() * 0.0
            for name, state in self.multipliers.items():
                total = total + state[0] * torch.log(self._expectation(name, chances))
            (prices,) = torch.autograd.grad(total, chances)
        return prices

    def most_probable(self) -> Architecture:
        """The argmax of every choice; it knows of no budget."""
        taken = self.choices.most_probable()
        positions: dict[str, Position] = {}
        for choice in self.space.choices:
            rows = self.choices.index.get(choice.name, slice(0, 0))
            found = tuple(taken[rows]) or (0,) * choice.count
            positions[choice.name] = found if choice.by_filter else found[0]
            if choice.by_filter and choice.kind == "filters":
                size = next(group.size for group in self.space.groups if group.choice == choice.name)
                positions[choice.name] = allowed(choice, found, self.keeping_order(choice), size)
        return self.with_filters(Architecture.at(self.space, positions, functions=self.functions))

    def keeping_order(self, choice: Choice) -> list[int]:
        """The decisions of a group whose filters decide: the most probable to stay first, of equal ones by rank."""
        index = next(i for i, group in enumerate(self.space.groups) if group.choice == choice.name)
        ranks = self.ranks[self._group_offsets[index] :][: self.space.groups[index].size]
        chances = self.choices.rows(self.choices.chances().detach())[choice.name][:, 1]
        return keeping_order(choice, chances, ranks)

    def with_filters(self, architecture: Architecture) -> Architecture:
        """The architecture with the filters to keep filled in by this supernet's ranking, where it has none."""
        kept = dict(architecture.kept or {})
        for index, group in enumerate(self.space.groups):
            if group.choice not in kept:
                offset = self._group_offsets[index]
                ranks = self.ranks[offset : offset + group.size]
                kept[group.choice] = first_ranked(self.space.choice(group.choice), architecture[group.choice], ranks)
        return replace(architecture, kept=kept)

    # --- parameters and state

    def choice_parameters(self) -> Iterator[nn.Parameter]:
        """The logits of the choices."""
        yield self.choices.logits

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Weights of the model and step sizes."""
        others = {id(p) for p in (*self.choices.parameters(), *self.multipliers.values())}
        return (p for p in self.parameters() if id(p) not in others)

    def step_parameters(self) -> Iterator[nn.Parameter]:
        """The step sizes, a part of `weight_parameters`."""
        found = (module.steps for module in self.modules() if isinstance(module, Mixed))
        return (steps for steps in found if isinstance(steps, nn.Parameter))

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
