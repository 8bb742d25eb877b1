"""One forward pass of the user's model, watched: which layers run, on which tensors, and how long each is needed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

SEARCHABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
"""Layers that are quantised; subclasses with a forward of their own are not."""


@dataclass
class Call:
    """One execution of a layer: its input (storage, version) and output storage, and the operation count before it."""

    layer: str
    input_key: tuple[int, int]
    input_storage: int
    output_storage: int
    sample: Tensor
    output_shape: torch.Size
    start: int


@dataclass
class Operation:
    """One ATen operation: storages read and written, multiplications, and the module it ran in."""

    name: str
    reads: set[int]
    writes: set[int]
    calls_before: int
    macs: int
    module: str


@dataclass
class Trace:
    """What one forward pass did. `alive` keeps every tensor, so that no storage is used twice."""

    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    input_storages: set[int] = field(default_factory=set)
    output_storages: set[int] = field(default_factory=set)
    outputs: list[Tensor] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


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
                {_storage(t) for t in _tensors((args, kwargs))},
                {_storage(t) for t in _tensors(out)},
                len(self.trace.calls),
                0 if self.inside else macs,
                self.stack[-1] if self.stack else "",
            )
        )
        return out


def is_searchable(module: nn.Module) -> bool:
    """Whether a module is one of the `SEARCHABLE` types, with torch's own forward and a weight that is a parameter."""
    own = isinstance(module._parameters.get("weight"), nn.Parameter)  # not so under weight or spectral normalisation
    return own and any(isinstance(module, kind) and type(module).forward is kind.forward for kind in SEARCHABLE)


@contextmanager
def _watch(model: nn.Module, trace: Trace, stack: list[str], inside: list[str]) -> Iterator[None]:
    def enter(name: str, searchable: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stack.append(name)
            if searchable:
                (x,) = [*args, *kwargs.values()][:1]
                inside.append(name)
                call = Call(name, (id(x), x._version), _storage(x), 0, x.detach().clone(), x.shape, 0)
                call.start = len(trace.operations)
                trace.calls.append(call)
                trace.alive.append(x)

        return hook

    def leave(name: str, searchable: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            stack.pop()
            if searchable:
                inside.pop()
                call = next(c for c in reversed(trace.calls) if c.layer == name)
                call.output_storage, call.output_shape = _storage(output), output.shape
                trace.alive.append(output)

        return hook

    handles = []
    for name, module in model.named_modules():
        searchable = is_searchable(module)
        handles.append(module.register_forward_pre_hook(enter(name, searchable), with_kwargs=True))
        handles.append(module.register_forward_hook(leave(name, searchable), with_kwargs=True))
    training = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused transformer layers and attention hide what they multiply
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention and recurrent layers run as the matrix products that they are, so that each is seen and counted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
        ):
            yield


def trace_model(model: nn.Module, example_inputs: tuple[Any, ...]) -> Trace:
    """Runs the model once in evaluation mode without gradients and records what it does.

    Args:
        model: left as it was.
        example_inputs: positional arguments of its forward; real data, a small batch.

    Raises:
        ValueError: the model does not accept these inputs.
    """
    trace = Trace()
    stack: list[str] = []
    inside: list[str] = []
    trace.input_storages = {_storage(t) for t in _tensors(example_inputs)}
    trace.alive.append(example_inputs)
    with torch.no_grad(), _unfused(), _watch(model, trace, stack, inside):
        try:
            with _Recorder(trace, stack, inside):
                output = model(*example_inputs)
        except Exception as error:
            shapes = [tuple(t.shape) for t in _tensors(example_inputs)]
            raise ValueError(
                f"the model failed on example_inputs of shapes {shapes} in module {stack[-1] if stack else ''!r}: "
                f"{error}; pass inputs as the model's forward takes them"
            ) from error
    trace.outputs = _tensors(output)
    trace.output_storages = {_storage(t) for t in trace.outputs}
    return trace
