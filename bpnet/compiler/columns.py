"""Kernels that go down the same columns, one after the other, as one kernel with a phase for each.

Batch normalization needs a column's mean before its variance, and both before any of its entries.  A processor's
threads share such sums out between kernels.  On a GPU a launch takes longer than a few thousand rows, so one block of
threads goes down the same few columns again and again; and of more rows, the last block goes on with the sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bpnet.compiler.commands import (
    ARENA,
    Address,
    Command,
    Expression,
    Fused,
    FusedKernel,
    KernelResult,
    Reference,
    Span,
    reads,
    writes,
)
from bpnet.compiler.epilogues import spans_read, spans_written
from bpnet.compiler.ops import RANDOM


def in_phases(commands: Sequence[Command], most_rows: int) -> tuple[Command, ...]:
    """The commands, of which kernels over the same columns that read each other's column-wise sums are one.

    most_rows: of how many rows a kernel may go down its columns more than once.
    """
    made: list[Command] = []
    for i, command in enumerate(commands):
        together = None
        if made and isinstance(made[-1], Fused) and isinstance(command, Fused):
            together = _together(made[-1], command, commands[i + 1 :], most_rows)
        if together is None:
            made.append(command)
        else:
            made[-1] = together
    return tuple(made)


def _together(first: Fused, second: Fused, later: Sequence[Command], most_rows: int) -> Fused | None:
    """Both as one kernel; None where that can't be or does not pay."""
    again = second.rows == first.rows
    if first.strides or second.strides:
        return None
    if first.rows == 1 or not first.kernel.reduces_columns or first.columns != second.columns:
        return None
    if not (again and first.rows <= most_rows) and (second.rows > 1 or second.masks or second.kernel.reduces_columns):
        return None
    for kernel in (first.kernel, second.kernel):
        if kernel.reduces_rows or any(kind.startswith("full_") for kind, *_ in kernel.results):
            return None
    first = _with_sums_known(first)
    last = max([0, *(phase for phase in _phases_of_entries(first.kernel))])
    known: dict[int, Reference] = {}
    phase, depends = last if again else 0, False
    written = list(zip(writes(first), first.kernel.results, strict=True))
    for i, array in enumerate(reads(second)):
        for other, (_, reference, stored, layout) in written:
            if not array.span.overlaps(other.span):
                continue
            if array != other:  # nor may a row be read for a column where there are as many of both
                return None
            depends = True
            phase = max(phase, stored + (layout == "full"))
            if layout == "per_column":
                known[i] = reference
    if not depends or any(layout == "per_row" for layout, _ in second.kernel.operands if not again):
        return None
    new = writes(second)
    read = [*spans_read(first), *(span for i, span in enumerate(spans_read(second)) if i not in known)]
    kept = [n for n, (array, _) in enumerate(written) if _is_needed(array.span, read, spans_written(second), later)]
    for array in new:
        if any(array.span.overlaps(written[n][0].span) for n in kept):
            return None
        if any(array.span.overlaps(r.span) and array != r for r in reads(first)):
            return None
    results = tuple(first.kernel.results[n] for n in kept)
    first = replace(first, kernel=replace(first.kernel, results=results), results=tuple(first.results[n] for n in kept))
    return _joined(first, second, known, phase)


def _with_sums_known(command: Fused) -> Fused:
    """The kernel, in which column-wise sums are expressions, which later phases may read."""
    expressions, results = list(command.kernel.expressions), []
    for kind, reference, phase, layout in command.kernel.results:
        if kind == "column_sum":
            expressions.append(("column_sum", "per_column", phase, reference))
            kind, reference, phase, layout = "store", ("value", len(expressions) - 1), phase + 1, "per_column"
        results.append((kind, reference, phase, layout))
    return replace(command, kernel=replace(command.kernel, expressions=tuple(expressions), results=tuple(results)))


def _phases_of_entries(kernel: FusedKernel) -> Iterator[int]:
    """The phases in which a kernel goes down its columns."""
    yield from (e[2] for e in kernel.expressions if e[0] == "column_sum")
    yield from (phase for _, _, phase, layout in kernel.results if layout == "full")


def _is_needed(span: Span, read: Sequence[Span], written: Sequence[Span], later: Sequence[Command]) -> bool:
    """Whether what lies there is read by a kernel that reads and writes so much, or by a later command."""
    if span.memory != ARENA or any(map(span.overlaps, read)):
        return True

    def covered(by: Sequence[Span]) -> bool:
        return any(s.memory == span.memory and s.start <= span.start and span.stop <= s.stop for s in by)

    if covered(written):
        return False
    for command in later:
        if any(span.overlaps(s) for s in spans_read(command)):
            return True
        if covered(spans_written(command)):
            return False
    return False


def _joined(first: Fused, second: Fused, known: dict[int, Reference], phase: int) -> Fused:
    """What `second` does in a later phase of `first`, where some of its operands are `known`."""
    second, again = _with_sums_known(second), second.rows == first.rows
    operands, addresses = list(first.kernel.operands), list(first.operands)
    numbers, constants = list(first.numbers), list(first.constants)
    new: dict[Reference, Reference] = {("operand", i): reference for i, reference in known.items()}

    def layout_of(layout: str) -> str:
        return layout if again or layout == "scalar" else "per_column"

    def place(items: list[Any], item: Any) -> int:
        if item not in items:
            items.append(item)
        return items.index(item)

    changed = [array.span for array in writes(first)]
    for i, (operand, array) in enumerate(zip(second.kernel.operands, reads(second), strict=True)):
        if i in known:
            continue
        operand, address = (layout_of(operand[0]), operand[1]), second.operands[i]
        seen = list(zip(operands, addresses, strict=True))
        if (operand, address) in seen and not any(array.span.overlaps(span) for span in changed):
            new["operand", i] = "operand", seen.index((operand, address))
        else:
            new["operand", i] = "operand", len(operands)
            operands.append(operand)
            addresses.append(address)
    new |= {("number", i): ("number", place(numbers, slot)) for i, slot in enumerate(second.numbers)}
    new |= {("constant", i): ("constant", place(constants, value)) for i, value in enumerate(second.constants)}
    before = len(first.kernel.expressions)
    new |= {("value", i): ("value", before + i) for i in range(len(second.kernel.expressions))}

    def expression(e: Expression) -> Expression:
        op, layout, _, *args = e
        return op, layout_of(layout), phase, *(args if op in RANDOM else [new.get(a, a) for a in args])

    def result(r: KernelResult) -> KernelResult:
        kind, reference, own, layout = r
        return kind, new.get(reference, reference), phase + own, layout_of(layout)

    kernel = FusedKernel(
        first.kernel.dtype, tuple(operands), len(numbers), len(constants),
        (*first.kernel.expressions, *map(expression, second.kernel.expressions)),
        (*first.kernel.results, *map(result, second.kernel.results)),
    )  # fmt: skip
    masks, results = (*first.masks, *second.masks), (*first.results, *second.results)
    at: tuple[Address, ...] = tuple(addresses)
    return Fused(kernel, first.rows, first.columns, at, tuple(numbers), tuple(constants), masks, results)
