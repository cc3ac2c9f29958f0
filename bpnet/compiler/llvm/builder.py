"""Writing functions for LLVM through llvmlite: loops and vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm.processor import target


class Pointer(ir.PointerType):  # type: ignore[misc]  # llvmlite has no types
    """A pointer, which to LLVM is one whatever lies there, and for us knows of what type that is."""

    def __init__(self, pointee: Any) -> None:
        super().__init__()
        self.pointee = pointee

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pointer) and bool(self.pointee == other.pointee)

    def __hash__(self) -> int:
        return hash((Pointer, self.pointee))


I1, I8, I32, I64, VOID = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.VoidType()
BYTES = Pointer(I8)
REALS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
SIZES = {"float32": 4, "float64": 8, "int32": 4, "int64": 8, "bool": 1}

Value = Any
"""A value of LLVM's; llvmlite has no types for type checkers."""


def vector_bytes() -> int:
    """Bytes of a vector register of the processor that code is written for."""
    return target().vector_bytes


def fuses() -> bool:
    """Whether that multiplies and adds in one operation."""
    return target().fuses


def many_registers() -> bool:
    """Whether that has 32 vector registers, not 16."""
    return target().many_registers


def _taking_numbers(name: str) -> Any:
    """A method of llvmlite's builder that may be given Python's whole numbers."""
    method = getattr(ir.IRBuilder, name)
    return lambda f, *arguments: method(f, *map(f.number, arguments))


class Function(ir.IRBuilder):  # type: ignore[misc]
    """A function being written: llvmlite's builder with loops and vectors, which knows what pointers point to.

    Whole numbers may be given as Python's where values are computed of them, and as indices.
    """

    add, sub, mul, and_, sdiv, srem, udiv, urem, lshr, select, icmp_signed, icmp_unsigned = map(
        _taking_numbers,
        ("add", "sub", "mul", "and_", "sdiv", "srem", "udiv", "urem", "lshr", "select", "icmp_signed", "icmp_unsigned"),
    )

    def __init__(
        self, module: ir.Module, name: str, arguments: Sequence[Any], public: bool = False, result: Any = VOID
    ) -> None:
        function = ir.Function(module, ir.FunctionType(result, list(arguments)), name)
        if not public:
            function.linkage = "internal"
        self.arguments = function.args
        super().__init__(function.append_basic_block("entry"))

    def load(self, ptr: Any, name: str = "", align: Any = None, typ: Any = None) -> Any:
        return super().load(ptr, name, align, typ or getattr(ptr.type, "pointee", None))

    def number(self, value: Any) -> Value:
        """A whole number as a value."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def blocks(self, *names: str) -> list[Value]:
        """New blocks of instructions, to be filled in any order."""
        return [self.append_basic_block(name) for name in names]

    def phi_from(self, incoming: Any, block: Value) -> Value:
        """A value that depends on the block from which one came: `incoming` from that one."""
        phi = self.phi(self.number(incoming).type)
        phi.add_incoming(self.number(incoming), block)
        return phi

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1, carry: Sequence[Any] = ()) -> Iterator["Loop"]:
        """for index in range(start, stop, step); `carry` are values that each turn replaces by `loop.next`."""
        before, (head, body, end) = self.block, self.blocks("head", "body", "end")
        self.branch(head)
        self.position_at_end(head)
        index, *carried = (self.phi_from(value, before) for value in (start, *carry))
        self.cbranch(self.compare(index, "<", stop), body, end)
        self.position_at_end(body)
        loop = Loop(index, carried)
        yield loop
        for phi, value in zip((index, *carried), (self.add(index, step), *loop.next), strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(end)

    def at(self, pointer: Value, index: Any) -> Value:
        """Where the element `index` lies."""
        return self.gep(pointer, [self.number(index)], source_etype=pointer.type.pointee)

    def entry(self, matrix: Value, row: Any, row_stride: Any, column: Any, column_stride: Any = None) -> Value:
        """Where an entry of a matrix lies, whose rows and columns are so many elements apart (None: one)."""
        along = column if column_stride is None else self.mul(column, column_stride)
        return self.at(matrix, self.add(self.mul(row, row_stride), along))

    def ceil_div(self, x: Value, y: Any) -> Value:
        """How many parts of `y` it takes for `x`."""
        more = self.add(x, y - 1) if isinstance(y, int) else self.add(self.add(x, y), -1)
        return self.sdiv(more, y)

    def round_down(self, x: Value, unit: int) -> Value:
        """The largest multiple of `unit`, a power of two, up to x."""
        return self.and_(x, -unit)

    def compare(self, x: Any, sign: str, y: Any) -> Value:
        return self.icmp_signed(sign, x, y)

    def least(self, x: Any, y: Any) -> Value:
        return self.select(self.compare(x, "<", y), x, y)

    def most(self, x: Any, y: Any) -> Value:
        return self.select(self.compare(x, ">", y), x, y)

    def load_vector(self, pointer: Value, lanes: int, align: int, mask: Value = None) -> Value:
        """A vector of `lanes` elements; those that `mask` does not choose are zero, and nothing is read for them."""
        kind = vector(pointer.type.pointee, lanes)
        typed = self.bitcast(pointer, Pointer(kind))
        if mask is None:
            return self.load(typed, align=align)
        arguments = [typed, ir.Constant(I32, align), mask, constant(pointer.type.pointee, 0, lanes)]
        return self.intrinsic(f"masked.load.{suffix(kind)}.p0", kind, arguments)

    def store_vector(self, value: Value, pointer: Value, align: int, mask: Value = None) -> None:
        """Store a vector, or those of its lanes that `mask` chooses."""
        typed = self.bitcast(pointer, Pointer(value.type))
        if mask is None:
            self.store(value, typed, align=align)
        else:
            arguments = [value, typed, ir.Constant(I32, align), mask]
            self.intrinsic(f"masked.store.{suffix(value.type)}.p0", VOID, arguments)

    def first_lanes(self, count: Value, lanes: int) -> Value:
        """Which lanes of a vector are among the first `count`, which is less than 2**31."""
        return self.icmp_signed("<", constant(I32, list(range(lanes))), self.splat(self.trunc(count, I32), lanes))

    def splat(self, x: Value, lanes: int) -> Value:
        """A vector of `lanes` times x; x where that is one."""
        if lanes == 1:
            return x
        kind = ir.VectorType(x.type, lanes)
        one = self.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(I32, 0))
        return self.shuffle(one, ir.Constant(kind, ir.Undefined), [0] * lanes)

    def lane(self, x: Value, index: Value) -> Value:
        """One lane of a vector; x where that is one."""
        return self.extract_element(x, index) if lanes_of(x) > 1 else x

    def with_lane(self, x: Value, value: Value, index: Value) -> Value:
        """The vector x with another value in one lane."""
        return self.insert_element(x, value, index) if lanes_of(x) > 1 else value

    def shuffle(self, x: Value, y: Value, order: Sequence[int]) -> Value:
        return self.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))

    def transposed(self, rows: Sequence[Value]) -> list[Value]:
        """n vectors of n lanes, as a matrix, transposed: blocks of 1, 2, 4, ... change places across the diagonal."""
        rows, n, d = list(rows), len(rows), 1
        while d < n:
            low = [j if not j & d else n + (j ^ d) for j in range(n)]
            high = [j | d if not j & d else n + j for j in range(n)]
            for i in range(n):
                if not i & d:
                    x, y = rows[i], rows[i + d]
                    rows[i], rows[i + d] = self.shuffle(x, y, low), self.shuffle(x, y, high)
            d *= 2
        return rows

    def prefetch(self, pointer: Value, to_write: bool = False) -> None:
        """Ask for the line of memory at `pointer`, into the first cache."""
        kind = [ir.Constant(I32, n) for n in (int(to_write), 3, 1)]
        self.intrinsic("prefetch.p0", VOID, [self.bitcast(pointer, BYTES), *kind])

    def intrinsic(self, name: str, result: Any, arguments: Sequence[Value]) -> Value:
        """A call of one of LLVM's own functions."""
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return self.call(self.module.declare_intrinsic(f"llvm.{name}", (), kind), list(arguments))


