"""One cost formula for the relaxed network, the chosen architecture and the exported graph.

Every cost is tabulated once: for each layer a table over the joint options of the choices that enter it. A table's
expectation under independent choices is exact, whatever the formula and however often a choice enters it (a coupled
group on both sides of a layer gives E[c^2], not E[c]^2), and differentiable. The same tables, read at one option per
choice, are the integer cost, and are the rows of the selector's program. Layers about which single filters decide have
no such tables: see `dnas.space.filter_cost`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnas.space.choice import FLOAT_BITS, INPUT_BITS, ActTensor, ChannelMap, Fixed, Layer, Position, Space
from dnas.space.conventions import LAYER_COSTS, LayerCost
from dnas.space.energy import ENERGY
from dnas.space.filter_cost import (
    FilterTerms,
    PlacedTerms,
    by_filter,
    certain,
    layer_by_filter,
    layer_terms,
    tensor_side,
    tensor_terms,
    unit_cost,
)
from dnas.space.stored import counts, deciding, may_count, width

MAX_TABLE = 1_000_000

TENSOR_COSTS = ("activation_traffic_bits", "peak_activation_bits")
COSTS = (*LAYER_COSTS, *TENSOR_COSTS)
_ADDITIVE = frozenset({"bops", "macs", "weight_bits", ENERGY})
"""Costs that are a sum over input channels: a layer that reads several groups needs no joint table of them."""


@dataclass(frozen=True)
class Factor:
    """A table over the joint options of distinct choices; shape: one axis per choice, in order."""

    choices: tuple[str, ...]
    table: NDArray[np.float64]

    def at(self, position: Mapping[str, Position]) -> float:
        """The entry at one option (by position) per choice."""
        return float(self.table[tuple(position[name] for name in self.choices)])


@dataclass(frozen=True)
class _Large(Factor):
    """A table too large to hold: it is read entry by entry; what needs all of it (an expectation, selection) fails."""

    value: Callable[[Mapping[str, Position]], float]
    what: str

    def at(self, position: Mapping[str, Position]) -> float:
        """The entry at one option (by position) per choice."""
        return self.value(position)

    def __getattribute__(self, name: str) -> Any:
        if name == "table":
            raise ValueError(
                f"{self.what} needs a table of more than {MAX_TABLE} entries over {list(self.choices)}; use a cost that "
                "adds up over input channels (bops, macs, weight_bits) or exclude some of these groups (space.exclude)"
            )
        return super().__getattribute__(name)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Factors of equally many choices together, so that their expectation costs as many operations as that of one.

    tables: shape (n, K, ..., K), 0 where an axis has fewer options. choices: for every axis the number of its choice,
    shape (n,) each. rows: which row a factor adds to, shape (n,).
    """

    tables: Tensor
    choices: tuple[Tensor, ...]
    rows: Tensor

    @staticmethod
    def of(pairs: Sequence[tuple[Factor, int]], number: Mapping[str, int]) -> "_Batch":
        """Pads and stacks (factor, row) pairs."""
        axes = len(pairs[0][0].choices)
        shape = [max(factor.table.shape[axis] for factor, _ in pairs) for axis in range(axes)]
        tables = np.zeros((len(pairs), *shape))
        for i, (factor, _) in enumerate(pairs):
            tables[i][tuple(slice(size) for size in factor.table.shape)] = factor.table
        choices = [torch.tensor([number[factor.choices[axis]] for factor, _ in pairs]) for axis in range(axes)]
        return _Batch(torch.from_numpy(tables), tuple(choices), torch.tensor([row for _, row in pairs]))

    def to(self, like: Tensor) -> "_Batch":
        """The same with the device and the floating-point type of a tensor."""
        device = like.device
        return _Batch(self.tables.to(like), tuple(c.to(device) for c in self.choices), self.rows.to(device))

    def expectation(self, probabilities: Tensor) -> Tensor:
        """Shape (n,), from probabilities of shape (choices, K)."""
        value = self.tables
        for index in reversed(self.choices):
            found = probabilities.index_select(0, index)[:, : value.shape[-1]]
            value = (value * found.reshape(len(index), *(1,) * (value.dim() - 2), -1)).sum(-1)
        return value


