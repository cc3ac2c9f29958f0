"""Functions of arrays as graphs: operations on symbols, each with the shape and the type of its result.

A graph holds the operations in the order in which they were asked for, each once.  What has no place in one raises
NotTraceableError.
"""

import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy

from bpnet.compiler.ops import COMPARISON, OPERATIONS, POINTWISE, REDUCTIONS, SIGNS

EXACT = 2**24
"""Whole numbers up to it are exact in float32, in which they are compared."""

Shape = tuple[int, ...]
Space = tuple[int, int]


class NotTraceableError(Exception):
    """A function does something that has no symbol; it then runs as it stands."""


class Symbol:
    """An array in a graph: an operation on others, and the shape and type of its result.

    Python's operators on it are added below, from the table of operations.
    """

    __array_ufunc__ = None

    def __init__(self, graph: "Graph", op: str, args: tuple[Any, ...], shape: Shape, dtype: Any, number: int) -> None:
        self.graph, self.op, self.args, self.shape, self.dtype, self.number = graph, op, args, shape, dtype, number
        self.block = graph.block

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __bool__(self) -> bool:
        raise NotTraceableError("a function can't decide by a value")

    def __getitem__(self, index: Any) -> "Symbol":
        return self.graph.slice(self, index)

    def __neg__(self) -> "Symbol":
        return self.graph.elementwise("negative", self)

    def __matmul__(self, other: Any) -> "Symbol":
        return self.graph.matmul(self, other)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "scalar"
        args = ", ".join(f"%{a.number}" if isinstance(a, Symbol) else str(a) for a in self.args)
        return f"%{self.number} = {self.op}({args})  {self.dtype.name} {shape}"


def _operator(op: str, reflected: bool) -> Callable[[Symbol, Any], Symbol]:
    if reflected:
        return lambda self, other: self.graph.elementwise(op, other, self)
    return lambda self, other: self.graph.elementwise(op, self, other)


_METHODS = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv"}
_METHODS |= {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "equal": "eq"}
for _op, _method in _METHODS.items():
    setattr(Symbol, f"__{_method}__", _operator(_op, False))
    if OPERATIONS[_op].kind != COMPARISON:
        setattr(Symbol, f"__r{_method}__", _operator(_op, True))


def space_of(symbol: Symbol) -> Space:
    """Rows and columns of the fused kernel that computes the entries of `symbol`."""
    if symbol.ndim == 2:
        return symbol.shape[0], symbol.shape[1]
    return 1, symbol.size


def root_of(symbol: Symbol) -> tuple[Symbol, int]:
    """What a view looks at, and how many elements into it."""
    return (symbol.args[0], symbol.args[1]) if symbol.op == "view" else (symbol, 0)


