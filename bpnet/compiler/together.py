"""Fused kernels over vectors that have nothing to do with each other, as one launch.

Weights that decay and those that don't are updated by kernels of their own, and running statistics by another.
"""

from collections.abc import Iterable, Sequence

from bpnet.compiler.commands import Command, Fused, Span, Together
from bpnet.compiler.epilogues import spans_read, spans_written

MOST = 8
"""Kernels that one launch does."""


def side_by_side(commands: Sequence[Command]) -> tuple[Command, ...]:
    """The commands, of which kernels over vectors that follow each other and don't depend on each other are one."""
    made: list[Command] = []
    for command in commands:
        before = made[-1] if made else None
        parts = before.parts if isinstance(before, Together) else (before,) if isinstance(before, Fused) else ()
        if parts and isinstance(command, Fused) and _fits(parts, command):
            made[-1] = Together((*parts, command))
        else:
            made.append(command)
    return tuple(made)


def _fits(parts: Sequence[Fused], more: Fused) -> bool:
    if len(parts) == MOST or any(c.rows > 1 or _reduces(c) for c in (*parts, more)):
        return False
    if any(c.kernel.dtype != more.kernel.dtype for c in parts):
        return False
    return not any(
        _overlap(spans_written(one), [*spans_read(other), *spans_written(other)])
        for part in parts
        for one, other in ((part, more), (more, part))
    )


def _reduces(command: Fused) -> bool:
    kernel = command.kernel
    return kernel.reduces_rows or not all(kind.startswith("store") for kind, *_ in kernel.results)


def _overlap(some: Iterable[Span], others: Sequence[Span]) -> bool:
    return any(one.overlaps(other) for one in some for other in others)
