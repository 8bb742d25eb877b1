"""Follows channels through one forward pass, operation by operation: which index of which tensor holds which filter.

Every dimension of a tensor may carry labels, one per index. Layers give their outputs labels of their own; parameters and
buffers that operations read have one per index, too. Element-wise operations unite the labels of what they combine, views
and concatenations carry them along, and whatever mixes channels, or takes them by position, blocks them with its reason.
An operation that is not known here blocks what it reads.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dnas.space.trace import tensors_of

FIXED = -1
"""Label of an index that no layer makes."""

Vector = list[int]
Labels = dict[int, Vector]
"""Labels by dimension."""

_ELEMENTWISE = frozenset(
    [
        "hardswish",
        "hardswish_",
        "log_sigmoid_forward",
        "rrelu_with_noise",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "_to_copy",
        "native_dropout",
        "copy_",
        "_prelu_kernel",
        "_fused_dropout",
        "bernoulli",
        "bernoulli_",
        "normal_",
        "uniform_",
        "fill_",
        "zero_",
        "masked_fill",
        "masked_fill_",
        "where",
        "clone",
        "nan_to_num",
    ]
)
_RESHAPES = frozenset(
    ["view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "_unsafe_view_copy", "view_copy"]
)
_MOVES = frozenset(
    [
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "repeat",
        "alias",
        "detach",
        "lift_fresh",
        "movedim",
    ]
)
_PICKS = frozenset(
    [
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "unsafe_chunk",
        "unbind",
        "flip",
        "roll",
        "index_select",
        "narrow",
        "chunk",
        "unfold",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
    ]
)
_REDUCTIONS = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "prod",
        "std",
        "var",
        "var_mean",
        "std_mean",
        "linalg_vector_norm",
        "logsumexp",
        "any",
        "all",
        "norm",
        "argmax",
        "argmin",
        "max",
        "min",
        "median",
        "nansum",
        "aminmax",
        "count_nonzero",
    ]
)
_ALONG = frozenset(
    [
        "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "topk", "glu", "kthvalue",
    ]
)  # fmt: skip
_STRIDED = ("as_strided", "as_strided_")
"""By which global poolings give dimensions of one index other strides where channels are innermost."""
_LIKE = frozenset(["new_empty", "new_zeros", "new_ones", "new_full"])
_VALUES = frozenset(
    ["_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "unique_dim", "_unique2"]
)
"""Operations whose result decides, as a number or a shape, what runs next."""
_SPATIAL = re.compile(r"(pool|upsample|_pad|grid_sampler)\w*?(\d)d")


class Channels:
    """Union-find over labels, with the reasons why some must stay."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, str, int]] = []
        self.blocked: dict[int, str] = {}
        self._parent: list[int] = []
        self._first: dict[tuple[str, str], int] = {}

    def side(self, name: str, side: str, count: int) -> Vector:
        """The labels of one side of a place; made when first asked for."""
        if (name, side) not in self._first:
            self._first[name, side] = len(self.keys)
            self._parent += range(len(self.keys), len(self.keys) + count)
            self.keys += [(name, side, i) for i in range(count)]
        first = self._first[name, side]
        return list(range(first, first + count))

    def find(self, label: int) -> int:
        """The representative of a label's class."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def unite(self, ours: Vector, theirs: Vector, reason: str) -> Vector:
        """Makes one class of every pair; a label that meets a fixed index is blocked. Returns the labels that remain."""
        united = []
        for a, b in zip(ours, theirs, strict=True):
            if FIXED in (a, b):
                self.block([a, b], reason)
            elif a != b:
                self._parent[self.find(a)] = self.find(b)
            united.append(max(a, b))
        return united

    def block(self, labels: Iterable[int], reason: str) -> None:
        """These stay whole; the first reason counts."""
        for label in labels:
            if label != FIXED:
                self.blocked.setdefault(label, reason)


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by name, defaults included."""
    found = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            found[argument.name] = args[i]
        else:
            found[argument.name] = kwargs.get(argument.name, argument.default_value)
    return found


def _varying(tensor: Tensor) -> list[int]:
    """Dimensions along which a tensor of labels is not constant."""
    return [
        d
        for d in range(tensor.dim())
        if tensor.shape[d] > 1 and tensor.stride(d) != 0 and not bool((tensor == tensor.narrow(d, 0, 1)).all())
    ]


