"""What the example inputs are good for: a few show the structure, one the sizes, and all of them the activations.

A trace keeps every tensor of a forward pass. One over all example inputs would need hundreds of megabytes per image where
images are large.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dnas.space.batch_norm import centred
from dnas.space.trace import Call, Trace, evaluating, is_searchable, tensors_of, trace_model, unfused
from quant.quantizer import drawn_positions

FEW = 2
"""Examples that show the structure; of one alone a dimension of the batch looks like any dimension of one index."""


def batch_of(inputs: tuple[Any, ...]) -> int:
    """Examples in the inputs: the first dimension of the first tensor that has one."""
    return next((t.shape[0] for t in tensors_of(inputs) if t.dim() > 0), 1)


def first_examples(inputs: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The first examples of a batch; tensors that are not as long as the batch stay whole."""
    batch = batch_of(inputs)

    def first(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
        return leaf[:count] if batched else leaf

    found: tuple[Any, ...] = tree_map(first, inputs)
    return found


def trace_few(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Trace, tuple[Any, ...]]:
    """A trace of a few of the example inputs, and these; of all where the model needs them or runs other layers on them.

    Raises:
        ValueError: the model does not accept the inputs.
    """
    few = first_examples(inputs, FEW)
    if batch_of(inputs) <= FEW:
        return trace_model(model, inputs), inputs
    try:
        trace = trace_model(model, few)
    except ValueError:  # a model may be written for one size of its batch
        return trace_model(model, inputs), inputs
    layers, outputs = _run(model, inputs, set(trace.unusual))
    alike = layers == [call.layer for call in trace.calls] and _made(outputs, inputs) == _made(trace.outputs, few)
    return (trace, few) if alike else (trace_model(model, inputs), inputs)


def sizes_of_calls(trace: Trace, batch: int) -> list[tuple[int, int]]:
    """Elements that every call of a trace of so many examples reads and makes per example; see `trace_one`."""
    return [(share(call.input_shape, batch), share(call.output_shape, batch)) for call in trace.calls]


def multiplications(trace: Trace, batch: int) -> dict[tuple[str, str], int]:
    """Per example, of every operation outside of the layers, by its module and its name; see `trace_one`."""
    found: dict[tuple[str, str], int] = {}
    for operation in trace.operations:
        if operation.macs:
            key = (operation.module, operation.name)
            found[key] = found.get(key, 0) + operation.macs
    return {key: macs // max(batch, 1) for key, macs in found.items()}


def trace_one(model: nn.Module, few: tuple[Any, ...], trace: Trace) -> tuple[Trace, int]:
    """A trace of one example, and 1: what is computed from parameters or tables alone does not grow with the batch.

    Where the model does not run on one as it does on the examples of the trace, that trace, and how many these are.
    """
    single = first_examples(few, 1)
    try:
        one = trace_model(model, single)
    except ValueError:
        return trace, batch_of(few)
    alike = [c.layer for c in one.calls] == [c.layer for c in trace.calls]
    alike = alike and _made(one.outputs, single) == _made(trace.outputs, few)
    return (one, 1) if alike else (trace, batch_of(few))


def _made(outputs: Sequence[Tensor], inputs: tuple[Any, ...]) -> list[list[int]]:
    """Shapes of outputs, with -1 for as many as there are examples."""
    batch = batch_of(inputs)
    return [[-1 if i == 0 and size == batch else size for i, size in enumerate(x.shape)] for x in outputs]


def share(shape: torch.Size, batch: int) -> int:
    """Elements of one example; all of them where the first dimension is not the batch's."""
    return shape.numel() // batch if batch and shape and shape[0] % batch == 0 else shape.numel()


def input_samples(
    model: nn.Module, inputs: tuple[Any, ...], trace: Trace, shared: Mapping[str, Sequence[Call]]
) -> dict[str, tuple[bool, Tensor]]:
    """Of every activation tensor whether its grid is signed, and entries drawn from all that it holds on the example inputs.

    It is where there are negative entries, or nothing but zeros, which tell nothing. Batch norms that have seen nothing yet
    are `centred`.

    Args:
        model: left as it was.
        inputs: all example inputs.
        trace: of a few of them.
        shared: the calls of the trace that read each tensor.

    Returns:
        by the name in `shared`; entries as `quant.quantizer.drawn` takes them from these calls' inputs one after the other.
    """
    order = {id(call): number for number, call in enumerate(trace.calls)}
    numbers = {act: [order[id(call)] for call in calls] for act, calls in shared.items()}
    sizes: list[int] = []
    negative: list[bool] = []
    positive: list[bool] = []

    def measure(number: int, x: Tensor) -> None:
        sizes.append(x.numel())
        negative.append(bool((x < 0).any()))
        positive.append(bool((x > 0).any()))

    with centred(model, batch_of(inputs)):
        _pass(model, inputs, trace, measure)
    wanted: dict[
        int, list[tuple[str, Tensor, Tensor]]
    ] = {}  # by call: act, where in its sample, which entries of the input
    for act, calls in numbers.items():
        positions = drawn_positions(sum(sizes[number] for number in calls))
        offset = 0
        for number in calls:
            here = ((positions >= offset) & (positions < offset + sizes[number])).nonzero().flatten()
            wanted.setdefault(number, []).append((act, here, positions[here] - offset))
            offset += sizes[number]
    samples: dict[str, Tensor] = {}

    def draw(number: int, x: Tensor) -> None:
        flat = x.detach().float().flatten()
        for act, places, entries in wanted.get(number, []):
            if act not in samples:
                total = sum(len(one[1]) for found in wanted.values() for one in found if one[0] == act)
                samples[act] = flat.new_empty(total)
            samples[act][places.to(flat.device)] = flat[entries.to(flat.device)]

    with centred(model, batch_of(inputs)):
        _pass(model, inputs, trace, draw)
    return {
        act: (any(negative[n] for n in calls) or not any(positive[n] for n in calls), samples[act])
        for act, calls in numbers.items()
    }


def _run(model: nn.Module, inputs: tuple[Any, ...], unusual: set[str]) -> tuple[list[str], list[Tensor]]:
    """The layers that run on these inputs, in this order, and the outputs."""
    found: list[str] = []
    names = {name for name, module in model.named_modules() if is_searchable(module)} - unusual
    with _hooked(model, names, lambda name, x: found.append(name)):
        outputs = _forward(model, inputs)
    return found, outputs


def _pass(model: nn.Module, inputs: tuple[Any, ...], trace: Trace, see: Callable[[int, Tensor], None]) -> None:
    """Shows every call's input, with the number of the call."""
    count = iter(range(len(trace.calls)))
    with _hooked(model, {call.layer for call in trace.calls}, lambda name, x: see(next(count), x)):
        _forward(model, inputs)


def _forward(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad(), unfused(), evaluating(model):
        return tensors_of(model(*inputs))


@contextmanager
def _hooked(model: nn.Module, names: set[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: see(name, [*args, *kwargs.values()][0])

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
