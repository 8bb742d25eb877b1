"""One forward pass of the user's model, watched: which layers run, on which tensors, and how long each is needed."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from quant.brevitas import computes_as

SEARCHABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
"""Layers that are quantised; subclasses with a forward of their own are not."""


@dataclass
class Call:
    """One execution of a layer: its input (storage, version) and output storage, and the operation count before it."""

    layer: str
    input_key: tuple[int, int]
    input_storage: int
    output_storage: int
    input_shape: torch.Size
    output_shape: torch.Size
    start: int


@dataclass
class Operation:
    """One ATen operation: storages read and written, multiplications, and the module it ran in; shapes of what it wrote."""

    name: str
    reads: set[int]
    writes: set[int]
    calls_before: int
    macs: int
    module: str
    shapes: dict[int, torch.Size] = field(default_factory=dict)


@dataclass
class Trace:
    """What one forward pass did. `alive` keeps every tensor, so that no storage is used twice.

    unusual: layers that are called in a way that a quantised layer does not offer, and how; they are no layers here.
    inputs: the tensor that each call reads. modules: of every module that makes one tensor of another, their storages.
    """

    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    input_storages: set[int] = field(default_factory=set)
    output_storages: set[int] = field(default_factory=set)
    outputs: list[Tensor] = field(default_factory=list)
    unusual: dict[str, str] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, mappings, data classes and objects, in their order."""
    found: list[Tensor] = []
    _collect(tree, found, set())
    return found


def _collect(tree: Any, found: list[Tensor], seen: set[int]) -> None:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type):
            seen.add(id(leaf))
            inner = leaf if isinstance(leaf, Mapping) else getattr(leaf, "__dict__", None)
            if isinstance(inner, Mapping):
                for value in inner.values():
                    _collect(value, found, seen)
            elif isinstance(leaf, set | frozenset):
                for value in leaf:
                    _collect(value, found, seen)


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, stack: list[str], inside: list[str]) -> None:
        super().__init__()
        self.trace, self.stack, self.inside = trace, stack, inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.trace.alive.append((args, kwargs, out))
        macs = 0
        if func.overloadpacket in flop_registry:
            macs = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2
        self.trace.operations.append(
            Operation(
                str(func.overloadpacket).removeprefix("aten."),
                {_storage(t) for t in tensors_of((args, kwargs))},
                {_storage(t) for t in tensors_of(out)},
                len(self.trace.calls),
                0 if self.inside else macs,
                self.stack[-1] if self.stack else "",
                {_storage(t): t.shape for t in tensors_of(out)},
            )
        )
        return out


def is_searchable(module: nn.Module) -> bool:
    """Whether a module computes what one of the `SEARCHABLE` types does, with a weight that is a parameter."""
    own = isinstance(module._parameters.get("weight"), nn.Parameter)  # not so under weight or spectral normalisation
    return own and any(computes_as(module, kind) for kind in SEARCHABLE)


@contextmanager
def _watch(
    model: nn.Module, trace: Trace, stack: list[str], inside: list[str], skipped: Collection[str]
) -> Iterator[None]:
    def enter(name: str, searchable: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stack.append(name)
            if searchable:
                (x, *others) = [*args, *kwargs.values()]
                if any(other is not None for other in others):
                    trace.unusual[name] = "called with more than its input (output_size): left as it is"
                inside.append(name)
                call = Call(name, (id(x), x._version), _storage(x), 0, x.shape, x.shape, 0)
                call.start = len(trace.operations)
                trace.calls.append(call)
                trace.inputs.append(x)

        return hook

    def leave(name: str, searchable: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            stack.pop()
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                trace.modules[name] = (_storage(args[0]), _storage(output))
            if searchable:
                inside.pop()
                call = next(c for c in reversed(trace.calls) if c.layer == name)
                call.output_storage, call.output_shape = _storage(output), output.shape
                trace.alive.append(output)

        return hook

    handles = []
    for name, module in model.named_modules():
        searchable = is_searchable(module) and name not in skipped
        handles.append(module.register_forward_pre_hook(enter(name, searchable), with_kwargs=True))
        handles.append(module.register_forward_hook(leave(name, searchable), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and recurrent layers run as the matrix products that they are, so that each is seen and counted."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused transformer layers and attention hide what they multiply
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
            ):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def trace_model(model: nn.Module, example_inputs: tuple[Any, ...]) -> Trace:
    """Runs the model in evaluation mode without gradients and records what it does.

    Args:
        model: left as it was.
        example_inputs: positional arguments of its forward; real data, a small batch.

    Raises:
        ValueError: the model does not accept these inputs.
    """
    trace = _run(model, example_inputs, ())
    if trace.unusual:
        unusual, trace = trace.unusual, _run(model, example_inputs, trace.unusual)
        trace.unusual = unusual
    return trace


def _run(model: nn.Module, example_inputs: tuple[Any, ...], skipped: Collection[str]) -> Trace:
    trace = Trace()
    stack: list[str] = []
    inside: list[str] = []
    trace.input_storages = {_storage(t) for t in tensors_of(example_inputs)}
    trace.alive.append(example_inputs)
    with torch.no_grad(), unfused(), evaluating(model), _watch(model, trace, stack, inside, skipped):
        try:
            with _Recorder(trace, stack, inside):
                output = model(*example_inputs)
        except Exception as error:
            shapes = [tuple(t.shape) for t in tensors_of(example_inputs)]
            raise ValueError(
                f"the model failed on example_inputs of shapes {shapes} in module {stack[-1] if stack else ''!r}: "
                f"{error}; pass inputs as the model's forward takes them"
            ) from error
    for call, x in zip(trace.calls, trace.inputs, strict=True):
        if x._version != call.input_key[1]:  # a quantiser needs it once more, for its gradient
            trace.unusual.setdefault(call.layer, "its input is changed in place after it was read: left as it is")
    trace.outputs = tensors_of(output)
    trace.output_storages = {_storage(t) for t in trace.outputs}
    needed = _needed(trace)
    for call in trace.calls if trace.outputs else ():
        if not any(other.output_storage in needed for other in trace.calls if other.layer == call.layer):
            trace.unusual.setdefault(call.layer, "no output depends on it outside of training: left as it is")
    return trace


def _needed(trace: Trace) -> set[int]:
    """Storages that some output is computed from."""
    found = set(trace.output_storages)
    for operation in reversed(trace.operations):
        if operation.writes & found:
            found |= operation.reads
    return found
