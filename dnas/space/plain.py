"""Layers whose forward is their own, or whose weight is computed, as plain layers: only these are quantised and pruned.

Weight standardisation, weight and spectral normalisation: the weight that such a layer applies becomes a weight that is trained
itself. What a forward does beside its one convolution (padding, a normalisation, an activation) is done as before.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dnas.space.trace import SEARCHABLE, evaluating, is_searchable
from quant.modules import copied, replace_module

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_FUNCTIONS: Mapping[Callable[..., Tensor], tuple[type[nn.Module], tuple[str, ...]]] = {
    F.conv1d: (nn.Conv1d, _CONV),
    F.conv2d: (nn.Conv2d, _CONV),
    F.conv3d: (nn.Conv3d, _CONV),
    F.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
    F.linear: (nn.Linear, ("input", "weight", "bias")),
}


class OwnForward(nn.Module):
    """A user's layer with a forward of its own, with the plain `layer` in place of its one convolution or product."""

    def __init__(self, module: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.module, self.layer = module, layer

    def __getattr__(self, name: str) -> Any:
        """What a model's own code asks its layer for is the user's layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None or name.startswith("__"):  # how it is copied is not the user's layer's affair
                raise
            return getattr(module, name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """As the user's layer takes and returns them."""
        with _Calls(self.layer):
            return self.module(*inputs, **named)


class _Calls(TorchFunctionMode):
    """Records convolutions and linear products by their arguments' names; given a layer, lets it compute them."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.seen: list[tuple[type[nn.Module], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        kind, names = _FUNCTIONS[func]
        named = dict(zip(names, args, strict=False)) | kwargs
        if self.layer is not None:
            return self.layer(named["input"])
        self.seen.append((kind, named))
        return func(*args, **kwargs)


def with_plain_layers(model: nn.Module) -> nn.Module:
    """The model with a plain layer wherever a layer's forward or weight is its own and always applies one weight.

    Args:
        model: left as it was.

    Returns:
        the model itself if there is no such layer, else a copy; the plain layer stands at the path of the user's layer with
        `.layer` appended.
    """
    names = [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, SEARCHABLE) and not is_searchable(module)
    ]
    inside = {id(part) for module in model.modules() if isinstance(module, OwnForward) for part in module.modules()}
    names = [name for name in names if id(model.get_submodule(name)) not in inside]
    if not names:
        return model
    model = copied(model)
    for name in names:
        module = model.get_submodule(name)
        layer = _plain_layer(module)
        if layer is not None:
            replace_module(model, name, OwnForward(module, layer).train(module.training))
    return model


def _plain_layer(module: nn.Module) -> nn.Module | None:
    """The plain layer that a user's layer applies; None unless it applies one, the same to every input.

    The parameters that its weight and bias are computed from become buffers of the user's layer: they do nothing more.
    """
    with evaluating(module), torch.enable_grad():
        calls = [_call(module, fill) for fill in (0.0, 1.0)]
    if calls[0] is None or calls[1] is None or calls[0][0] is not calls[1][0]:
        return None
    kind, (first, second) = calls[0][0], (calls[0][1], calls[1][1])
    if any(_differ(first.get(key), second.get(key)) for key in first if key != "input"):
        return None
    weight, bias = first["weight"], first.get("bias")
    result = _build(kind, weight, bias, {key: value for key, value in first.items() if isinstance(key, str)})
    with torch.enable_grad():
        _retire(module, [t for t in (weight, bias) if t is not None and t.requires_grad])
    return result.train(module.training)


def _call(module: nn.Module, fill: float) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """The one convolution or linear product that a layer computes on a small input of this value."""
    calls = _Calls()
    try:
        with calls:
            module(_small_input(module, fill))
    except Exception:  # whatever the forward raises: it takes something else than one tensor
        return None
    return calls.seen[0] if len(calls.seen) == 1 and isinstance(module, calls.seen[0][0]) else None


def _small_input(module: nn.Module, fill: float) -> Tensor:
    parameter = next(module.parameters())
    if isinstance(module, nn.Linear):
        shape: tuple[int, ...] = (2, module.in_features)
    else:
        conv: Any = module
        pairs = zip(conv.kernel_size, conv.dilation, strict=True)
        shape = (2, conv.in_channels, *(2 * ((size - 1) * step + 1) for size, step in pairs))
    return torch.full(shape, fill, dtype=parameter.dtype, device=parameter.device)


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return not torch.equal(a, b)
    return type(a) is not type(b) or a != b


def _build(kind: type[nn.Module], weight: Tensor, bias: Tensor | None, named: Mapping[str, Any]) -> nn.Module:
    given: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    result: nn.Module
    if kind is nn.Linear:
        result = kind(weight.shape[1], weight.shape[0], **given)
    else:
        groups = named.get("groups", 1)
        transposed = "Transpose" in kind.__name__
        inputs, outputs = (weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0])
        inputs, outputs = (inputs, outputs * groups) if transposed else (inputs * groups, outputs)
        keys = ("stride", "padding", "dilation", "groups", "output_padding")
        given |= {key: named[key] for key in keys if key in named}
        result = kind(inputs, outputs, tuple(weight.shape[2:]), **given)
    trained = any(p.requires_grad for p in (weight, bias) if p is not None)
    result.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if bias is not None:
        result.bias = nn.Parameter(bias.detach().clone(), requires_grad=trained)
    return result


def _retire(module: nn.Module, computed: list[Tensor]) -> None:
    places = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    used: tuple[Tensor | None, ...] = ()
    if computed and places:
        total = torch.stack([tensor.sum() for tensor in computed]).sum()
        used = torch.autograd.grad(total, [parameter for _, _, parameter in places], allow_unused=True)
    feeding = {id(parameter) for (_, _, parameter), grad in zip(places, used, strict=True) if grad is not None}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) in feeding or (owner is module and name in ("weight", "bias")):
                del owner._parameters[name]
                owner.register_buffer(name, parameter.detach(), persistent=False)
