"""Epilogues: elementwise kernels that a matrix product can do on its result before it is stored."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bpnet.compiler.commands import ARENA, Command, Fused, FusedKernel, Product, Span, reads, writes

_FIRST, _ZERO = ("operand", 0), ("literal", 0.0)
_ADD = ("add", _FIRST, ("operand", 1))
EPILOGUES: dict[tuple[Any, ...], str] = {
    (("full", "per_column"), _ADD): "BIAS",
    (("full", "per_column"), _ADD, ("maximum", ("value", 0), _ZERO)): "RELU_BIAS",
    (("full",), ("maximum", _FIRST, _ZERO)): "RELU",
}
"""What libraries call a kernel, by the layouts of its operands, the product first, and its operations."""


def epilogue_name(kernel: FusedKernel) -> str | None:
    """What libraries call it, as in EPILOGUES."""
    value = ("value", len(kernel.expressions) - 1)
    (kind, *what), *others = kernel.results
    if others or not kind.startswith("store") or what != [value, 0, "full"]:
        return None
    layouts = tuple(layout for layout, _ in kernel.operands)
    return EPILOGUES.get((layouts, *((op, *references) for op, _, _, *references in kernel.expressions)))


def with_epilogues(commands: Sequence[Command]) -> tuple[Command, ...]:
    """The commands, in which products do what elementwise kernels did, where nobody else reads their results."""
    made = list(commands)
    i = 0
    while i < len(made):
        product = made[i]
        if isinstance(product, Product) and product.stack == 1 and not product.accumulate and not product.epilogue:
            reader = _reader(made, i)
            if reader is not None:
                epilogue = made.pop(reader)
                assert isinstance(epilogue, Fused)
                made[i] = replace(product, epilogue=epilogue)
        i += 1
    return tuple(made)


def _reader(commands: Sequence[Command], at: int) -> int | None:
    """The number of the kernel that a product can do, if it is the only reader of its result."""
    product = commands[at]
    assert isinstance(product, Product)
    (raw,) = spans_written(product)
    found = None
    for i in range(at + 1, len(commands)):
        command = commands[i]
        reads = [span for span in spans_read(command) if span.overlaps(raw)]
        if reads:
            if found is not None or len(reads) > 1 or not isinstance(command, Fused) or not _fits(product, command):
                return None
            found = i
        if any(span.overlaps(raw) for span in spans_written(command)):
            if found is None or (found == i and command.results[0] != product.out):  # type: ignore[union-attr]
                return None  # it is overwritten in part, or before it is read
            break
    else:  # what it gives stays there
        if product.out.memory != ARENA:
            return None
    if found is None:
        return None
    kernel = commands[found]
    (out,) = spans_written(kernel)  # its only one
    between = commands[at + 1 : found]
    moved = [s for c in between for s in (*spans_read(c), *spans_written(c))]
    if any(out.overlaps(span) for span in (*spans_read(product), *moved)):
        return None  # what it is written to is in use until then
    written = [s for c in between for s in spans_written(c)]
    return None if any(s.overlaps(read) for read in spans_read(kernel)[1:] for s in written) else found


def _fits(product: Product, command: Fused) -> bool:
    same = (command.rows, command.columns) == (product.rows, product.columns)
    return same and command.operands[:1] == (product.out,) and epilogue_name(command.kernel) is not None


def spans_read(command: Command) -> list[Span]:
    """All memory that a command reads, in the order of its operands."""
    return [array.span for array in reads(command)]


def spans_written(command: Command) -> list[Span]:
    """All memory that a command writes, in the order of its results."""
    return [array.span for array in writes(command)]