class Kernel(Function):
    """What the thread pool calls: kernel(arguments, tile, bases, scratch), of TYPES.  Arguments are read in order."""

    TYPES = (Pointer(I64), I64, Pointer(BYTES), BYTES)

    def __init__(self, module: ir.Module, name: str) -> None:
        super().__init__(module, name, self.TYPES, public=True)
        self.given, self.tile, self.bases, self.scratch = self.arguments
        self.count = 0

    def argument(self) -> Value:
        self.count += 1
        return self.load(self.at(self.given, self.count - 1))

    def pointer(self, memory: Value, offset: Value, kind: Any = I8) -> Value:
        """Where elements of a kind lie, so many bytes into a memory."""
        return self.bitcast(self.at(self.load(self.at(self.bases, memory)), offset), Pointer(kind))

    def operand(self, kind: Any = I8) -> Value:
        """A pointer to where the next two arguments name."""
        return self.pointer(self.argument(), self.argument(), kind)


@dataclass
class Loop:
    """One turn of a loop: its index, what it carries from turn to turn, and what the next turn shall find there."""

    index: Value
    values: list[Value]
    next: list[Value] = field(default_factory=list)


def vector(kind: Any, lanes: int) -> Any:
    """The type of so many lanes of a kind."""
    return ir.VectorType(kind, lanes) if lanes > 1 else kind


def lanes_of(value: Value) -> int:
    return value.type.count if isinstance(value.type, ir.VectorType) else 1


def constant(kind: Any, value: Any, lanes: int = 1) -> Value:
    """`lanes` times the value, or a list of values, one for each lane."""
    values = value if isinstance(value, list) else [value] * lanes
    return ir.Constant(vector(kind, len(values)), values if len(values) > 1 else values[0])


class _Table(ir.ArrayType):  # type: ignore[misc]
    """Numbers in a row, a pointer to which points to the first."""

    def as_pointer(self, addrspace: int = 0) -> Pointer:
        return Pointer(self.element)


def table(module: ir.Module, kind: Any, values: Sequence[float]) -> Value:
    """Where numbers lie that are part of the code."""
    found = ir.GlobalVariable(module, _Table(kind, len(values)), module.get_unique_name("table"))
    found.linkage, found.global_constant = "internal", True
    found.initializer = ir.Constant(found.value_type, list(values))
    return found


def suffix(kind: Any) -> str:
    """How LLVM's functions name a type: f32, v16f32."""
    return str(f"v{kind.count}{suffix(kind.element)}" if isinstance(kind, ir.VectorType) else kind.intrinsic_name)
