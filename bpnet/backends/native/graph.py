"""Functions of arrays as graphs: a function is called once with symbols, and what it does to them is written down.

A symbol has the shape and the type of the array it stands for.  Layers, losses and optimizers can't tell: they see the
standard's namespace.  What has no symbol here raises NotTraceableError, and the function then runs as it stands.
"""

import functools
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy

from bpnet.backends.base import Backend, Key, Rows, Rule, threshold
from bpnet.backends.trace import BINARY, COMPARISONS, NotTraceableError

ELEMENTWISE = frozenset(
    {*BINARY.values(), *COMPARISONS.values(), "equal", "negative", "abs", "sign", "sqrt", "exp", "log", "log1p"}
    | {"expm1", "tanh", "maximum", "minimum", "where", "astype"}
)
COSTLY = frozenset({"exp", "log", "log1p", "expm1", "tanh"})
"""Worth keeping where two passes need them."""
REDUCTIONS = frozenset({"sum", "max", "min"})
LARGEST_LABEL = 2**24
"""Whole numbers below it are exact in float32, in which they are compared."""

T = TypeVar("T")
Shape = tuple[int, ...]
Space = tuple[int, int]


class Symbol:
    """An array in a graph: an operation on others, and the shape and type of its result."""

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

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> "Symbol":
        return self.graph.slice(self, index)

    def __neg__(self) -> "Symbol":
        return self.graph.elementwise("negative", self)

    def __add__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("add", self, other)

    def __radd__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("add", other, self)

    def __sub__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("subtract", self, other)

    def __rsub__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("subtract", other, self)

    def __mul__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("multiply", self, other)

    def __rmul__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("multiply", other, self)

    def __truediv__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("divide", self, other)

    def __rtruediv__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("divide", other, self)

    def __matmul__(self, other: Any) -> "Symbol":
        return self.graph.matmul(self, other)

    def __gt__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("greater", self, other)

    def __ge__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("greater_equal", self, other)

    def __lt__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("less", self, other)

    def __le__(self, other: Any) -> "Symbol":
        return self.graph.elementwise("less_equal", self, other)

    def __eq__(self, other: Any) -> "Symbol":  # type: ignore[override]
        return self.graph.elementwise("equal", self, other)


