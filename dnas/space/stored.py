"""In which rows of the peak a stored tensor counts, where blocks may be left out.

A row is one execution of a layer. Where the layer does not run there is no such row, and what would be made after it is made
after the last layer before it that runs.
"""

from collections.abc import Mapping

from dnas.space.choice import INPUT_BITS, ActTensor, Position, Space


def may_count(space: Space, tensor: ActTensor, row: int | None) -> bool:
    """Whether a tensor counts in some architecture: towards traffic (row None) as an input, towards a row of the peak."""
    if row is None:
        return tensor.side == "input"
    first = min([tensor.first, *(first for _, first in tensor.earlier)])
    while first > 0 and space.calls and tensor.side == "input" and space.gates_of(space.calls[first]):
        first -= 1
    return first <= row <= tensor.last


def counts(space: Space, tensor: ActTensor, row: int | None, position: Mapping[str, Position]) -> bool:
    """Whether a tensor counts at one option (by position) per choice: some reader runs, and it exists in the row."""
    if tensor.readers and not any(space.runs(reader, position) for reader in tensor.readers):
        return False
    if row is None:
        return True
    if space.calls and not space.runs(space.calls[row], position):
        return False
    first = tensor.first
    for number, earlier in tensor.earlier:
        if space.is_open(space.gates[number], position):
            break
        first = earlier
    while first > 0 and space.calls and tensor.side == "input" and not space.runs(space.calls[first], position):
        first -= 1
    if space.calls and tensor.last > tensor.first and _is_output(space, tensor):
        waits = any(space.runs(space.calls[at], position) for at in range(tensor.first + 1, tensor.last + 1))
        if not waits:  # for nothing that runs: it becomes what is stored at once
            return False
    return first <= row <= tensor.last


def width(space: Space, tensor: ActTensor, position: Mapping[str, Position]) -> int:
    """Bits of a stored tensor at one option (by position) per choice.

    One that waits for what no layer reads, since those that do are left out, becomes something else: it counts at 8 bits, which
    no other width exceeds.
    """
    if (
        tensor.side != "input"
        and space.calls
        and not any(space.runs(name, position) for name in _consumers(space, tensor))
    ):
        return INPUT_BITS
    choice = space.choice(tensor.choice)
    return choice.act_bits[position[choice.name]]  # type: ignore[index]


def _consumers(space: Space, tensor: ActTensor) -> list[str]:
    """The layers that read what a tensor is, or becomes."""
    return [layer.name for layer in space.layers if layer.act_choice == tensor.choice]


def deciding(space: Space, tensor: ActTensor, row: int | None) -> list[str]:
    """The choices of blocks that `counts` and `width` depend on."""
    gates = [gate for reader in tensor.readers for gate in space.gates_of(reader)]
    if tensor.side != "input" and space.calls:
        gates += [gate for name in _consumers(space, tensor) for gate in space.gates_of(name)]
    gates += [space.gates[number] for number, _ in tensor.earlier]
    if row is not None and space.calls:
        first = min([tensor.first, *(first for _, first in tensor.earlier)])
        rows = {row, *range(min(row, first) + 1, tensor.first + 1)}
        rows |= set(range(tensor.first, tensor.last + 1)) if _is_output(space, tensor) else set()
        gates += [gate for at in sorted(rows) for gate in space.gates_of(space.calls[at])]
    return list(dict.fromkeys(gate.choice for gate in gates))


def _is_output(space: Space, tensor: ActTensor) -> bool:
    """Whether a tensor that waits is what its layer gives, not something that is made of it later."""
    return tensor.side == "output" and space.calls[tensor.first] == tensor.like