class Follower(TorchDispatchMode):
    """Carries labels through every operation that runs under it, except for what runs inside of `module`.

    Attributes:
        channels: the labels' classes.
        decides: where a value that depends on the inputs became a Python value; empty if nowhere.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, owners: dict[int, Callable[[int], tuple[str, str] | None]]
    ) -> None:
        """`owners`: for the weight and bias of a layer (by id) the side that a dimension belongs to."""
        super().__init__()
        self.channels = Channels()
        self.decides = ""
        self.stack: list[str] = []
        self._labels: dict[int, Labels] = {}
        self._alive: list[Any] = [inputs]
        self._from_inputs = {id(t) for t in tensors_of(inputs)}
        self._names = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
        self._owners = owners
        self.inside = 0

    # --- what modules say

    def of(self, tensor: Tensor) -> Labels:
        """The labels of a tensor, by dimension."""
        key = id(tensor)
        if key not in self._labels and key in self._names:
            owner = self._owners.get(key, lambda dimension: (self._names[key], f"dim{dimension}"))
            found: Labels = {}
            for dimension, size in enumerate(tensor.shape):
                place = owner(dimension)
                if size > 1 and place is not None:
                    path, side = place
                    found[dimension] = self.channels.side(path, side, size)
            self._labels[key] = found
        return self._labels.get(key, {})

    def put(self, tensor: Tensor, labels: Labels) -> None:
        """Sets the labels of a new tensor; a dimension of one index needs none."""
        self._alive.append(tensor)
        kept = {d: v for d, v in labels.items() if len(v) > 1 and any(label != FIXED for label in v)}
        if kept:
            self._labels[id(tensor)] = kept
        else:
            self._labels.pop(id(tensor), None)

    def reason(self, what: str) -> str:
        """What happens, and in which module."""
        return f"{what} in {self.stack[-1]}" if self.stack and self.stack[-1] else what

    def block(self, tensor: Tensor, what: str, dimensions: Iterable[int] | None = None) -> None:
        """Blocks the labels of a tensor, along all dimensions or these."""
        for dimension, vector in self.of(tensor).items():
            if dimensions is None or dimension in dimensions:
                self.channels.block(vector, self.reason(what))

    def enter(self) -> None:
        """From here on operations are a module's own, until `leave`: the module says what becomes of the labels."""
        self.inside += 1

    def leave(self) -> None:
        """Ends `enter`."""
        self.inside -= 1

    def spread(self, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """What is computed from tensors that depend on the network's inputs depends on them."""
        if any(id(t) in self._from_inputs for t in reads):
            self._from_inputs |= {id(t) for t in writes}

    # --- what operations say

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        before = _geometry(args[0]) if name in _STRIDED else None
        out = func(*args, **kwargs)
        if not self.inside:
            reads, writes = tensors_of((args, kwargs)), tensors_of(out)
            self._alive.append((args, kwargs, out))
            if name in _VALUES and not self.decides and any(id(t) in self._from_inputs for t in reads):
                self.decides = self.reason(f"{name.strip('_')} of a tensor")
            self.spread(reads, writes)
            if before is not None and before == _geometry(out):
                self.put(out, self.of(args[0]))
            elif any(self.of(t) for t in reads):
                self._step(func, name, args, kwargs, reads, writes)
        return out

    def _step(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], reads: list[Tensor], writes: list[Tensor]
    ) -> None:
        spatial = _SPATIAL.search(name)
        first = reads[0]
        if torch.Tag.pointwise in func.tags or name in _ELEMENTWISE:
            self._elementwise(name, reads, writes, func._schema.is_mutable)
        elif name in ("cat", "stack"):
            self._join(name, _arguments(func, args, kwargs), writes[0])
        elif name in _RESHAPES:
            self._move(name, first, writes, lambda labels: [labels.reshape(writes[0].shape)], pick=False)
        elif name in _MOVES or name in _PICKS:
            self._move(
                name, first, writes, lambda labels: tensors_of(func(labels, *args[1:], **kwargs)), name in _PICKS
            )
        elif name in _REDUCTIONS:
            self._reduce(name, first, _arguments(func, args, kwargs), writes)
        elif name in _ALONG:
            dim = _arguments(func, args, kwargs)["dim"]
            self._keep(name, first, reads, writes, {dim % first.dim()})
        elif name == "constant_pad_nd":
            pad = args[1]
            padded = {first.dim() - 1 - i // 2 for i, amount in enumerate(pad) if amount}
            self._keep("padding", first, reads, writes, padded)
        elif name.startswith("new_"):  # a tensor of the first one's size, for what follows to fill: circular padding
            self._keep(name, first, [first], writes, set())
        elif name == "native_batch_norm":
            self._keep(
                name,
                first,
                reads,
                writes,
                {d for d in range(first.dim()) if d != 1 or sum(t.numel() > 0 for t in reads) > 1},
            )
        elif name in ("native_layer_norm", "_fused_rms_norm"):
            count = len(args[1])
            self._keep("a functional normalisation", first, reads, writes, set(range(first.dim() - count, first.dim())))
        elif name in _LIKE:  # of the input nothing but its size is used
            same = writes[0].dim() == first.dim()
            left = {d: v for d, v in self.of(first).items() if same and writes[0].shape[d] == len(v)}
            self.put(writes[0], left)
        elif name == "embedding":
            self.block(reads[1], "an index into an embedding")
            self.block(first, "an index into an embedding", [0])
            self.put(writes[0], {writes[0].dim() - 1: v for d, v in self.of(first).items() if d == 1})
        elif spatial:
            space = int(spatial[2])
            self._keep(name, first, reads, writes, set(range(first.dim() - space, first.dim())))
        else:
            self._unknown(name, reads, writes)

    def _unknown(self, name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        read = sorted({f"Parameter {self._names[id(t)]}" for t in reads if id(t) in self._names})
        for tensor in reads:
            self.block(tensor, f"{name.strip('_')} mixes these channels" + (f" with {', '.join(read)}" if read else ""))
        for tensor in writes:
            if not any(tensor is t for t in reads):
                self.put(tensor, {})

    def _elementwise(self, name: str, reads: list[Tensor], writes: list[Tensor], mutable: bool) -> None:
        shape = max((t.shape for t in [*writes, *reads]), key=lambda s: (len(s), s.numel()))
        found: Labels = {}
        for tensor in reads:
            for dimension, vector in self.of(tensor).items():
                place = dimension + len(shape) - tensor.dim()
                found[place] = self.channels.unite(
                    found[place], vector, self.reason(f"{name} with channels that no layer makes")
                ) if place in found else vector  # fmt: skip
        for tensor in reads:
            own = self.of(tensor)
            for place, vector in found.items():
                dimension = place - len(shape) + tensor.dim()
                if dimension >= 0 and tensor.shape[dimension] > 1 and dimension not in own:
                    self.channels.block(vector, self.reason(f"{name} with a tensor of fixed size"))
        for tensor in writes:
            if not (mutable and any(tensor is t for t in reads)) or self.of(tensor):
                self.put(tensor, found if tensor.shape == shape else {})
            elif found:  # a tensor of fixed size takes the channels in, and what views it does, too
                for vector in found.values():
                    self.channels.block(vector, self.reason("written into a tensor of fixed size"))

    def _join(self, name: str, arguments: dict[str, Any], out: Tensor) -> None:
        tensors = [t for t in arguments["tensors"] if t.dim() == out.dim() or name == "stack"]
        dim = (arguments["dim"] or 0) % out.dim()
        found: Labels = {}
        along: Vector = []
        for tensor in tensors:
            own = self.of(tensor)
            if name == "cat":
                along += own.get(dim, [FIXED] * tensor.shape[dim])
            for dimension, vector in own.items():
                place = dimension + (name == "stack" and dimension >= dim)
                if place != dim or name == "stack":
                    before = found.get(place, vector)
                    found[place] = self.channels.unite(
                        before, vector, self.reason(f"{name} with channels that no layer makes")
                    )
        for tensor in tensors:
            own = self.of(tensor)
            for place, vector in found.items():
                dimension = place - (name == "stack" and place > dim)
                if dimension not in own:
                    self.channels.block(vector, self.reason(f"{name} with a tensor of fixed size"))
        self.put(out, found | ({dim: along} if name == "cat" else {}))

    def _move(
        self, name: str, x: Tensor, writes: list[Tensor], run: Callable[[Tensor], list[Tensor]], pick: bool
    ) -> None:
        """Runs the operation on the labels themselves."""
        results: list[Labels] = [{} for _ in writes]
        for dimension, vector in self.of(x).items():
            shape = [-1 if d == dimension else 1 for d in range(x.dim())]
            order = torch.tensor(vector).reshape(shape).expand(x.shape)
            try:
                moved = run(order)
            except RuntimeError:  # a view as another type, of which labels have none
                self.channels.block(vector, self.reason(f"{name} as another type"))
                continue
            for result, labels in zip(moved, results, strict=True):
                varying = _varying(result)
                if len(varying) == 1:
                    line = result[tuple(slice(None) if d == varying[0] else 0 for d in range(result.dim()))]
                    found = line.tolist()
                    if not pick or found == vector:
                        labels[varying[0]] = found
                        continue
                what = "takes channels by their position" if pick else "splits channels over several dimensions"
                self.channels.block(vector, self.reason(f"{name} {what}"))
        for tensor, labels in zip(writes, results, strict=True):
            self.put(tensor, labels)

    def _reduce(self, name: str, x: Tensor, arguments: dict[str, Any], writes: list[Tensor]) -> None:
        dim = arguments.get("dim")
        over = {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim or range(x.dim()))}
        self.block(x, f"{name} over channels", over)
        keep = bool(arguments.get("keepdim"))
        left = {d: v for d, v in self.of(x).items() if d not in over}
        moved = left if keep else {d - sum(o < d for o in over): v for d, v in left.items()}
        for tensor in writes:
            self.put(tensor, moved)

    def _keep(self, name: str, x: Tensor, reads: list[Tensor], writes: list[Tensor], mixed: set[int]) -> None:
        """The operation leaves the first tensor's dimensions where they are and mixes some of them."""
        self.block(x, f"{name.strip('_')} over channels", mixed)
        for tensor in reads[1:]:
            self.block(tensor, f"read by {name.strip('_')}")
        left = {d: v for d, v in self.of(x).items() if d not in mixed}
        for tensor in writes:
            self.put(tensor, {d: v for d, v in left.items() if tensor.dim() == x.dim() and tensor.shape[d] == len(v)})


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    """Where the entries of a tensor are."""
    return tensor.shape, [tensor.stride(d) for d, n in enumerate(tensor.shape) if n > 1], tensor.storage_offset()