@dataclass(frozen=True)
class Cost:
    """A cost of a space: the largest of its rows, each a sum of factors; most costs have one row.

    `rows` hold the factors that depend on something; `constants` what each row adds on top; `filters` the terms that
    single filters enter.
    """

    name: str
    rows: tuple[tuple[Factor, ...], ...]
    constants: tuple[float, ...]
    filters: FilterTerms | None = None

    def at(self, position: Mapping[str, Position]) -> float:
        """Cost at one option (by position) per choice: exact, an integer wherever the formula is one."""
        values = [
            constant + sum(factor.at(position) for factor in row)
            for row, constant in zip(self.rows, self.constants, strict=True)
        ]
        if self._placed is None:
            return max(values)
        found = self._placed.expectation(certain(self.choices, position))
        value = max(a + b for a, b in zip(values, found.tolist(), strict=True))
        return float(round(value)) if abs(value - round(value)) < 1e-9 * max(value, 1.0) else value

    def bound(self, take: Callable[..., float]) -> float:
        """The sum of the smallest (take=min) or largest (max) entries of all tables: no architecture is beyond it."""
        rows = zip(self.rows, self.constants, strict=True)
        return max(constant + sum(take(factor.table.ravel().tolist()) for factor in row) for row, constant in rows)

    def expectation(self, probabilities: Tensor) -> Tensor:
        """Exact expectation for a cost of one row; for a maximum, `smooth_maximum` of the rows' exact expectations.

        Args:
            probabilities: of `choices` in their order, one row per decision, shape (decisions, K), padded by 0.

        Returns:
            shape (), differentiable.
        """
        values = self.expected_rows(probabilities)
        return values[0] if len(values) == 1 else smooth_maximum(values)

    def expected_rows(self, probabilities: Tensor) -> Tensor:
        """The exact expectation of every row, shape (rows,); probabilities as for `expectation`."""
        values = torch.tensor(self.constants, dtype=probabilities.dtype, device=probabilities.device)
        for batch in self._batches:
            placed = batch.to(probabilities)
            values = values.index_add(0, placed.rows, placed.expectation(probabilities))
        if self._placed is not None:
            values = values + self._placed.expectation(probabilities.double()).to(values.dtype)
        return values

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The choices that enter."""
        names = [name for row in self.rows for factor in row for name in factor.choices]
        return tuple(dict.fromkeys([*names, *(self.filters.choices if self.filters else ())]))

    @cached_property
    def decisions(self) -> dict[str, slice]:
        """For every choice that enters the rows of its decisions."""
        found, start = {}, 0
        for name in self.choices:
            count = self.filters.choices.get(name, 1) if self.filters else 1
            found[name] = slice(start, start + count)
            start += count
        return found

    @cached_property
    def _placed(self) -> PlacedTerms | None:
        if self.filters is None:
            return None
        first = {name: rows.start for name, rows in self.decisions.items()}
        last = max((rows.stop for rows in self.decisions.values()), default=0)
        return self.filters.placed(first, last)

    @cached_property
    def _batches(self) -> tuple[_Batch, ...]:
        """All factors, those with equally many choices together."""
        number = {name: rows.start for name, rows in self.decisions.items()}
        found: dict[tuple[int, tuple[int, ...]], list[tuple[Factor, int]]] = {}
        for row, factors in enumerate(self.rows):
            for factor in factors:
                shape = factor.table.shape
                widest = max(shape, default=1)
                alone = widest ** len(shape) > 100 * factor.table.size  # padding must not blow a table up
                found.setdefault((len(shape), shape if alone else ()), []).append((factor, row))
        return tuple(_Batch.of(pairs, number) for pairs in found.values())


def smooth_maximum(values: Tensor, sharpness: float = 50.0) -> Tensor:
    """An upper bound of max(values) that is differentiable everywhere: (m / t) log sum exp(t v / m), m = max.

    It exceeds the maximum by at most m log(n) / t. Used as the relaxation of a maximum over layers, whose exact
    expectation has no closed form: it bounds the largest expected row from above, which is itself no more than the
    expected maximum. Selection uses the exact value.
    """
    largest = values.detach().amax().clamp_min(1e-30)
    return largest / sharpness * torch.logsumexp(values / largest * sharpness, 0)


def _kept(space: Space, group: int, count: int, position: Mapping[str, Position]) -> int:
    choice, size = space.choice(space.groups[group].choice), space.groups[group].size
    found = position[choice.name]
    if isinstance(found, int):
        return count * choice.options[found] // size
    return count * sum(found[i // choice.block] for i in range(size)) // size


def kept_channels(space: Space, side: ChannelMap, position: Mapping[str, Position]) -> int:
    """How many channels of a layer's side stay at one option (by position) per choice."""
    return sum(_kept(space, group, count, position) for group, count in side.counts.items())


def _tabulate(
    space: Space, names: Sequence[str], value: Callable[[Mapping[str, Position]], float], what: str
) -> Factor:
    names = tuple(dict.fromkeys(names))
    shape = tuple(len(space.choice(name).options) for name in names)
    if prod(shape) > MAX_TABLE:
        return _Large(names, np.empty(0), value, what)
    table = np.empty(shape, dtype=np.float64)
    for index in product(*map(range, shape)):
        table[index] = value(dict(zip(names, index, strict=True)))
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(f"{what}: a cost must be finite and not negative; found {table.min()} to {table.max()}")
    return Factor(names, table)


