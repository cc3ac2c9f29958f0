"""Commands that have nothing to do with each other, as one launch.

Weights that decay and those that don't are updated by kernels of their own, and running statistics by another; and x, y
and weights of the same rows are gathered, each for itself.
"""

from collections.abc import Sequence

from bpnet.compiler.commands import Command, Fused, RowGather, Span, Together
from bpnet.compiler.epilogues import spans_read, spans_written

MOST = 8
"""Commands that one launch does."""
MOST_ENTRIES = 2**22
"""And of vectors entries, beyond which a launch of its own does not count; an estimate, not yet measured."""
MOST_ARGUMENTS = 512
"""What one launch is given, of 8 bytes at most: CUDA before 12.1 takes 4 KB (CUDA C++ Programming Guide)."""


def side_by_side(commands: Sequence[Command]) -> tuple[Command, ...]:
    """The commands, of which kernels over vectors that follow each other are one, and gathers of the same rows."""
    made: list[Command] = []
    for command in commands:
        at = _partner(made, command)
        if at is None:
            made.append(command)
        else:
            made[at] = Together((*_parts(made[at]), command))  # type: ignore[arg-type]
    return tuple(made)


def _partner(made: Sequence[Command], command: Command) -> int | None:
    """The number of the command that can be one with another, which may be done as early as that."""
    for i in range(len(made) - 1, -1, -1):
        if _depend(made[i], command):
            return None
        if _alike(_parts(made[i]), command):
            return i
        if not isinstance(command, RowGather):
            return None
    return None


def _parts(command: Command) -> tuple[Command, ...]:
    return command.parts if isinstance(command, Together) else (command,)


def _alike(parts: Sequence[Command], more: Command) -> bool:
    if len(parts) == MOST:
        return False
    if isinstance(more, RowGather):
        same = more.rows, more.index, more.index_dtype
        return all(isinstance(c, RowGather) and (c.rows, c.index, c.index_dtype) == same for c in parts)
    every = [c for c in (*parts, more) if isinstance(c, Fused) and c.rows == 1 and not _reduces(c)]
    if len(every) <= len(parts) or len({c.kernel.dtype for c in every}) > 1:
        return False
    return sum(c.columns for c in every) <= MOST_ENTRIES and sum(map(_arguments, every)) <= MOST_ARGUMENTS


def _arguments(command: Fused) -> int:
    """How much it is given: 6 for blocks, sizes, scratch, tickets and numbers; then arrays, numbers, and masks."""
    arrays, numbers = len(command.operands) + len(command.results), len(command.numbers) + len(command.constants)
    return 6 + arrays + len(command.strides) + numbers + sum(2 + len(mask.parts) for mask in command.masks)


def _reduces(command: Fused) -> bool:
    kernel = command.kernel
    return kernel.reduces_rows or not all(kind.startswith("store") for kind, *_ in kernel.results)


def _depend(one: Command, other: Command) -> bool:
    """Whether one writes what the other reads or writes."""

    def overlap(some: Sequence[Span], others: Sequence[Span]) -> bool:
        return any(a.overlaps(b) for a in some for b in others)

    read, written = spans_read(one), spans_written(one)
    return overlap(written, [*spans_read(other), *spans_written(other)]) or overlap(spans_written(other), read)
