"""When quantised tensors are held: what activation traffic and peak activation memory add up."""

from collections.abc import Mapping, Sequence

from dnas.space.choice import ActTensor, Gate, Layer
from dnas.space.trace import Call, Trace


def lifetimes(
    trace: Trace,
    act_of: Mapping[str, str],
    layers: Sequence[Layer],
    sizes: Sequence[tuple[int, int]],
    gates: Sequence[Gate],
) -> list[ActTensor]:
    """From when to when every quantised tensor, and every layer output that waits to become one, is held.

    A layer output that waits has the width of the first tensor that it becomes part of, also where that one is not stored:
    channel by channel where channels decide, see `dnas.space.filter_cost.tensor_parts`.

    Args:
        trace: one forward pass.
        act_of: the activation choice of every layer.
        layers: in the order in which they run.
        sizes: elements that every call of the trace reads and makes per example.
        gates: modules that may be left out.
    """
    made: dict[int, int] = {}
    used: dict[int, int] = {}
    for operation in trace.operations:
        for storage in operation.writes:
            made.setdefault(storage, max(operation.calls_before - 1, 0))
        for storage in operation.reads:
            used[storage] = max(operation.calls_before - 1, 0)
    passed = {trace.modules[gate.module][1]: number for number, gate in enumerate(gates)}
    quantised = {call.input_storage: act_of[call.layer] for call in trace.calls}
    by_name = {layer.name: layer for layer in layers}
    tensors: list[ActTensor] = []
    for storage in quantised:
        number = next(i for i, c in enumerate(trace.calls) if c.input_storage == storage)
        call = trace.calls[number]
        elements = sizes[number][0] // max(len(by_name[call.layer].inputs), 1)
        first = 0 if storage in trace.input_storages else made.get(storage, 0)
        readers = tuple(dict.fromkeys(c.layer for c in trace.calls if gates and c.input_storage == storage))
        earlier: list[tuple[int, int]] = []
        source = storage
        while source in passed:
            number = passed[source]
            source = trace.modules[gates[number].module][0]
            earlier.append((number, 0 if source in trace.input_storages else made.get(source, 0)))
        last = max(used[storage], first)
        tensors.append(
            ActTensor(quantised[storage], call.layer, "input", elements, first, last, readers, tuple(earlier))
        )
    for order, call in enumerate(trace.calls):
        becomes = _becomes(trace, call, quantised)
        if becomes is None or becomes == call.output_storage or made[becomes] <= order:
            continue
        elements = sizes[order][1] // max(len(by_name[call.layer].outputs), 1)
        tensors.append(
            ActTensor(
                quantised[becomes], call.layer, "output", elements, order, made[becomes], (call.layer,) if gates else ()
            )
        )
    return tensors


def _becomes(trace: Trace, call: Call, quantised: dict[int, str]) -> int | None:
    """The first quantised tensor that a call's output flows into."""
    reached = {call.output_storage}
    if call.output_storage in quantised:
        return call.output_storage
    for operation in trace.operations[call.start :]:
        if operation.reads & reached:
            found = operation.writes & set(quantised)
            if found - {call.input_storage}:
                return min(found - {call.input_storage})
            reached |= operation.writes
    return None
