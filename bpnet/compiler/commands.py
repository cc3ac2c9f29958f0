"""What a compiled function does, in order: plain data that every target carries out and a person can read.

Nothing here knows of a target: how commands are cut over threads or blocks is each target's own affair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from bpnet.compiler.ops import BY_COLUMN, GENERATORS, ROW_REDUCTIONS

NUMBERS, ARENA, FIRST = 0, 1, 2
"""Memories: numbers that change from call to call, the arena of intermediate results, and the first argument; the
others follow it, and then new results."""

Reference = tuple[str, Any]
"""("operand", i), ("value", i) of the i-th expression, ("number", i), ("constant", i), or ("literal", x)."""

Expression = tuple[Any, ...]
"""(operation, layout, phase, *references); of what is drawn, as a mask is, the one reference is the number of its
parts, and those of "table" are the numbers that it has for each column."""

KernelResult = tuple[str, Reference, int, str]
"""(kind, reference, phase, layout); kind: "store", "column_sum", "full_sum", "full_max" or "full_min", and where a
target rounds, "store:bfloat16"."""


class Address(NamedTuple):
    """Where an array begins: `offset` bytes into a memory."""

    memory: int
    offset: int

    def __str__(self) -> str:
        name = "arena" if self.memory == ARENA else f"memory {self.memory}"
        return f"{name} + {self.offset}" if self.offset or self.memory == ARENA else name


class Span(NamedTuple):
    """A memory, and from which byte (or entry) of it to before which."""

    memory: int
    start: int
    stop: int

    def overlaps(self, other: "Span") -> bool:
        return self.memory == other.memory and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class Array:
    """An array that begins so many bytes into a memory: those that are passed in or come back have one of their own.

    strides: how many elements apart its entries are along each axis; None: they follow each other.
    """

    shape: tuple[int, ...]
    dtype: str
    memory: int
    offset: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def address(self) -> Address:
        return Address(self.memory, self.offset)

    def overlaps(self, other: "Array") -> bool:
        """Whether they share memory; that is known of columns of the same rows."""
        if not self.span.overlaps(other.span):
            return False
        if self.strides is None or self.strides != other.strides or len(self.strides) != 2 or self.dtype != other.dtype:
            return True
        row = self.strides[0] * item_bytes(self.dtype)
        a, b = (array.shape[1] * item_bytes(array.dtype) for array in (self, other))
        between = (other.offset - self.offset) % row  # columns of the other begin so far behind
        return between < a or between + b > row

    @property
    def span(self) -> Span:
        """All memory from the first of its entries to the last."""
        first, last = 0, prod(self.shape) - 1
        if self.strides is not None and last >= 0:
            steps = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
            first, last = sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps)
        size = item_bytes(self.dtype)
        return Span(self.memory, self.offset + first * size, self.offset + (last + 1) * size)

    def __str__(self) -> str:
        return f"{self.address}: {self.dtype} {' x '.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True)
class Number:
    """A part of a mask that changes from call to call: the slot of a number."""

    slot: int


@dataclass(frozen=True)
class Mask:
    """Random bits for each entry; a keep-mask keeps one where they are below `threshold`.  Of `parts` the first is how
    many entries of the stream come before these, in rows of others; the rest is the stream's key."""

    threshold: int
    parts: tuple[int | Number, ...]


