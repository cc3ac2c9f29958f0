"""Writing functions for LLVM through llvmlite: loops and vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir


class Pointer(ir.PointerType):  # type: ignore[misc]  # llvmlite has no types
    """A pointer, which to LLVM is one whatever lies there, and for us knows of what type that is."""

    def __init__(self, pointee: Any) -> None:
        super().__init__()
        self.pointee = pointee

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pointer) and bool(self.pointee == other.pointee)

    def __hash__(self) -> int:
        return hash((Pointer, self.pointee))


class _Builder(ir.IRBuilder):  # type: ignore[misc]
    """llvmlite's, with the types of what pointers point to."""

    def load(self, ptr: Any, name: str = "", align: Any = None, typ: Any = None) -> Any:
        return super().load(ptr, name, align, typ or getattr(ptr.type, "pointee", None))

    def load_atomic(self, ptr: Any, ordering: str, align: Any, name: str = "", typ: Any = None) -> Any:
        return super().load_atomic(ptr, ordering, align, name, typ or ptr.type.pointee)

    def gep(self, ptr: Any, indices: Any, inbounds: bool = False, name: str = "", source_etype: Any = None) -> Any:
        return super().gep(ptr, indices, inbounds, name, source_etype or ptr.type.pointee)


I1, I8, I32, I64, VOID = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.VoidType()
BYTES = Pointer(I8)
REALS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
SIZES = {"float32": 4, "float64": 8, "int32": 4, "int64": 8, "bool": 1}

Value = Any
"""A value of LLVM's; llvmlite has no types for type checkers."""


@lru_cache(maxsize=1)
def vector_bytes() -> int:
    """Bytes of a vector register of this processor."""
    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


@lru_cache(maxsize=1)
def fuses() -> bool:
    """Whether this processor multiplies and adds in one operation."""
    return bool(llvm.get_host_cpu_features().get("fma")) or not llvm.get_default_triple().startswith(("x86", "i"))


@lru_cache(maxsize=1)
def many_registers() -> bool:
    """Whether there are 32 vector registers, not 16."""
    return vector_bytes() == 64 or llvm.get_host_cpu_name().startswith(("apple", "neoverse", "cortex"))


class Function:
    """A function being written: its arguments, and an LLVM builder with loops and vectors."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[Any], public: bool = False) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(VOID, list(arguments)), name)
        if not public:
            self.function.linkage = "internal"
        self.arguments = self.function.args
        self.b = _Builder(self.function.append_basic_block("entry"))

    def number(self, value: Any) -> Value:
        """A whole number as a value."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1, carry: Sequence[Value] = ()) -> Iterator["Loop"]:
        """for index in range(start, stop, step); `carry` are values that each turn replaces by `loop.next`."""
        b, start, stop, step = self.b, self.number(start), self.number(stop), self.number(step)
        before = b.block
        head, body, end = (b.append_basic_block(name) for name in ("head", "body", "end"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(start, before)
        carried = [b.phi(value.type) for value in carry]
        for phi, value in zip(carried, carry, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", index, stop), body, end)
        b.position_at_end(body)
        loop = Loop(index, carried)
        yield loop
        index.add_incoming(b.add(index, step), b.block)
        for phi, value in zip(carried, loop.next, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(end)

    def at(self, pointer: Value, index: Any) -> Value:
        """Where the element `index` lies."""
        return self.b.gep(pointer, [self.number(index)])

    def product(self, x: Value, y: Any) -> Value:
        return self.b.mul(x, self.number(y))

    def sum(self, x: Value, y: Any) -> Value:
        return self.b.add(x, self.number(y))

    def least(self, x: Any, y: Any) -> Value:
        x, y = self.number(x), self.number(y)
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def most(self, x: Any, y: Any) -> Value:
        x, y = self.number(x), self.number(y)
        return self.b.select(self.b.icmp_signed(">", x, y), x, y)

    def load(self, pointer: Value, lanes: int, align: int) -> Value:
        """A vector of `lanes` elements."""
        kind = ir.VectorType(pointer.type.pointee, lanes)
        return self.b.load(self.b.bitcast(pointer, Pointer(kind)), align=align)

    def store(self, vector: Value, pointer: Value, align: int) -> None:
        self.b.store(vector, self.b.bitcast(pointer, Pointer(vector.type)), align=align)

    def first_lanes(self, count: Value, lanes: int) -> Value:
        """Which lanes of a vector are among the first `count`, which is less than 2**31."""
        numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        return self.b.icmp_signed("<", numbers, self.splat(self.b.trunc(count, I32), lanes))

    def load_some(self, pointer: Value, lanes: Value, align: int) -> Value:
        """A vector of the lanes chosen by `first_lanes`; the others are zero, and nothing is read for them."""
        kind = ir.VectorType(pointer.type.pointee, lanes.type.count)
        zero = ir.Constant(kind, [0] * kind.count)
        place = self.b.bitcast(pointer, Pointer(kind))
        return self.intrinsic(f"masked.load.{suffix(kind)}.p0", kind, [place, ir.Constant(I32, align), lanes, zero])

    def store_some(self, vector: Value, pointer: Value, lanes: Value, align: int) -> None:
        """Store those lanes of a vector that `first_lanes` chose."""
        place = self.b.bitcast(pointer, Pointer(vector.type))
        name = f"masked.store.{suffix(vector.type)}.p0"
        self.intrinsic(name, VOID, [vector, place, ir.Constant(I32, align), lanes])

    def splat(self, x: Value, lanes: int) -> Value:
        """A vector of `lanes` times x."""
        kind = ir.VectorType(x.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(I32, 0))
        return self.shuffle(one, ir.Constant(kind, ir.Undefined), [0] * lanes)

    def shuffle(self, x: Value, y: Value, order: Sequence[int]) -> Value:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))

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
        self.intrinsic("prefetch.p0", VOID, [self.b.bitcast(pointer, BYTES), *kind])

    def intrinsic(self, name: str, result: Any, arguments: Sequence[Value]) -> Value:
        """A call of one of LLVM's own functions."""
        full = f"llvm.{name}"
        known = self.module.globals.get(full)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(result, [a.type for a in arguments]), full)
        return self.b.call(known, list(arguments))


class Loop:
    """One turn of a loop: its index, what it carries from turn to turn, and what the next turn shall find there."""

    def __init__(self, index: Value, values: list[Value]) -> None:
        self.index, self.values = index, values
        self.next: list[Value] = []


def suffix(kind: Any) -> str:
    """How LLVM's functions name a type: f32, v16f32."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{suffix(kind.element)}"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return "f32" if isinstance(kind, ir.FloatType) else "f64"
