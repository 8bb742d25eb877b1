"""Orders of filters: which lose most at few bits, and which stay first."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dnas.search.choices import RelaxedChoices
from dnas.search.importance import filter_importance
from dnas.search.mixed import Mixed, MixedLayer
from dnas.space.choice import Choice, Space
from quant.quantizer import quantize


def filter_table(space: Space, choices: RelaxedChoices, width: int) -> tuple[Tensor, Tensor]:
    """For every channel of every group: how many filters each option keeps, and where the options' weights are.

    Where every filter decides, its two options keep none and all.

    Args:
        space: the space.
        choices: its relaxed choices.
        width: K, the most options that a choice has.

    Returns:
        shape (channels, K); and shape (channels,), indices into the (D + 1, K) matrix of weights, whose last row is that of
        groups which keep all.
    """
    options: list[tuple[int, ...]] = []
    rows: list[int] = []
    for group in space.groups:
        choice, size = space.choice(group.choice), group.size
        found = (0, size) if choice.by_filter else choice.options
        options += [(*found, *(size,) * (width - len(found)))[:width]] * size
        first = choices.index[choice.name].start if choice.searched else len(choices.sizes)
        rows += [first + (i // choice.block if choice.by_filter else 0) for i in range(size)]
    return torch.tensor(options, dtype=torch.int64), torch.tensor(rows, dtype=torch.int64)


@torch.no_grad()
def place_filters(space: Space, choices: RelaxedChoices, layers: Mapping[str, MixedLayer], model: nn.Module) -> None:
    """Sets the places of all filters that decide: those that lose most at the narrowest width first.

    A filter loses the relative error of its weights times its importance for its group.

    Args:
        space: the space.
        choices: whose `places` are set.
        layers: the mixed layers by name.
        model: holds the modules that the channels pass through.
    """
    for layer in space.layers:
        mixed = layers[layer.name]
        if not mixed.block:
            continue
        importance = torch.ones(len(layer.outputs))
        for index in layer.outputs.counts:
            members = {name: layers[name].layer for name in space.groups[index].members}
            found = filter_importance(space, index, members, model)
            for channel, (group, position) in enumerate(zip(layer.outputs.group, layer.outputs.position, strict=True)):
                if group == index and members:
                    importance[channel] = found[position]
        weight: Tensor = mixed.layer.weight  # type: ignore[assignment]
        place(choices, mixed, weight.detach().transpose(0, mixed.axis), importance)


@torch.no_grad()
def place(choices: RelaxedChoices, mixed: Mixed, x: Tensor, importance: Tensor) -> None:
    """Orders the decisions about x by their relative errors at the narrowest width.

    Args:
        choices: whose `places` are set.
        mixed: holds the narrowest grid and its steps.
        x: filters or channels first.
        importance: shape (filters,).
    """
    rows = choices.index.get(mixed.choice)
    if rows is None:
        return
    errors = (quantize(x, mixed.steps[0].detach(), mixed.specs[0]) - x).flatten(1).square().sum(1)
    value = (errors / x.flatten(1).square().sum(1).clamp_min(1e-30)).cpu() * importance
    blocks = torch.stack([part.sum() for part in value.split(mixed.block)])
    order = torch.argsort(blocks, descending=True, stable=True)
    choices.places[rows.start + order] = torch.arange(len(order), device=choices.places.device)


def force_first(space: Space, choices: RelaxedChoices, offsets: Sequence[int], ranks: Tensor) -> None:
    """Of every group whose filters decide, the first-ranked always stay: as many as have to.

    Args:
        space: the space.
        choices: whose `forced` are set.
        offsets: where each group's ranks begin.
        ranks: of the filters of all groups.
    """
    choices.forced.zero_()
    for index, group in enumerate(space.groups):
        choice = space.choice(group.choice)
        if not choice.by_filter:
            continue
        first, own = choices.index[choice.name].start, ranks[offsets[index] : offsets[index] + group.size]
        kept = first_ranked(choice, choice.options[0], own)
        choices.forced[[first + position // choice.block for position in kept]] = True


def first_ranked(choice: Choice, count: int, ranks: Tensor) -> tuple[int, ...]:
    """The `count` filters of a group that rank first; where blocks of filters decide, those of whole blocks.

    A block ranks as the first of its filters. A last block that is shorter only stays where all do.

    Args:
        choice: of the group's filters.
        count: one of its options.
        ranks: of the group's filters; shape (size,).
    """
    size, block = len(ranks), choice.block
    if not choice.by_filter:
        return tuple((ranks < count).nonzero().flatten().tolist())
    best = nn.functional.pad(ranks, (0, choice.count * block - size), value=size).view(choice.count, block).amin(1)
    if size % block:
        best[-1] = size
    stays = torch.zeros(choice.count, dtype=torch.bool, device=ranks.device)
    stays[best.argsort()[: -(-count // block)]] = True
    return tuple(stays.repeat_interleave(block)[:size].nonzero().flatten().tolist())


def keeping_order(choice: Choice, chances: Tensor, ranks: Tensor) -> list[int]:
    """The decisions of a group: the most probable to stay first, of equal ones the first-ranked.

    Args:
        choice: whether each filter (or block of filters) stays.
        chances: to stay; shape (decisions,).
        ranks: of the group's filters; shape (size,).
    """
    best = [int(ranks[i * choice.block : (i + 1) * choice.block].min()) for i in range(choice.count)]
    return sorted(range(choice.count), key=lambda i: (-float(chances[i]), best[i]))


def allowed(choice: Choice, kept: Sequence[int], order: Sequence[int], size: int) -> tuple[int, ...]:
    """The decisions to keep filters, with the next in the order added until their number is an option.

    Args:
        choice: whether each filter (or block of filters) stays.
        kept: 1 for a decision to keep, else 0.
        order: the decisions, the first to stay first.
        size: filters of the group.
    """
    count = sum(kept)
    while count < choice.count and count * choice.block not in choice.options:
        count += 1
    if count < choice.count:  # a last block that is shorter only stays where all do
        order = [i for i in order if (i + 1) * choice.block <= size]
    return tuple(int(i in order[:count]) for i in range(choice.count))