class Graph:
    """The operations of a function, in their order."""

    def __init__(self, real: Any) -> None:
        self.real = numpy.dtype(real)
        self.symbols: list[Symbol] = []
        self._known: dict[tuple[Any, ...], Symbol] = {}
        self._joined: dict[tuple[int, ...], Symbol] = {}
        # what is computed as a part of a larger array
        self._parts: set[Symbol] = set()
        # how each number is computed, in Python
        self.numbers: list[str] = []
        # the row block to which operations belong. Those of several share no kernel: what a kernel does is not to
        # depend on how many rows there are
        self.block: int | None = None

    def add(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: Any) -> Symbol:
        """The result of an operation; the same operation on the same symbols is done once."""
        if op not in ("memory", "view") and any(a.size == 0 for a in args if isinstance(a, Symbol)):
            raise NotTraceableError(f"{op} of an array without entries")
        key = (op, numpy.dtype(dtype), shape, *map(_identity, args))
        if key not in self._known:
            self._known[key] = Symbol(self, op, args, shape, numpy.dtype(dtype), len(self.symbols))
            self.symbols.append(self._known[key])
        return self._known[key]

    def memory(self, base: int, shape: Shape, dtype: Any) -> Symbol:
        """An array that is passed in."""
        return self.add("memory", (base, 0), shape, dtype)

    def number(self, text: str) -> Symbol:
        """A number that is passed in, or computed of such by Python, in double precision, before anything else."""
        if text not in self.numbers:
            self.numbers.append(text)
        return self.add("number", (self.numbers.index(text),), (), self.real)

    # ---- operations ---------------------------------------------------------------------------------------------

    def elementwise(self, op: str, *args: Any) -> Symbol:
        values = [a if isinstance(a, Symbol) else self._constant(a) for a in args]
        if all(not isinstance(v, Symbol) or v.op == "number" for v in values):
            return self._of_numbers(op, values)
        shapes = [v.shape for v in values if isinstance(v, Symbol)]
        shape = numpy.broadcast_shapes(*shapes)
        if any(isinstance(v, Symbol) and v.op == "transpose" for v in values):
            raise NotTraceableError("a transposed matrix otherwise than in a product")
        if len(shape) > 2 and any(s not in (shape, ()) for s in shapes):
            raise NotTraceableError(f"{op} of {shapes}")
        truths = [isinstance(v, Symbol) and v.dtype == numpy.bool_ for v in values]
        if truths[0] != (op == "where" or (op == "equal" and truths[-1])) or (any(truths[1:]) and op != "equal"):
            raise NotTraceableError(f"{op} of truth values, or of numbers that should be")
        if OPERATIONS[op].kind == COMPARISON:
            self._comparable(op, values)
            dtype: Any = numpy.bool_
        elif any(isinstance(v, Symbol) and v.dtype != self.real for v in (values[1:] if op == "where" else values)):
            raise NotTraceableError(f"{op} of other than {self.real} values")
        else:
            dtype = self.real
        return self.add(op, tuple(values), shape, dtype)

    def _comparable(self, op: str, values: list[Any]) -> None:
        """Whole numbers are compared as numbers of the real type, which is right where one of two is small."""
        if any(isinstance(v, Symbol) and v.dtype.kind == "i" for v in values):
            small = [
                root_of(v)[0].dtype == self.real or v.op == "positions" if isinstance(v, Symbol) else abs(v) < EXACT
                for v in values
            ]
            if not any(small):
                raise NotTraceableError(f"{op} of whole numbers that may be large")

    def _of_numbers(self, op: str, values: list[Any]) -> Symbol:
        if op not in SIGNS or OPERATIONS[op].kind == COMPARISON:
            raise NotTraceableError(f"{op} of numbers")
        texts = [self.numbers[v.args[0]] if isinstance(v, Symbol) else repr(v) for v in values]
        return self.number(f"({SIGNS[op]}{texts[0]})" if len(texts) == 1 else f"({f' {SIGNS[op]} '.join(texts)})")

    @staticmethod
    def _constant(value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise NotTraceableError(f"{value!r} in a function of arrays")
        return float(value)

    def astype(self, x: Symbol, dtype: Any) -> Symbol:
        dtype = numpy.dtype(dtype)
        if dtype == x.dtype:
            return x
        if dtype == self.real and x.dtype == numpy.bool_:
            return self.add("astype", (x,), x.shape, dtype)
        if dtype.kind == "i" and x.dtype.kind == "i":
            return x
        raise NotTraceableError(f"{x.dtype} as {dtype}")

    def reduce(self, op: str, x: Symbol, axis: Any, keepdims: bool) -> Symbol:
        """The "sum", "max" or "min" of x: over all of it, or over rows or columns of a matrix."""
        if x.dtype != self.real or x.op == "transpose":
            raise NotTraceableError(f"{op} of {x.dtype}")
        if isinstance(axis, tuple):
            axis = axis[0] if len(axis) == 1 else axis
            axis = None if axis == tuple(range(x.ndim)) else axis
        if axis is None or x.ndim == 1 or (x.ndim == 2 and axis in (0, -2) and x.shape[1] == 1):
            result = self.add(f"full_{op}", (x,), (1,) * x.ndim, x.dtype)
            left: Shape = () if axis is None or x.ndim == 1 else (1,)
        elif x.ndim != 2 or not isinstance(axis, int) or axis not in (0, 1, -1, -2):
            raise NotTraceableError(f"{op} over axis {axis} of {x.shape}")
        elif axis in (0, -2):
            if f"column_{op}" not in OPERATIONS:
                raise NotTraceableError(f"{op} over rows")
            result, left = self.add(f"column_{op}", (x,), (1, x.shape[1]), x.dtype), x.shape[1:]
        else:
            result, left = self.add(f"row_{op}", (x,), (x.shape[0], 1), x.dtype), x.shape[:1]
        return result if keepdims else self.reshape(result, left)

    def matmul(self, a: Symbol, b: Symbol) -> Symbol:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or {a.dtype, b.dtype} != {self.real}:
            raise NotTraceableError(f"the product of {a.shape} and {b.shape}")
        return self.add("matmul", (a, b), (a.shape[0], b.shape[1]), self.real)

    def transpose(self, x: Symbol) -> Symbol:
        if x.op == "transpose":
            return x.args[0]  # type: ignore[no-any-return]
        return self.add("transpose", (x,), x.shape[::-1], x.dtype)

    def reshape(self, x: Symbol, shape: Any) -> Symbol:
        shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        if -1 in shape:
            rest = math.prod(n for n in shape if n != -1)
            shape = tuple(x.size // max(rest, 1) if n == -1 else n for n in shape)
        if math.prod(shape) != x.size:
            raise NotTraceableError(f"{x.shape} as {shape}")
        if x.op == "view":
            return self._view(x.args[0], x.args[1], shape)
        return x if shape == x.shape else self._view(x, 0, shape)

    def _view(self, x: Symbol, offset: int, shape: Shape) -> Symbol:
        """Elements of x from `offset` on, in another shape."""
        if x.op == "transpose":
            raise NotTraceableError("a transposed matrix otherwise than in a product")
        if offset == 0 and shape == x.shape:
            return x
        if x.op == "concat":  # a part of it may be all that is wanted
            start = 0
            for part in x.args:
                if start == offset and part.size == math.prod(shape):
                    return self.reshape(part, shape)
                start += part.size
        return self.add("view", (x, offset), shape, x.dtype)

    def slice(self, x: Symbol, index: Any) -> Symbol:
        """Successive entries along the first axis."""
        first = index[0] if isinstance(index, tuple) and index else index
        if not isinstance(first, slice) or (isinstance(index, tuple) and index[1:] not in ((), (Ellipsis,))):
            raise NotTraceableError(f"[{index}]")
        start, stop, step = first.indices(x.shape[0])
        if step != 1:
            raise NotTraceableError(f"[{index}]")
        inner, shape = math.prod(x.shape[1:]), (max(stop - start, 0), *x.shape[1:])
        if x.op == "view":
            return self._view(x.args[0], x.args[1] + start * inner, shape)
        return self._view(x, start * inner, shape)

    def take(self, x: Symbol, index: Symbol, axis: int = 0) -> Symbol:
        source = index.args[0] if index.op == "view" else index
        if (
            axis != 0
            or index.ndim != 1
            or index.dtype.kind != "i"
            or x.ndim == 0
            or source.op not in ("memory", "take")
        ):
            raise NotTraceableError("take other than rows, or by numbers that are computed")
        return self.add("take", (x, index), (index.shape[0], *x.shape[1:]), x.dtype)

    def joined(self, parts: Sequence[Symbol], axis: int = 0) -> Symbol:
        """`concat` of any parts: those that can't be computed into the place of a part of it are copied there."""
        parts = [part for part in parts if part.size] or parts[:1]
        key = tuple(part.number for part in parts)
        if key not in self._joined:
            copied = [self._own(part) for part in parts] if len(parts) > 1 else parts
            self._joined[key] = self.concat(copied, axis)
        return self._joined[key]

    def _own(self, part: Symbol) -> Symbol:
        whole, _ = root_of(part)
        own = whole.op in POINTWISE or whole.op in REDUCTIONS or whole.op in ("matmul", "take")
        if not own or whole.size != part.size or whole in self._parts:
            whole = part = self.copy(part, self._parts)
        self._parts.add(whole)
        return part

    def copy(self, x: Symbol, taken: Container[Symbol] = ()) -> Symbol:
        """A copy of x that is none of those `taken`."""
        x = self.add("copy", (x,), x.shape, x.dtype)
        return self.copy(x, taken) if x in taken else x

    def concat(self, parts: Sequence[Symbol], axis: int = 0) -> Symbol:
        """Parts that are each computed into memory of their own, one after the other along the first axis."""
        if axis != 0 or any(p.dtype != self.real or p.op == "transpose" for p in parts):
            raise NotTraceableError("concat along another axis, or of other than numbers")
        if len({p.shape[1:] for p in parts}) > 1 or parts[0].ndim == 0:
            raise NotTraceableError(f"concat of {[p.shape for p in parts]}")
        if len(parts) == 1:
            return parts[0]
        rows = sum(p.shape[0] for p in parts)
        return self.add("concat", tuple(parts), (rows, *parts[0].shape[1:]), self.real)

    def __str__(self) -> str:
        return "\n".join(map(str, self.symbols))


def _identity(value: Any) -> Any:
    """What tells an operand from others: a symbol by itself, a number by its type, value and sign (0.0 is not -0.0)."""
    if isinstance(value, Symbol):
        return Symbol, value.number
    return type(value), value, isinstance(value, float) and math.copysign(1.0, value)