def space_of(symbol: Symbol) -> Space:
    """Rows and columns over which a pass goes for the entries of `symbol`."""
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
        self.known: dict[tuple[Any, ...], Symbol] = {}
        self.numbers: list[str] = []
        """How each number is computed, in Python."""
        self.block: int | None = None
        """The row block to which operations belong.  Those of several share no pass: what a pass does, of which there
        is machine code, is not to depend on how many rows there are."""

    def add(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: Any) -> Symbol:
        """The result of an operation; the same operation on the same symbols is done once."""
        key = (op, dtype, shape, *(id(a) if isinstance(a, Symbol) else repr(a) for a in args))
        if key not in self.known:
            self.known[key] = Symbol(self, op, args, shape, numpy.dtype(dtype), len(self.symbols))
            self.symbols.append(self.known[key])
        return self.known[key]

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
        if op in COMPARISONS.values() or op == "equal":
            dtype: Any = numpy.bool_
        elif any(isinstance(v, Symbol) and v.dtype != self.real for v in (values[1:] if op == "where" else values)):
            raise NotTraceableError(f"{op} of other than {self.real} values")
        else:
            dtype = self.real
        return self.add(op, tuple(values), shape, dtype)

    def _of_numbers(self, op: str, values: list[Any]) -> Symbol:
        signs = {name: sign for sign, name in BINARY.items()} | {"negative": "-"}
        if op not in signs:
            raise NotTraceableError(f"{op} of numbers")
        texts = [self.numbers[v.args[0]] if isinstance(v, Symbol) else repr(v) for v in values]
        return self.number(f"({signs[op]}{texts[0]})" if len(texts) == 1 else f"({f' {signs[op]} '.join(texts)})")

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
        if x.dtype != self.real or x.op == "transpose":
            raise NotTraceableError(f"{op} of {x.dtype}")
        if isinstance(axis, tuple):
            axis = axis[0] if len(axis) == 1 else axis
            axis = None if axis == tuple(range(x.ndim)) else axis
        if axis is None or x.ndim == 1:
            kept: Shape = (1,) * x.ndim
            result = self.add(op, (x, "all"), kept, x.dtype)
            return result if keepdims else self.reshape(result, ())
        if x.ndim != 2 or not isinstance(axis, int) or axis not in (0, 1, -1):
            raise NotTraceableError(f"{op} over axis {axis} of {x.shape}")
        if axis == 0:
            if x.shape[1] == 1:
                return (
                    self.reduce(op, x, None, True) if keepdims else self.reshape(self.reduce(op, x, None, True), (1,))
                )
            if op != "sum":
                raise NotTraceableError(f"{op} over rows")
            result = self.add(op, (x, "rows"), (1, x.shape[1]), x.dtype)
            return result if keepdims else self.reshape(result, x.shape[1:])
        result = self.add(op, (x, "columns"), (x.shape[0], 1), x.dtype)
        return result if keepdims else self.reshape(result, x.shape[:1])

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
            shape = tuple(x.size // rest if n == -1 else n for n in shape)
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

    def concat(self, parts: Sequence[Symbol], axis: int = 0) -> Symbol:
        if axis != 0 or any(p.dtype != self.real or p.op == "transpose" for p in parts):
            raise NotTraceableError("concat along another axis, or of other than numbers")
        if len(parts) == 1:
            return parts[0]
        rows = sum(p.shape[0] for p in parts)
        return self.add("concat", tuple(parts), (rows, *parts[0].shape[1:]), self.real)


class Namespace:
    """What of the standard's namespace has symbols."""

    float32, float64, int32, int64 = (numpy.dtype(n) for n in ("float32", "float64", "int32", "int64"))

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.finfo = numpy.finfo
        self.matmul, self.astype, self.reshape, self.take = graph.matmul, graph.astype, graph.reshape, graph.take
        self.concat = graph.concat

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name not in ELEMENTWISE:
            raise NotTraceableError(name)
        return lambda *args: self.graph.elementwise(name, *args)

    def permute_dims(self, x: Symbol, axes: tuple[int, ...]) -> Symbol:
        if axes != (1, 0):
            raise NotTraceableError(f"permute_dims to {axes}")
        return self.graph.transpose(x)

    def expand_dims(self, x: Symbol, *, axis: int = 0) -> Symbol:
        place = axis if axis >= 0 else x.ndim + 1 + axis
        return self.graph.reshape(x, (*x.shape[:place], 1, *x.shape[place:]))

    def sum(self, x: Symbol, *, axis: Any = None, keepdims: bool = False) -> Symbol:
        return self.graph.reduce("sum", x, axis, keepdims)

    def max(self, x: Symbol, *, axis: Any = None, keepdims: bool = False) -> Symbol:
        return self.graph.reduce("max", x, axis, keepdims)

    def min(self, x: Symbol, *, axis: Any = None, keepdims: bool = False) -> Symbol:
        return self.graph.reduce("min", x, axis, keepdims)

    def mean(self, x: Symbol, *, axis: Any = None, keepdims: bool = False) -> Symbol:
        total = self.sum(x, axis=axis, keepdims=keepdims)
        return total / (x.size // total.size)

    def all(self, x: Symbol, *, axis: Any = None) -> Symbol:
        return self.graph.reduce("min", self.astype(x, self.graph.real), axis, False) > 0.5

    def argmax(self, x: Symbol, *, axis: int) -> Symbol:
        """The first place of the largest entry of every row, as a number of the type of x."""
        if x.ndim != 2 or axis not in (1, -1) or x.shape[1] > LARGEST_LABEL:
            raise NotTraceableError(f"argmax over axis {axis} of {x.shape}")
        largest, places = self.max(x, axis=1, keepdims=True), self.arange(x.shape[1], dtype=self.int64)
        beyond = float(x.shape[1])
        found = self.graph.elementwise(
            "where", x == largest, self.graph.add("places", (), places.shape, x.dtype), beyond
        )
        first = self.min(found, axis=1)
        return self.graph.add("view", (first.args[0], 0), first.shape, self.int64) if first.op == "view" else first

    def arange(self, stop: int, *, dtype: Any, device: Any = None) -> Symbol:
        if stop > LARGEST_LABEL:
            raise NotTraceableError("more classes than are told apart")
        return self.graph.add("places", (), (stop,), dtype)


def _matmul(run: Any, a: Symbol, b: Symbol, transpose_a: bool = False, transpose_b: bool = False) -> Symbol:
    """A compiled sum is never of many rows one after the other, so it needs no parts."""
    graph: Graph = run.backend.graph
    return graph.matmul(graph.transpose(a) if transpose_a else a, graph.transpose(b) if transpose_b else b)


def _sum_rows(run: Any, x: Symbol) -> Symbol:
    """As any sum, for the same reason."""
    return run.xp.sum(x, axis=0)  # type: ignore[no-any-return]


class TracingBackend(Backend):
    """The seam as a function sees it while it is traced: every definition as it stands, on symbols."""

    name = "numpy"
    traces = True
    kernels: ClassVar = {"matmul": _matmul, "sum_rows": _sum_rows}

    def __init__(self, real: Any, cut: Callable[[int, float], list[Rows]]) -> None:
        self.graph = Graph(real)
        super().__init__(Namespace(self.graph))
        self.cut = cut
        self.terms: dict[Symbol, list[Symbol]] = {}
        """What `add_to` has added up to a symbol."""

    def device(self, x: Any) -> Any:
        return "cpu"

    def blocks(self, rows: int, work: float) -> list[Rows]:
        return self.cut(rows, work)

    def map_blocks(self, function: Callable[[int, Rows], T], blocks: Sequence[Rows]) -> Generator[T, None, None]:
        for number, rows in enumerate(blocks):
            self.graph.block = number
            result = function(number, rows)
            self.graph.block = None
            yield result

    def total(self, parts: Iterable[T], add: Callable[[T, T], T], large: int = 0) -> T:
        return functools.reduce(add, parts)  # of which `add_to` makes one sum

    def copy(self, x: Any) -> Any:
        return x

    def fuse(self, rule: Rule) -> Rule:
        return rule

    def add_to(self, total: Symbol, part: Symbol) -> Symbol:
        """Part by part, so that a product can be added to those before it, and that all others are one sum."""
        if total.op == part.op == "concat" and [p.shape for p in total.args] == [p.shape for p in part.args]:
            return self.graph.concat([self.add_to(t, p) for t, p in zip(total.args, part.args, strict=True)])
        if total.op == part.op == "view" and total.args[1] == part.args[1] == 0:
            return self.graph.reshape(self.add_to(total.args[0], part.args[0]), total.shape)
        if total.op == part.op == "matmul":
            return self.graph.add("matmul", (*part.args, total), part.shape, part.dtype)
        terms = [*self.terms.get(total, (total,)), part]
        together = self.graph.concat([self.graph.reshape(self._own(term), (1, total.size)) for term in terms])
        found = self.graph.reshape(self.xp.sum(together, axis=0), total.shape)
        self.terms[found] = terms
        return found

    def _own(self, term: Symbol) -> Symbol:
        """`term`, or a copy where it is not computed into memory of its own, which can be a part of a larger one."""
        whole, _ = root_of(term)
        own = whole.op in ELEMENTWISE or whole.op in ("matmul", *REDUCTIONS)
        if own and whole.size == term.size and len(whole.args) < 3:
            return term
        return self.graph.add("copy", (term,), term.shape, term.dtype)

    def keep_mask(self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any) -> Any:
        """The definition's mask, drawn again by every pass that reads it."""
        if any(isinstance(part, Symbol) and part.op != "number" for part in key):
            raise NotTraceableError("a key of random numbers that is computed")
        return self.graph.add("mask", (threshold(keep), *key), tuple(shape), dtype)