@dataclass(frozen=True)
class FusedKernel:
    """What a kernel does to each entry of its rows and columns, from which code is made.

    It has no sizes and no addresses, so that equal kernels share their code.  A layout says for which entries an array
    or a value has one of its own: "full": each entry, "per_row": each row, "per_column": each column, "scalar": all.
    An array of the layout "window" has one for each entry, too, but its rows don't follow each other.

    operands: (layout, type) of each array that is read.
    numbers: how many it reads of those that change from call to call.
    constants: how many numbers it is given with the command, as 1/n; only 0, 1, -1, 2 and 0.5 are code.
    expressions: each on what stands before it.  A row-wise reduction ("row_sum", "row_max", "row_min") is one with a
    result per row.  The phase of an expression is that in which it is computed: each phase goes along the row once, and
    has the row-wise reductions of those before it.  A value that several phases need is computed in each.  In kernels
    that columns.py makes, whose phases go down the columns, a "column_sum" is an expression with a result per column.
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
        return any(what[0] == "column_sum" for what in (*self.results, *self.expressions))

    @property
    def goes_down_again(self) -> bool:
        """Whether it has to know column-wise sums before it goes down its columns once more."""
        sums = any(e[0] == "column_sum" and e[2] > 0 for e in self.expressions)
        again = any(phase > 0 and layout == "full" for _, _, phase, layout in self.results)
        return not self.reduces_rows and (sums or again)

    @property
    def flat(self) -> bool:
        """Whether rows and columns don't matter, so that it may go over rows x columns entries as one row."""
        plain = all(layout in ("full", "scalar") for layout, _ in self.operands)
        plain = plain and not any(layout == "window" for *_, layout in self.results)
        positions = any(e[0] in BY_COLUMN for e in self.expressions)
        return plain and not (self.reduces_rows or self.reduces_columns or positions)

    def __str__(self) -> str:
        names = {"operand": "in", "value": "t", "number": "number", "constant": "c"}

        def text(reference: Reference) -> str:
            kind, which = reference
            return str(which) if kind == "literal" else f"{names[kind]}{which}"

        lines = [f"in{i}: {layout} {dtype}" for i, (layout, dtype) in enumerate(self.operands)]
        for i, (op, layout, phase, *references) in enumerate(self.expressions):
            given = "" if op in GENERATORS else ", ".join(map(text, references))
            lines.append(f"t{i} = {op}({given})  {layout}{f', phase {phase}' if phase else ''}")
        for i, (kind, reference, phase, layout) in enumerate(self.results):
            lines.append(f"out{i} = {kind}({text(reference)})  {layout}{f', phase {phase}' if phase else ''}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Fused:
    """A fused kernel over rows x columns.

    `numbers` are slots of those that change from call to call; `masks` belong to the expressions of RANDOM, in order.
    `strides`: of each window, the operands before the results, how many elements its rows are apart.
    """

    kernel: FusedKernel
    rows: int
    columns: int
    operands: tuple[Address, ...]
    numbers: tuple[int, ...]
    constants: tuple[float, ...]
    masks: tuple[Mask, ...]
    results: tuple[Address, ...]
    strides: tuple[int, ...] = ()

    @property
    def row_strides(self) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Of each operand, and of each result, how many elements its rows are apart if it is a window, else None."""
        left = iter(self.strides)
        operands = tuple([next(left) if layout == "window" else None for layout, _ in self.kernel.operands])
        return operands, tuple([next(left) if layout == "window" else None for *_, layout in self.kernel.results])

    def shape(self, layout: str) -> tuple[int, int]:
        """Rows and columns of an array in that layout."""
        rows, columns = self.rows, self.columns
        return {"per_row": (rows, 1), "per_column": (1, columns), "scalar": (1, 1)}.get(layout, (rows, columns))

    def __str__(self) -> str:
        operations = [e[0] for e in self.kernel.expressions]
        done = f"{' '.join(operations[:6])}{' ...' if len(operations) > 6 else ''}"
        results = ", ".join(f"{r[0]} to {p}" for r, p in zip(self.kernel.results, self.results, strict=True))
        return f"fused kernel over {self.rows} x {self.columns}: {done}{'; ' if done else ''}{results}"


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory: how many elements its rows and its columns are apart."""

    address: Address
    row_stride: int
    column_stride: int
    stack_stride: int = 0
    """Of several matrices of one kind: how many elements they are apart."""


@dataclass(frozen=True)
class Product:
    """out <- a b, or out <- out + a b, with a of rows x inner, b of inner x columns, and out contiguous.

    stack: how many such products there are, of matrices one after the other.
    precision: "float32" (that of dtype), "tf32", or "bfloat16", in which both factors then lie.
    epilogue: a kernel that follows and reads out first, which nobody else does; a target may do it before it stores.
    """

    dtype: str
    rows: int
    columns: int
    inner: int
    a: Matrix
    b: Matrix
    out: Address
    accumulate: bool
    stack: int = 1
    precision: str = "float32"
    epilogue: "Fused | None" = None

    @property
    def factor_dtype(self) -> str:
        """The type of both factors."""
        return "bfloat16" if self.precision == "bfloat16" else self.dtype

    def __str__(self) -> str:
        sign = "added to" if self.accumulate else "to"
        turned = [m.column_stride != 1 for m in (self.a, self.b)]
        a, b = (f"{m.address}{' transposed' if t else ''}" for m, t in zip((self.a, self.b), turned, strict=True))
        count = f"{self.stack} products" if self.stack > 1 else "product"
        text = f"{count} {self.rows} x {self.inner} x {self.columns}: {a} by {b}, {sign} {self.out}"
        return text if self.epilogue is None else f"{text}, and {self.epilogue}"


@dataclass(frozen=True)
class RowGather:
    """out[i] <- source[index[i]]; numbers below 0 count from the end, and those of no row give one of ones in every bit
    (no number, or a label of no class), since there is nobody to raise an error and no value would be right."""

    rows: int
    source_rows: int
    row_bytes: int
    source: Address
    index: Address
    index_dtype: str
    out: Address

    def __str__(self) -> str:
        return f"row gather of {self.rows} of {self.source_rows} rows: {self.source} by {self.index}, to {self.out}"


@dataclass(frozen=True)
class RowScatterAdd:
    """out[j] <- the sum of source[i] over all i with index[i] = j, for each of `out_rows` rows j; or out[j] plus that.

    Numbers below 0 count from the end, and those of no row are left out.  The rows of a number are added up in their
    order, at most SUMMED of them one after the other, and then these sums, so it depends on `index` alone how.
    """

    dtype: str
    rows: int
    out_rows: int
    columns: int
    source: Address
    index: Address
    index_dtype: str
    out: Address
    accumulate: bool

    def __str__(self) -> str:
        text = f"row scatter-add of {self.rows} rows to {self.out_rows}: {self.source} by {self.index}"
        return f"{text}, {'added to' if self.accumulate else 'to'} {self.out}"


SUMMED = 64
"""Rows that a scatter-add adds up one after the other."""


@dataclass(frozen=True)
class StridedCopy:
    """out <- entries of an array, of `itemsize` bytes, so many `strides` elements apart along each of four axes.

    So arrays are transposed, cut, turned round and repeated.
    """

    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    source: Address
    out: Address

    @property
    def count(self) -> int:
        """How many elements are copied."""
        return prod(self.shape)

    def __str__(self) -> str:
        shape = " x ".join(str(n) for n in self.shape if n != 1) or "1"
        return f"strided copy of {shape}: {self.source}, to {self.out}"


@dataclass(frozen=True)
class Call:
    """A function of the library's arrays that is called as it stands, since it can't be traced.

    outputs: which of the arrays that it gives, and where that is copied.
    captured: None, or of a collective, which works in place: whether all it does is to launch work on a device.
    """

    function: Callable[..., Sequence[Any]]
    text: str
    inputs: tuple[Array | Number, ...]
    outputs: tuple[tuple[int, Array], ...]
    captured: bool | None = None

    def carry_out(self, array: Callable[[Array], Any], number: Callable[[int], float]) -> None:
        """Call it on the arrays and numbers that these two give, and put what it gives where others read it."""
        if self.captured is None:
            made = self.function(*[number(x.slot) if isinstance(x, Number) else array(x) for x in self.inputs])
        else:
            (given,), ((_, result),) = self.inputs, self.outputs
            assert isinstance(given, Array)
            own = array(result)
            if given.address != result.address:  # others read it too
                own[...] = array(given)
            made = self.function(own)
            if made[0] is own:
                return
        for i, out in self.outputs:
            array(out)[...] = made[i]

    def __str__(self) -> str:
        addresses = ", ".join(str(array.address) for _, array in self.outputs)
        return f"not compiled: {self.text}; results to {addresses}"


@dataclass(frozen=True)
class Together:
    """Fused kernels of one row each, or gathers of the same rows, that are one launch: none reads or writes what
    another writes."""

    parts: tuple[Fused | RowGather, ...]

    def __str__(self) -> str:
        return f"together: {'; and '.join(map(str, self.parts))}"


Command = Fused | Together | Product | RowGather | RowScatterAdd | StridedCopy | Call


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


# ---- what commands read and write -----------------------------------------------------------------------------------


def reads(command: Command) -> list[Array]:
    """All that a command reads, in the order of its operands."""
    if isinstance(command, Together):
        return [array for part in command.parts for array in reads(part)]
    if isinstance(command, Fused):
        operands = zip(command.operands, command.kernel.operands, command.row_strides[0], strict=True)
        return [Array(command.shape(of), dtype, *a, _apart(stride)) for a, (of, dtype), stride in operands]
    if isinstance(command, Product):
        found = []
        for m, *shape in (command.a, command.rows, command.inner), (command.b, command.inner, command.columns):
            strides = m.stack_stride, m.row_stride, m.column_stride
            found.append(Array((command.stack, *shape), command.factor_dtype, *m.address, strides))
        found += writes(command)[:1] if command.accumulate else []
        return found + ([] if command.epilogue is None else reads(command.epilogue)[1:])
    if isinstance(command, StridedCopy):
        apart = *(n * command.itemsize for n in command.strides), 1
        return [Array((*command.shape, command.itemsize), "uint8", *command.source, apart)]
    if isinstance(command, Call):
        return [x for x in command.inputs if isinstance(x, Array)]
    index = Array((command.rows,), command.index_dtype, *command.index)
    if isinstance(command, RowScatterAdd):
        total = writes(command) if command.accumulate else []
        return [Array((command.rows, command.columns), command.dtype, *command.source), index, *total]
    return [Array((command.source_rows, command.row_bytes), "uint8", *command.source), index]


def writes(command: Command) -> list[Array]:
    """All that a command writes, in the order of its results."""
    if isinstance(command, Together):
        return [array for part in command.parts for array in writes(part)]
    if isinstance(command, Fused):
        kernel = command.kernel
        results = zip(command.results, kernel.results, command.row_strides[1], strict=True)
        return [Array(command.shape(result_layout(r)), result_dtype(kernel, r), *a, _apart(n)) for a, r, n in results]
    if isinstance(command, Product):
        out = Array((command.stack, command.rows, command.columns), command.dtype, *command.out)
        return [out, *([] if command.epilogue is None else writes(command.epilogue))]
    if isinstance(command, Call):
        return [array for _, array in command.outputs]
    if isinstance(command, RowScatterAdd):
        return [Array((command.out_rows, command.columns), command.dtype, *command.out)]
    if isinstance(command, StridedCopy):
        return [Array((*command.shape, command.itemsize), "uint8", *command.out)]
    return [Array((command.rows, command.row_bytes), "uint8", *command.out)]


def _apart(row_stride: int | None) -> tuple[int, int] | None:
    """The strides of an array of rows."""
    return None if row_stride is None else (row_stride, 1)


def item_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2}.get(dtype, 1)


def result_layout(result: KernelResult) -> str:
    """For which entries of a kernel a result has one of its own."""
    kind, _, _, layout = result
    return layout if kind.startswith("store") else "per_column" if kind == "column_sum" else "scalar"


def result_dtype(kernel: FusedKernel, result: KernelResult) -> str:
    """The type in which a result is stored."""
    return result[0].partition(":")[2] or kernel.dtype
