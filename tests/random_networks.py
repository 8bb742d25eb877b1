"""Networks that grow at random out of what torch users build with: `grow(choose)`.

A network is a chain of parts. A part takes a tensor of one form (an image of 1, 2 or 3 dimensions, a sequence, a vector)
and says what form it returns; parts may contain parts. `choose(options)` decides everything: a seeded generator or
Hypothesis can stand behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from random_parts import (
    BATCH_NORM,
    CONV,
    INSTANCE_NORM,
    SIDE,
    TRANSPOSED,
    Branches,
    ChannelsLast,
    ClassToken,
    Depends,
    Do,
    Form,
    FunctionalConv,
    Gate,
    LastPart,
    OwnLayerNorm,
    PlainAttention,
    RandomNetwork,
    Residual,
    Scale,
    Subclassed,
    Tied,
    TorchAttention,
    Twice,
)
from torch import Tensor, nn

Choose = Callable[[Sequence[Any]], Any]

Part = tuple[nn.Module, Form]


def _conv(choose: Choose, form: Form, out: int | None = None, stride: int | None = None) -> Part:
    kernel = choose([1, 3])
    dilation = choose([1, 1, 2]) if kernel == 3 else 1
    stride = stride or (choose([1, 1, 2]) if form.side >= 4 else 1)
    named = {"stride": stride, "padding": dilation * (kernel // 2), "dilation": dilation, "bias": choose([True, False])}
    if form.space == 2 and kernel == 3 and form.side > 2:
        named["padding_mode"] = choose(["zeros", "zeros", "reflect", "circular"])
    channels = out or choose([4, 6, 8, 12])
    return CONV[form.space](form.channels, channels, kernel, **named), Form(
        form.space, channels, -(-form.side // stride)
    )


def _transposed(choose: Choose, form: Form) -> Part:
    stride = choose([1, 2]) if form.side <= 4 else 1
    groups = choose([1, 1, form.channels])
    channels = form.channels if groups > 1 else choose([4, 6, 8])
    layer = TRANSPOSED[form.space](form.channels, channels, 3, stride, 1, stride - 1, groups=groups)
    return layer, Form(form.space, channels, form.side * stride)


def _grouped(choose: Choose, form: Form) -> Part:
    groups = choose([n for n in (2, 4, form.channels) if form.channels % n == 0])
    out = form.channels * choose([1, 1, 2])
    return CONV[form.space](form.channels, out, 3, padding=1, groups=groups), replace(form, channels=out)


def _image_norm(choose: Choose, form: Form) -> Part:
    c, space = form.channels, form.space
    kind = choose(["batch", "group", "instance", "last", "own", "subclass", "whole", "prelu", "rms"])
    groups = choose([n for n in (1, 2, 3, 4, c) if c % n == 0])
    made = {
        "batch": lambda: BATCH_NORM[space](c, affine=choose([True, False])),
        "group": lambda: nn.GroupNorm(groups, c, affine=choose([True, False])),
        "instance": lambda: (
            INSTANCE_NORM[space](c, affine=choose([True, False]), track_running_stats=choose([0, 1]) > 0)
            if form.side > 1
            else nn.Identity()
        ),
        "last": lambda: ChannelsLast(nn.LayerNorm(c, elementwise_affine=choose([True, False]))),
        "own": lambda: OwnLayerNorm(c),
        "subclass": lambda: Subclassed(c),
        "whole": lambda: nn.LayerNorm((c, *[form.side] * space)),
        "prelu": lambda: nn.PReLU(choose([1, c])),
        "rms": lambda: ChannelsLast(nn.RMSNorm(c)),
    }[kind]
    return made(), form


def _sequence_norm(choose: Choose, form: Form) -> Part:
    made = choose([nn.LayerNorm, nn.RMSNorm, lambda c: nn.LayerNorm(c, elementwise_affine=False)])
    return made(form.channels), form


def _vector_norm(choose: Choose, form: Form) -> Part:
    return choose([nn.LayerNorm, nn.BatchNorm1d, lambda c: nn.GroupNorm(2, c)])(form.channels), form


def _activation(choose: Choose, form: Form) -> Part:
    function = choose(
        [F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.sigmoid, F.elu, lambda x: F.leaky_relu(x, 0.2),
         lambda x: F.relu(x.clone(), inplace=True), lambda x: x.clone().clamp_(-1, 1), lambda x: F.hardtanh(x)]
    )  # fmt: skip
    return choose([Do(function), Do(function), nn.ReLU(inplace=True), nn.Hardswish(), nn.SiLU(inplace=True)]), form


def _pool(choose: Choose, form: Form) -> Part:
    name = f"{choose(['avg', 'max'])}_pool{form.space}d"
    if form.side >= 4:
        return Do(lambda x: getattr(F, name)(x, 2)), replace(form, side=form.side // 2)
    kernel = 3 if form.side > 2 else 1  # torch pools nothing smaller than the kernel in 3-D
    return Do(lambda x: getattr(F, name)(x, kernel, 1, kernel // 2)), form


def _resize(choose: Choose, form: Form) -> Part:
    if form.side > 4:
        return Do(lambda x: getattr(F, f"adaptive_avg_pool{form.space}d")(x, 3)), replace(form, side=3)
    mode = choose(["nearest", {1: "linear", 2: "bilinear", 3: "trilinear"}[form.space]])
    return Do(lambda x: F.interpolate(x, scale_factor=2.0, mode=mode)), replace(form, side=form.side * 2)


def _picks(choose: Choose, form: Form) -> Part:
    """Channels taken by their position, and put in another order."""
    half = form.channels // 2
    found: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "chunk": (lambda x: torch.add(*x.chunk(2, 1)), half),
        "glu": (lambda x: F.glu(x, 1), half),
        "split": (lambda x: x.split([half - 1, half + 1], 1)[1], half + 1),
        "slice": (lambda x: x[:, ::2], half),
        "shuffle": (
            lambda x: x.reshape(x.shape[0], 2, half, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
            form.channels,
        ),
        "flip": (lambda x: x.flip(1), form.channels),
        "again": (lambda x: torch.cat(x.chunk(2, 1), 1), form.channels),
    }
    function, channels = found[choose(sorted(found))]
    return Do(function), replace(form, channels=channels)


def _mixes(choose: Choose, form: Form) -> Part:
    """Functions of all channels together."""
    function = choose(
        [lambda x: x.softmax(1), lambda x: x - x.mean(1, keepdim=True), lambda x: F.normalize(x, dim=1),
         lambda x: x * x.amax(1, keepdim=True).sigmoid(), lambda x: x - x.mean((1, 2), keepdim=True),
         lambda x: x + torch.linspace(0, 1, x.shape[1], dtype=x.dtype).view(1, -1, *[1] * (x.dim() - 2))]
    )  # fmt: skip
    return Do(function), form


def _pixels(choose: Choose, form: Form) -> Part:
    if form.channels % 4 == 0 and form.side <= 4:
        return Do(lambda x: F.pixel_shuffle(x, 2)), Form(2, form.channels // 4, form.side * 2)
    if form.side % 2 == 0 and form.channels <= 6:
        return Do(lambda x: F.pixel_unshuffle(x, 2)), Form(2, form.channels * 4, form.side // 2)
    return Do(lambda x: F.pad(x, (1, 1, 1, 1))), replace(form, side=form.side + 2)


def _scale(choose: Choose, form: Form) -> Part:
    if form.space < 0:
        return Scale((1, choose([1, form.side]), form.channels), choose([True, False])), form
    return Scale((form.channels, *[1] * form.space), choose([True, False])), form


def _self_cat(choose: Choose, form: Form) -> Part:
    dim = -1 if form.space < 0 else 1
    return Do(lambda x: torch.cat([x, x], dim)), replace(form, channels=2 * form.channels)


def _same(choose: Choose, form: Form, depth: int, used: list[str]) -> nn.Module:
    """Parts that return the form they take."""
    inner, middle = _chain(choose, form, depth, used, IMAGE_SAME if form.space > 0 else SEQUENCE_SAME)
    if form.space > 0:
        return nn.Sequential(*inner, _conv(choose, middle, form.channels, 1)[0])
    return nn.Sequential(*inner, nn.Linear(middle.channels, form.channels))


def _residual(choose: Choose, form: Form, depth: int, used: list[str]) -> Part:
    return Residual(_same(choose, form, depth, used), choose([False, False, True])), form


def _branches(choose: Choose, form: Form, depth: int, used: list[str]) -> Part:
    left, right = _same(choose, form, depth, used), _same(choose, form, depth, used)
    dim = -1 if form.space < 0 else 1
    kind = choose(["cat", "mul", "maximum", "gate"])
    join = {
        "cat": lambda a, b: torch.cat([a, b], dim),
        "mul": torch.mul,
        "maximum": torch.maximum,
        "gate": lambda a, b: a * b.sigmoid(),
    }[kind]
    return Branches(left, right, join), replace(form, channels=form.channels * (2 if kind == "cat" else 1))


def _shared(choose: Choose, form: Form) -> Part:
    def layer() -> nn.Module:
        if form.space > 0:
            return _conv(lambda options: options[0], form, form.channels, 1)[0]
        return nn.Linear(form.channels, form.channels)

    return choose([Twice(layer()), Tied(layer)]), form


def _depends(choose: Choose, form: Form) -> Part:
    if form.space > 0:
        return Depends(*(CONV[form.space](form.channels, form.channels, 1) for _ in range(2))), form
    return Depends(*(nn.Linear(form.channels, form.channels) for _ in range(2))), form


def _linear(choose: Choose, form: Form) -> Part:
    channels = choose([4, 6, 8, 12])
    return nn.Linear(form.channels, channels, bias=choose([True, False])), replace(form, channels=channels)


def _last_linear(choose: Choose, form: Form) -> Part:
    channels = choose([4, 6, 8])
    return ChannelsLast(nn.Linear(form.channels, channels)), replace(form, channels=channels)


def _attention(choose: Choose, form: Form) -> Part:
    if form.channels % 2:
        return nn.Identity(), form
    heads = choose([1, 2])
    if choose([True, False]):
        return TorchAttention(form.channels, heads, choose([True, False]), choose([True, False])), form
    return PlainAttention(form.channels, heads, choose([True, False])), form


def _encoder(choose: Choose, form: Form) -> Part:
    if form.channels % 2:
        return nn.Identity(), form
    first, activation = choose([True, False]), choose(["relu", "gelu"])
    layer = nn.TransformerEncoderLayer(form.channels, 2, 8, batch_first=True, norm_first=first, activation=activation)
    return layer, form


def _mixer(choose: Choose, form: Form) -> Part:
    layer = nn.Linear(form.side, form.side)
    return Do(lambda x: x) if form.side < 2 else ChannelsLast(layer), form


def _token(choose: Choose, form: Form) -> Part:
    return ClassToken(form.channels), replace(form, side=form.side + 1)


def _to_sequence(choose: Choose, form: Form) -> Part:
    return Do(lambda x: x.flatten(2).transpose(1, 2)), Form(-1, form.channels, form.side**form.space)


def _to_vector(choose: Choose, form: Form) -> Part:
    if form.space < 0:
        return Do(choose([lambda x: x.mean(1), lambda x: x[:, 0]])), Form(0, form.channels, 1)
    count = form.channels * form.side**form.space
    if count <= 200 and choose([True, False]):
        return choose([nn.Flatten(), Do(lambda x: x.reshape(x.shape[0], -1))]), Form(0, count, 1)
    return Do(lambda x: x.flatten(2).mean(2)), Form(0, form.channels, 1)


ANY = {"activation": _activation, "dropout": lambda choose, form: (nn.Dropout(0.3), form), "shared": _shared}
NESTED = {"residual": _residual, "branches": _branches}
IMAGE_SAME: dict[str, Callable[..., Part]] = {
    **ANY, "conv": lambda choose, form: _conv(choose, form, None, 1), "grouped": _grouped, "norm": _image_norm,
    "gate": lambda choose, form: (Gate(form, choose([3, 4]), choose([True, False])), form), "scale": _scale,
    "self_cat": _self_cat, "last_linear": _last_linear, "picks": _picks, "mixes": _mixes,
    "functional": lambda choose, form: (FunctionalConv(form, form.channels), form),
}  # fmt: skip
IMAGE = {**IMAGE_SAME, **NESTED, "strided": _conv, "transposed": _transposed, "pool": _pool, "resize": _resize}
SEQUENCE_SAME: dict[str, Callable[..., Part]] = {
    **ANY, "linear": _linear, "norm": _sequence_norm, "attention": _attention, "encoder": _encoder, "scale": _scale,
    "mixer": _mixer, "self_cat": _self_cat,
}  # fmt: skip
SEQUENCE = {**SEQUENCE_SAME, **NESTED, "token": _token}
VECTOR: dict[str, Callable[..., Part]] = {**ANY, "linear": _linear, "norm": _vector_norm}


def _chain(
    choose: Choose, form: Form, length: int, used: list[str], parts: dict[str, Callable[..., Part]]
) -> tuple[list[nn.Module], Form]:
    made = []
    for _ in range(length):
        known = dict(parts)
        if form.space == 2 and parts is IMAGE:
            known["pixels"] = _pixels
        if form.channels < 4:
            known = {name: known[name] for name in ("conv", "strided", "linear", "activation") if name in known}
        if form.channels % 2:
            known.pop("picks", None)
        if form.channels > 24:
            known.pop("self_cat", None)
        name = choose(sorted(known))
        if name in NESTED:
            part, form = known[name](choose, form, choose([1, 2]), used)
        else:
            part, form = known[name](choose, form)
        used.append({-1: "sequence", 0: "vector"}.get(form.space, "image") + ":" + name)
        made.append(part)
    return made, form


def grow(choose: Choose) -> RandomNetwork:
    """A network that `choose` decides."""
    first = choose([2, 2, 2, 2, 1, 3, -1, -1])
    start = form = Form(first, choose([3, 4]), SIDE[first] if first > 0 else 6)
    used: list[str] = []
    parts: list[nn.Module] = []
    if first > 0:
        layer, form = _conv(choose, form, None, 1)
        made, form = _chain(choose, form, choose([1, 2, 3, 4]), used, IMAGE)
        parts += [layer, *made]
        if form.side**form.space <= 70 and choose([True, False, False]):
            part, form = _to_sequence(choose, form)
            parts.append(part)
            used.append("to_sequence")
    else:
        layer, form = _linear(choose, form)
        parts.append(layer)
    if form.space < 0:
        made, form = _chain(choose, form, choose([1, 2, 3]), used, SEQUENCE)
        parts += made
    if choose([True, False]):
        part, form = _to_vector(choose, form)
        made, form = _chain(choose, form, choose([0, 1, 2]), used, VECTOR)
        parts += [part, *made]
        used.append("to_vector")
    if choose([False, False, False, False, False, True]):
        part, form = _depends(choose, form)
        parts.append(part)
        used.append("depends")
    inputs = choose(["one", "one", "one", "two", "dict"])
    style = choose(["tensor", "tensor", "tuple", "dict"])
    used += [f"inputs:{inputs}", f"outputs:{style}"]
    return RandomNetwork(start, parts, used, inputs, LastPart(form, style))
