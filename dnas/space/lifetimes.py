"""When tensors are held: what activation traffic and peak activation memory add up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dnas.space.choice import ActTensor, Gate, Layer
from dnas.space.examples import share
from dnas.space.trace import Trace


def lifetimes(
    trace: Trace,
    act_of: Mapping[str, str],
    layers: Sequence[Layer],
    sizes: Sequence[tuple[int, int]],
    gates: Sequence[Gate],
    batch: int,
) -> list[ActTensor]:
    """From when to when every quantised tensor is held, and every other one that waits across a layer for its last reader.

    The others are outputs of layers and what is made of these or of quantised tensors, e.g. the sum that a residual stream
    is, or a pooled shortcut. Each has the width of the first quantised tensor that its last reader makes of it, also where
    that one is not stored: channel by channel where channels decide, see `dnas.space.filter_cost.tensor_parts`.

    Args:
        trace: one forward pass.
        act_of: the activation choice of every layer.
        layers: in the order in which they run.
        sizes: elements that every call of the trace reads and makes per example.
        gates: modules that may be left out.
        batch: examples of the trace.
    """
    held = _Held.of(trace)
    passed = {trace.modules[gate.module][1]: number for number, gate in enumerate(gates)}
    quantised = {call.input_storage: act_of[call.layer] for call in trace.calls}
    by_name = {layer.name: layer for layer in layers}
    tensors: list[ActTensor] = []
    for storage in quantised:
        number = next(i for i, c in enumerate(trace.calls) if c.input_storage == storage)
        call = trace.calls[number]
        elements = sizes[number][0] // max(len(by_name[call.layer].inputs), 1)
        first = 0 if storage in trace.input_storages else held.made.get(storage, 0)
        readers = tuple(dict.fromkeys(c.layer for c in trace.calls if gates and c.input_storage == storage))
        earlier: list[tuple[int, int]] = []
        source = storage
        while source in passed:
            number = passed[source]
            source = trace.modules[gates[number].module][0]
            earlier.append((number, 0 if source in trace.input_storages else held.made.get(source, 0)))
        last = max(held.used[storage], first)
        tensors.append(
            ActTensor(quantised[storage], call.layer, "input", elements, first, last, readers, tuple(earlier))
        )
    return tensors + _waiting(trace, held, quantised, by_name, sizes, gates, batch)


@dataclass
class _Held:
    """By storage the row (the call before) in which it is made and last read, and the operations that do so."""

    made: dict[int, int] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    maker: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(trace: Trace) -> "_Held":
        """Of all storages of a trace."""
        found = _Held()
        for index, operation in enumerate(trace.operations):
            row = max(operation.calls_before - 1, 0)
            for storage in operation.writes:
                found.made.setdefault(storage, row)
                found.maker.setdefault(storage, index)
            for storage in operation.reads:
                found.used[storage] = row
                found.last[storage] = index
        return found


@dataclass(frozen=True)
class _Origin:
    """What a tensor is made of: the output (input) of a layer, which says whose channels it has; since which operation."""

    layer: str
    side: str
    order: int


def _waiting(
    trace: Trace,
    held: _Held,
    quantised: Mapping[int, str],
    layers: Mapping[str, Layer],
    sizes: Sequence[tuple[int, int]],
    gates: Sequence[Gate],
    batch: int,
) -> list[ActTensor]:
    """Tensors that are not quantised and wait across a layer; pieces of one value that follow each other are one."""
    outputs = {call.output_storage: number for number, call in enumerate(trace.calls)}
    found: dict[_Origin, list[ActTensor]] = {}
    for storage, origin in _origins(trace, quantised, outputs).items():
        if storage in quantised or storage not in held.used:
            continue
        number = outputs.get(storage)
        becomes = _becomes(trace, storage, held.last[storage], quantised)
        if becomes is None:
            continue
        layer = layers[origin.layer]
        channels = max(len(layer.outputs if origin.side == "output" else layer.inputs), 1)
        if number is not None:
            first, elements, reader = number, sizes[number][1] // channels, origin.layer
            last = max(held.used[storage], number) if held.made[becomes] > number else -1
        else:
            operation = trace.operations[held.maker[storage]]
            first, last, reader = held.made[storage] + 1, held.used[storage], operation.module
            elements = -(-share(operation.shapes[storage], batch) // channels)
        if last < first:
            continue
        readers = (reader,) if gates else ()
        side = "output" if origin.side == "output" else "aside"
        new = ActTensor(quantised[becomes], origin.layer, side, elements, first, last, readers)
        pieces = found.setdefault(origin, [])
        for index, piece in enumerate(pieces):
            alike = (piece.choice, piece.elements) == (new.choice, new.elements)
            if alike and piece.last + 1 == new.first and _behind(gates, piece.readers) == _behind(gates, readers):
                pieces[index] = replace(piece, last=new.last)
                break
        else:
            pieces.append(new)
    return [piece for origin in sorted(found, key=lambda o: o.order) for piece in found[origin]]


def _behind(gates: Sequence[Gate], readers: Sequence[str]) -> list[Gate]:
    return [gate for gate in gates for reader in readers if gate.encloses(reader)]


def _origins(trace: Trace, quantised: Mapping[int, str], outputs: Mapping[int, int]) -> dict[int, _Origin]:
    """Where every storage comes from; of a sum of several the latest."""
    readers = {call.input_storage: call.layer for call in reversed(trace.calls)}
    found = {s: _Origin(readers[s], "input", -1) for s in trace.input_storages if s in quantised}
    within = {}
    for call in trace.calls:
        within[call.output_storage] = call.start
    for index, operation in enumerate(trace.operations):
        latest = max((found[s] for s in operation.reads if s in found), key=lambda o: o.order, default=None)
        for storage in operation.writes:
            if storage in outputs:
                if index >= within[storage] and storage not in found:
                    found[storage] = _Origin(trace.calls[outputs[storage]].layer, "output", index)
            elif storage in quantised:
                found.setdefault(storage, _Origin(readers[storage], "input", index))
            elif latest is not None:
                found[storage] = latest
    return found


def _becomes(trace: Trace, storage: int, last: int, quantised: Mapping[int, str]) -> int | None:
    """The first quantised tensor that an operation, the last reader of a storage, makes of it."""
    reached = {storage}
    for operation in trace.operations[last:]:
        if operation.reads & reached:
            found = operation.writes & set(quantised) - {storage}
            if found:
                return min(found)
            reached |= operation.writes
    return None