def with_kernel(space: Space, layer: Layer, position: Mapping[str, Position]) -> Layer:
    """The layer with the kernel of the option that its choice has."""
    if layer.kernel_choice is None:
        return layer
    side = space.choice(layer.kernel_choice).options[position[layer.kernel_choice]]  # type: ignore[index]
    return replace(layer, kernel=side * side)


def _names(space: Space, groups: Sequence[int]) -> list[str]:
    return [space.groups[group].choice for group in groups]


def _layer_factors(space: Space, layer: Layer, name: str, function: LayerCost) -> list[Factor]:
    weight, act = space.choice(layer.weight_choice), space.choice(layer.act_choice)
    gates = space.gates_of(layer.name)
    beside = getattr(function, "beside", {}).get(layer.name)
    also = [name for name in (layer.kernel_choice, beside, *(gate.choice for gate in gates)) if name]
    counts = layer.inputs.counts
    parts = [[group] for group in counts] if name in _ADDITIVE and len(counts) > 1 else [list(counts)]

    def factor(part: list[int]) -> Factor:
        def value(position: Mapping[str, Position]) -> float:
            if not all(space.is_open(gate, position) for gate in gates):
                return 0.0
            c_in = sum(_kept(space, group, counts[group], position) for group in part)
            c_out = c_in if layer.depthwise else kept_channels(space, layer.outputs, position)
            w, a = weight.weight_bits[position[weight.name]], act.act_bits[position[act.name]]  # type: ignore[index]
            own: Any = function
            if beside:
                own = own.at(space.choice(beside).options[position[beside]])  # type: ignore[index]
            return float(own(with_kernel(space, layer, position), c_in, c_out, w, a))

        outputs = [] if layer.depthwise else list(layer.outputs.counts)  # a depthwise layer's are its inputs
        names = [*_names(space, part), *_names(space, outputs), weight.name, act.name, *also]
        return _tabulate(space, names, value, f"{name} of layer {layer.name}")

    return [factor(part) for part in parts]


def _tensor_factors(space: Space, row: int | None, unit: float = 1) -> list[Factor]:
    factors = []
    for tensor in space.tensors:
        if not may_count(space, tensor, row) or by_filter(space, tensor_side(space, tensor), tensor.choice):
            continue
        act = space.choice(tensor.choice)
        gates = deciding(space, tensor, row)
        for group, count in tensor_side(space, tensor).counts.items():

            def value(position: Mapping[str, Position], group: int = group, count: int = count) -> float:
                if gates and not counts(space, tensor, row, position):  # noqa: B023
                    return 0.0
                channels = _kept(space, group, count, position)
                return unit * tensor.elements * channels * width(space, tensor, position)  # noqa: B023

            factors.append(
                _tabulate(space, [*_names(space, [group]), act.name, *gates], value, f"tensor {tensor.choice}")
            )
    return factors


def build_cost(space: Space, name: str, functions: Mapping[str, LayerCost] | None = None) -> Cost:
    """Tabulates one cost over a space.

    Args:
        space: the space.
        name: one of `COSTS`, or a key of `functions`.
        functions: the user's own costs per layer.

    Raises:
        ValueError: an unknown name, or a function that returned a negative or infinite value.
    """
    functions = functions or {}
    if name not in functions and name in COSTS:
        if name not in space.tables:
            space.tables[name] = _tabulate_cost(space, name, LAYER_COSTS.get(name))
        return space.tables[name]
    if name not in functions:
        raise ValueError(f"unknown cost {name!r}; allowed: {sorted({*COSTS, *functions})}")
    return _tabulate_cost(space, name, functions[name])


def adds_up(space: Space, name: str) -> bool:
    """Whether a cost is defined on a space: those that do not add up over channels need one without choices by filter."""
    return name in _ADDITIVE or name in TENSOR_COSTS or not any(layer_by_filter(space, layer) for layer in space.layers)


