"""Epilogues: elementwise kernels that a matrix product can do on its result before it is stored."""

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from bpnet.compiler.commands import ARENA, Command, Fused, FusedKernel, Product, Span, reads, writes

_FIRST, _ZERO = ("operand", 0), ("literal", 0.0)
_ADD = ("add", _FIRST, ("operand", 1))
NAMES: dict[tuple[Any, ...], str] = {
    (("full", "per_column"), _ADD): "BIAS",
    (("full", "per_column"), _ADD, ("maximum", ("value", 0), _ZERO)): "RELU_BIAS",
    (("full",), ("maximum", _FIRST, _ZERO)): "RELU",
}
"""What libraries call a kernel, by the layouts of its operands, the product first, and its operations."""


def epilogue_name(kernel: FusedKernel) -> str | None:
    """What libraries call it, as in NAMES."""
    value = ("value", len(kernel.expressions) - 1)
    (kind, *what), *others = kernel.results
    if others or not kind.startswith("store") or what != [value, 0, "full"]:
        return None
    layouts = tuple(layout for layout, _ in kernel.operands)
    return NAMES.get((layouts, *((op, *references) for op, _, _, *references in kernel.expressions)))


def with_epilogues(
    commands: Sequence[Command], known: Container[str | None] = tuple(NAMES.values())
) -> tuple[Command, ...]:
    """The commands, in which products do what elementwise kernels did, where nobody else reads their results.

    `known`: the names of the epilogues that the target has.
    """
    made = list(commands)
    i = 0
    while i < len(made):
        product = made[i]
        if isinstance(product, Product) and product.stack == 1 and not product.accumulate and not product.epilogue:
            reader = _reader(made, i, product, known)
            if reader is not None:
                epilogue = made.pop(reader)
                assert isinstance(epilogue, Fused)
                made[i] = replace(product, epilogue=epilogue)
        i += 1
    return tuple(made)


def _reader(commands: Sequence[Command], at: int, product: Product, known: Container[str | None]) -> int | None:
    """The number of the kernel that a product can do, if it is the only reader of its result."""
    (raw,) = spans_written(product)
    readers: list[int] = []
    end = None  # where it is overwritten
    for i, command in enumerate(commands[at + 1 :], at + 1):
        readers += [i for span in spans_read(command) if span.overlaps(raw)]
        if any(span.overlaps(raw) for span in spans_written(command)):
            end = i
            break
    if len(readers) != 1 or (end is None and product.out.memory != ARENA):  # read elsewhere, or it stays there
        return None
    (found,) = readers
    kernel = commands[found]
    if not isinstance(kernel, Fused) or (kernel.rows, kernel.columns) != (product.rows, product.columns):
        return None
    if kernel.operands[0] != product.out or epilogue_name(kernel.kernel) not in known:
        return None
    if found == end and kernel.results[0] != product.out:
        return None  # it is overwritten in part
    (out,) = spans_written(kernel)  # its only one
    between = commands[at + 1 : found]
    written = [span for c in between for span in spans_written(c)]
    used = [*spans_read(product), *written, *(span for c in between for span in spans_read(c))]
    if any(out.overlaps(span) for span in used):
        return None  # what it is written to is in use until then
    return None if any(s.overlaps(read) for read in spans_read(kernel)[1:] for s in written) else found


def spans_read(command: Command) -> list[Span]:
    """All memory that a command reads, in the order of its operands."""
    return [array.span for array in reads(command)]


def spans_written(command: Command) -> list[Span]:
    """All memory that a command writes, in the order of its results."""
    return [array.span for array in writes(command)]
