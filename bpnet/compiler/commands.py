"""What a compiled function does, in order: plain data that every target carries out and a person can read.

Nothing here knows of a target: how commands are cut over threads or blocks is each target's own affair.
"""

from dataclasses import dataclass
from typing import Any

from bpnet.compiler.ops import GENERATORS, ROW_REDUCTIONS

NUMBERS, ARENA, FIRST = 0, 1, 2
"""Memories: numbers that change from call to call, the arena of intermediate results, and the first argument; the
others follow it, and then new results."""

Reference = tuple[str, Any]
"""("operand", i), ("value", i) of the i-th expression, ("number", i), ("constant", i), or ("literal", x)."""

Expression = tuple[Any, ...]
"""(operation, layout, phase, *references); of "mask" the one reference is the number of the key's parts."""

KernelResult = tuple[str, Reference, int, str]
"""(kind, reference, phase, layout); kind: "store", "column_sum", "full_sum", "full_max" or "full_min"."""


@dataclass(frozen=True)
class Array:
    """An array that is passed in or comes back: the memory of its own in which it lies."""

    shape: tuple[int, ...]
    dtype: str
    memory: int

    def __str__(self) -> str:
        return f"{Place(self.memory, 0)}: {self.dtype} {' x '.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True)
class Place:
    """Where an array begins: `offset` bytes into a memory."""

    memory: int
    offset: int

    def __str__(self) -> str:
        name = "arena" if self.memory == ARENA else f"memory {self.memory}"
        return f"{name} + {self.offset}" if self.offset or self.memory == ARENA else name


@dataclass(frozen=True)
class Number:
    """A part of a mask's key that changes from call to call: the slot of a number."""

    slot: int


@dataclass(frozen=True)
class Mask:
    """A keep-mask: an entry is kept where its random bits are below `threshold`."""

    threshold: int
    key: tuple[int | Number, ...]


@dataclass(frozen=True)
class FusedKernel:
    """What a kernel does to each entry of its rows and columns, from which code is made.

    No sizes and no places are in it, so that equal kernels share their code.  A layout says for which entries an array
    or a value has one of its own: "full": each entry, "per_row": each row, "per_column": each column, "scalar": all.

    operands: (layout, type) of each array that is read.
    numbers: how many it reads of those that change from call to call.
    constants: how many numbers it is given with the command, as 1/n; only 0, 1, -1, 2 and 0.5 are code.
    expressions: each on what stands before it.  A row-wise reduction ("row_sum", "row_max", "row_min") is one with a
    result per row.  The phase of an expression is that in which it is computed: each phase goes along the row once, and
    has the row-wise reductions of those before it.  A value that several phases need is computed in each.
    results: what is stored, and what is reduced over rows or over everything.

    An operand may lie where a result is stored: entry by entry, all read it in phases up to that in which the result is
    stored (it is updated in place), or all in later ones (they read the result).
    """

    dtype: str
    operands: tuple[tuple[str, str], ...]
    numbers: int
    constants: int
    expressions: tuple[Expression, ...]
    results: tuple[KernelResult, ...]

    @property
    def reduces_rows(self) -> bool:
        """Whether there are row-wise reductions."""
        return any(e[0] in ROW_REDUCTIONS for e in self.expressions)

    @property
    def reduces_columns(self) -> bool:
        """Whether there are column-wise sums."""
        return any(kind == "column_sum" for kind, *_ in self.results)

    @property
    def flat(self) -> bool:
        """Whether rows and columns don't matter, so that it may go over rows x columns entries as one row."""
        plain = all(layout in ("full", "scalar") for layout, _ in self.operands)
        positions = any(e[0] in GENERATORS and e[0] != "mask" for e in self.expressions)
        return plain and not (self.reduces_rows or self.reduces_columns or positions)

    def __str__(self) -> str:
        names = {"operand": "in", "value": "t", "number": "number", "constant": "c"}

        def text(reference: Reference) -> str:
            kind, which = reference
            return str(which) if kind == "literal" else f"{names[kind]}{which}"

        lines = [f"in{i}: {layout} {dtype}" for i, (layout, dtype) in enumerate(self.operands)]
        for i, (op, layout, phase, *references) in enumerate(self.expressions):
            given = "" if op == "mask" else ", ".join(map(text, references))
            lines.append(f"t{i} = {op}({given})  {layout}{f', phase {phase}' if phase else ''}")
        for i, (kind, reference, phase, layout) in enumerate(self.results):
            lines.append(f"out{i} = {kind}({text(reference)})  {layout}{f', phase {phase}' if phase else ''}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Fused:
    """A fused kernel over rows x columns.

    `numbers` are slots of those that change from call to call; `masks` belong to the "mask" expressions, in order.
    """

    kernel: FusedKernel
    rows: int
    columns: int
    operands: tuple[Place, ...]
    numbers: tuple[int, ...]
    constants: tuple[float, ...]
    masks: tuple[Mask, ...]
    results: tuple[Place, ...]

    def __str__(self) -> str:
        operations = [e[0] for e in self.kernel.expressions]
        done = f"{' '.join(operations[:6])}{' ...' if len(operations) > 6 else ''}"
        results = ", ".join(f"{r[0]} to {p}" for r, p in zip(self.kernel.results, self.results, strict=True))
        return f"fused kernel over {self.rows} x {self.columns}: {done}{'; ' if done else ''}{results}"


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory: how many elements its rows and its columns are apart."""

    place: Place
    row_stride: int
    column_stride: int


@dataclass(frozen=True)
class Product:
    """out <- a b, or out <- out + a b, with a of rows x inner, b of inner x columns, and out contiguous."""

    dtype: str
    rows: int
    columns: int
    inner: int
    a: Matrix
    b: Matrix
    out: Place
    accumulate: bool

    def __str__(self) -> str:
        sign = "added to" if self.accumulate else "to"
        turned = [m.column_stride != 1 for m in (self.a, self.b)]
        a, b = (f"{m.place}{' transposed' if t else ''}" for m, t in zip((self.a, self.b), turned, strict=True))
        return f"product {self.rows} x {self.inner} x {self.columns}: {a} by {b}, {sign} {self.out}"


@dataclass(frozen=True)
class RowGather:
    """out[i] <- source[index[i]]; numbers below 0 count from the end, and those of no row give one of ones in every bit
    (no number, or a label of no class), since there is nobody to raise an error and no value would be right."""

    rows: int
    source_rows: int
    row_bytes: int
    source: Place
    index: Place
    index_dtype: str
    out: Place

    def __str__(self) -> str:
        return f"row gather of {self.rows} of {self.source_rows} rows: {self.source} by {self.index}, to {self.out}"


Command = Fused | Product | RowGather


@dataclass(frozen=True)
class CommandList:
    """A function: its commands, and the memories that they work in.

    arena: bytes of intermediate results.
    numbers: how each number that changes from call to call is computed, in Python, where the i-th argument is v<i>.
    arguments, results: None where there is no array.  A result may lie in the memory of an argument that is donated.
    """

    commands: tuple[Command, ...]
    arena: int
    numbers: tuple[str, ...]
    arguments: tuple[Array | None, ...]
    results: tuple[Array | None, ...]

    def __str__(self) -> str:
        lines = [f"argument {i}: {a}" for i, a in enumerate(self.arguments) if a is not None]
        lines += [f"number {i}: {text}" for i, text in enumerate(self.numbers)]
        lines += [f"arena: {self.arena} bytes"]
        lines += [f"{i:>3}  {command}" for i, command in enumerate(self.commands)]
        lines += [f"result {i}: {a}" for i, a in enumerate(self.results) if a is not None]
        return "\n".join(lines)