def _tabulate_cost(space: Space, name: str, function: LayerCost | None) -> Cost:
    if function is None:
        rows = _rows(space, name)
        factors = [tuple(_tensor_factors(space, row)) for row in rows]
        terms = tensor_terms(space, tensors_by_row(space, name))
        return Cost(name, tuple(factors), (0.0,) * len(rows), terms)
    whole = [layer for layer in space.layers if not layer_by_filter(space, layer)]
    found = tuple(factor for layer in whole for factor in _layer_factors(space, layer, name, function))
    always = sum(fixed.macs for fixed in space.fixed if not space.gates_of(_module_of(fixed)))
    gated = [fixed for fixed in space.fixed if space.gates_of(_module_of(fixed))]
    found += tuple(_gated_operations(space, fixed, name, function) for fixed in gated)
    if unit := getattr(function, "stored_bit", 0):
        if tensor_terms(space, tensors_by_row(space, TENSOR_COSTS[0])) is not None:
            raise ValueError(
                f"{name} counts stored activations, which has no table where single filters go or have their own act_bits; "
                "use bops, macs, weight_bits or the costs of activation tensors, or granularity and act_granularity=layer"
            )
        found += tuple(_tensor_factors(space, None, unit))
    constants = (_float_operations(always, name, FLOAT_BITS, function),)
    return Cost(name, (found,), constants, layer_terms(space, name, function))


def _module_of(fixed: Fixed) -> str:
    """The module path in the name of an operation outside of the space's layers."""
    return fixed.name.rpartition(":")[0] if fixed.macs else ""


def operations_cost(space: Space, name: str, position: Mapping[str, Position]) -> float:
    """What the multiplications outside of the space's layers cost at one option (by position) per choice."""
    count = sum(fixed.macs for fixed in space.fixed if space.runs(_module_of(fixed), position))
    return _float_operations(count, name, FLOAT_BITS, LAYER_COSTS.get(name))


def _gated_operations(space: Space, fixed: Fixed, name: str, function: LayerCost) -> Factor:
    """Multiplications outside of the space's layers that run only where gates are open."""
    path, count = _module_of(fixed), _float_operations(fixed.macs, name, FLOAT_BITS, function)
    choices = [gate.choice for gate in space.gates_of(path)]
    return _tabulate(space, choices, lambda position: count * space.runs(path, position), fixed.name)


def _rows(space: Space, name: str) -> list[int | None]:
    if name == "activation_traffic_bits":
        return [None]
    return list(range(1 + max((tensor.last for tensor in space.tensors), default=0)))


def _float_operations(count: int, name: str, bits: int, function: LayerCost | None) -> float:
    """What multiplications outside of the space's layers cost, at the width they run at; nothing where a cost has no `mac`."""
    if name == "macs":
        return count
    if mac := getattr(function, "mac", None):
        return float(count * mac(bits, bits)) if count else 0
    return count * bits * bits if name.startswith("bops") else 0


def unit_of(
    space: Space, layer: Layer, name: str, functions: Mapping[str, LayerCost] | None = None
) -> NDArray[np.float64]:
    """What one pair of an input channel and a filter costs, see `dnas.space.filter_cost.unit_cost`; shape (W, A)."""
    function = (functions or {}).get(name) or LAYER_COSTS[name]
    return unit_cost(layer, name, function, space.choice(layer.weight_choice), space.choice(layer.act_choice))


def layer_cost(
    space: Space,
    layer: Layer,
    name: str,
    position: Mapping[str, Position],
    functions: Mapping[str, LayerCost] | None = None,
) -> float:
    """The cost of one layer at one option (by position) per choice: one of a cost of layers, not of tensors."""
    alone = Space(space.choices, space.groups, (layer,), (), {}, gates=space.gates)
    return build_cost(alone, name, functions).at(position)


def tensors_by_row(space: Space, name: str) -> list[list[ActTensor]]:
    """Of a cost of stored tensors those that count in each of its rows; empty for costs of layers."""
    if name not in TENSOR_COSTS:
        return []
    return [[tensor for tensor in space.tensors if may_count(space, tensor, row)] for row in _rows(space, name)]


def reference_cost(
    space: Space, name: str, bits: int = INPUT_BITS, functions: Mapping[str, LayerCost] | None = None
) -> float:
    """Cost of the same network at full width with every weight and every activation, the input included, at `bits`.

    Relative budgets are fractions of this, at 8 bits.
    """
    if name in TENSOR_COSTS:
        sizes = [(tensor, tensor.elements * len(tensor_side(space, tensor))) for tensor in space.tensors]
        full = {choice.name: len(choice.options) - 1 for choice in space.choices}

        def held(tensor: ActTensor, row: int | None) -> bool:
            return may_count(space, tensor, row) and (not space.gates or counts(space, tensor, row, full))

        return float(max(sum(size * bits for tensor, size in sizes if held(tensor, row)) for row in _rows(space, name)))
    function = (functions or {}).get(name) or LAYER_COSTS[name]
    total = sum(function(layer, len(layer.inputs), len(layer.outputs), bits, bits) for layer in space.layers)
    if unit := getattr(function, "stored_bit", 0):
        total += unit * reference_cost(space, TENSOR_COSTS[0], bits)
    return float(total + _float_operations(sum(fixed.macs for fixed in space.fixed), name, bits, function))
