"""Modules that may be left out: blocks at the end of a stage (its depth), and branches that a user names.

A module can be left out where its output can stand for its input: one tensor in, one out, of the same shape, and every channel
holds what the same filters make (a shortcut adds the two). Depth keeps the first blocks of a stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from dnas.space.choice import Choice, Gate


class LeftOut(nn.Module):
    """Stands where a module was left out: returns what it would have read."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """X of any shape."""
        return x


@dataclass(frozen=True)
class Passage:
    """What one module did with its input in a forward pass.

    reads, makes: identities of the tensors in and out. reason: why it cannot be left out; empty where it can.
    """

    reads: int
    makes: int
    reason: str


@dataclass
class OptionalModules:
    """The gates of a model, the choices that decide about them, and what was asked for but cannot be left out."""

    gates: list[Gate] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)


def candidates(model: nn.Module, depth: bool, branches: Sequence[str]) -> list[str]:
    """Paths of the modules that have to be watched, in the order of the model.

    Args:
        model: the user's.
        depth: whether stages are looked for: children of `nn.Sequential` and `nn.ModuleList`.
        branches: globs of module paths.

    Raises:
        ValueError: a glob that matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    found: set[str] = set()
    for glob in branches:
        matched = {name for name in names if fnmatch(name, glob)}
        if not matched:
            raise ValueError(f"space.branches: {glob!r} matches no module; modules are {names[:20]} ...")
        found |= matched
    if depth:
        for name, module in model.named_modules():
            if isinstance(module, nn.Sequential | nn.ModuleList):
                found |= {f"{name}.{child}".lstrip(".") for child, _ in module.named_children()}
    return [name for name in names if name in found]


def find_optional(
    model: nn.Module,
    passages: Mapping[str, Passage],
    layers: Sequence[str],
    min_depth: int | None,
    branches: Sequence[str],
) -> OptionalModules:
    """The gates of a model.

    Args:
        model: the user's.
        passages: of every candidate that ran.
        layers: paths of the layers that are searched; a block without one is no block.
        min_depth: the least number of blocks that stay in a stage; None searches no depth.
        branches: globs of modules that may be left out by themselves.

    Raises:
        ValueError: a branch that cannot be left out, or no stage whose depth could be searched.
    """
    found = OptionalModules()
    taken: set[str] = set()
    for name, passage in passages.items():
        if any(fnmatch(name, glob) for glob in branches):
            if passage.reason:
                raise ValueError(f"space.branches: {name} cannot be left out: {passage.reason}")
            choice = Choice(f"{name}.branch", "branch", (0, 1))
            found.choices.append(choice)
            found.gates.append(Gate(name, choice.name, 1))
            taken.add(name)
    if min_depth is None:
        return found
    for first, blocks in _stages(model, passages, layers, taken):
        base = int(first is not None)
        total = base + len(blocks)
        least = max(min_depth, base)
        if least >= total:
            continue
        choice = Choice(f"{first or blocks[0]}.depth", "depth", tuple(range(least, total + 1)))
        found.choices.append(choice)
        found.gates += [
            Gate(block, choice.name, base + i + 1) for i, block in enumerate(blocks) if base + i + 1 > least
        ]
    if not any(choice.kind == "depth" for choice in found.choices):
        reasons = sorted({f"{name}: {p.reason}" for name, p in passages.items() if p.reason})[:5]
        raise ValueError(
            f"space.min_depth is {min_depth}, but no stage has more blocks that can be left out; a stage is a run of "
            f"children of an nn.Sequential or nn.ModuleList with shortcuts around them. Reasons: {reasons}"
        )
    return found


def _stages(
    model: nn.Module, passages: Mapping[str, Passage], layers: Sequence[str], taken: set[str]
) -> list[tuple[str | None, list[str]]]:
    """(the block before, if it is of the same type and hands its output on; blocks that can be left out), per stage."""
    found: list[tuple[str | None, list[str]]] = []
    for name, container in model.named_modules():
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        before: str | None = None
        run: list[str] = []
        for child, _ in container.named_children():
            path = f"{name}.{child}".lstrip(".")
            passage = passages.get(path)
            free = passage is not None and not passage.reason and path not in taken and _has_layer(path, layers)
            last = run[-1] if run else before
            follows = last is None or (passage is not None and passages[last].makes == passage.reads)
            if free and follows:
                run.append(path)
                continue
            if run:
                found.append((_alike(model, before, run), run))
            before, run = (None, [path]) if free else (path if path in passages else None, [])
        if run:
            found.append((_alike(model, before, run), run))
    return _outermost(found)


def _alike(model: nn.Module, before: str | None, run: list[str]) -> str | None:
    same = before is not None and type(model.get_submodule(before)) is type(model.get_submodule(run[0]))
    return before if same else None


def _has_layer(path: str, layers: Sequence[str]) -> bool:
    return any(layer == path or layer.startswith(f"{path}.") for layer in layers)


def _outermost(stages: list[tuple[str | None, list[str]]]) -> list[tuple[str | None, list[str]]]:
    """Without stages whose blocks are stages themselves, and without those deep inside of blocks of other stages."""
    containers = {run[0].rpartition(".")[0] for _, run in stages}
    proper = [(first, run) for first, run in stages if not containers & set(run)]
    blocks = [block for _, run in proper for block in run]
    return [
        (first, run)
        for first, run in proper
        if not any(run[0] != block and run[0].startswith(f"{block}.") for block in blocks)
    ]
