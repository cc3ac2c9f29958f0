"""Functions of arrays as graphs: operations on symbols, each with the shape and the type of its result.

A graph holds the operations in the order in which they were asked for, each once.  What has no place in one raises
NotTraceableError.
"""

import functools
import itertools
import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy

from bpnet.compiler.ops import COMPARISON, INTO_MEMORY, LOGICAL, LOOKS, OPERATIONS, POINTWISE, REDUCTIONS, SIGNS
from bpnet.compiler.symbols import NotTraceableError, Shape, Symbol, axes_of, root_of, strides_of

EXACT = 2**24
"""Whole numbers up to it are exact in float32, in which they are compared."""

WIDE = 16
"""Rows as long as that keep a processor's lanes busy, so that products by a vector need no loops of their own."""


class CallSite:
    """A function of arrays that is called as it stands: it gives a list of arrays; `text` says what it is and why.

    `captured`: None, or of a collective, which works in place: whether all it does is to launch work on a device.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], text: str, captured: bool | None = None) -> None:
        self.function, self.text, self.captured = function, text, captured

    def __str__(self) -> str:
        return self.text


class Graph:
    """The operations of a function, in their order."""

    def __init__(self, real: Any) -> None:
        self.real = numpy.dtype(real)
        self.symbols: list[Symbol] = []
        self._known: dict[tuple[Any, ...], Symbol] = {}
        self._joined: dict[tuple[int, ...], Symbol] = {}
        self._parts: set[Symbol] = set()  # what is computed as a part of a larger array
        self._placed = 0  # how many parts have been computed into columns of a larger array
        self.numbers: list[str] = []  # how each number is computed, in Python
        # the row block to which operations belong; those of several share no kernel, whose work is not to depend on
        # how many rows there are
        self.block: int | None = None

    def add(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: Any) -> Symbol:
        """The result of an operation; the same operation on the same symbols is done once."""
        if op not in ("memory", *LOOKS) and any(a.size == 0 for a in args if isinstance(a, Symbol)):
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

    def table(self, values: Sequence[float]) -> Symbol:
        """A vector of numbers that are known: each kernel that reads it has them in its code."""
        known = tuple(self._constant(value) for value in values)
        op, args = ("table", known) if len(known) > 1 else ("copy", known)
        return self.add(op, args, (len(known),), self.real)

    def call(
        self,
        function: Callable[..., Sequence[Any]],
        text: str,
        inputs: Sequence[Symbol],
        outputs: Sequence[Any],
        captured: bool | None = None,
    ) -> list[Symbol]:
        """What `function` gives for arrays: others with these shapes and types, of which nothing else is known."""
        site, inputs = CallSite(function, text, captured), [self.in_order(x) for x in inputs]
        for _, dtype in outputs:
            if numpy.dtype(dtype) not in (self.real, "int32", "int64", "bool"):
                raise NotTraceableError(f"{text} gives {dtype} values")
        return [self.add("called", (site, i, *inputs), shape, dtype) for i, (shape, dtype) in enumerate(outputs)]

    # ---- operations ---------------------------------------------------------------------------------------------

    def elementwise(self, op: str, *args: Any) -> Symbol:
        values = [self.by_rows(a) if isinstance(a, Symbol) else self._constant(a) for a in args]
        symbols = [v for v in values if isinstance(v, Symbol)]
        if all(v.op == "number" for v in symbols):
            return self._of_numbers(op, values)
        shape = numpy.broadcast_shapes(*(v.shape for v in symbols))
        values = [self._fitting(v, shape) if isinstance(v, Symbol) else v for v in values]
        truths = [isinstance(v, Symbol) and v.dtype == numpy.bool_ for v in values]
        logical = op in LOGICAL or (op in ("equal", "not_equal") and all(truths))
        if truths != ([True] * len(values) if logical else [op == "where", *[False] * (len(values) - 1)]):
            raise NotTraceableError(f"{op} of truth values, or of numbers that should be")
        if OPERATIONS[op].kind == COMPARISON:
            self._comparable(op, values)
        elif any(v.dtype != self.real for v in (symbols[1:] if op == "where" else symbols)):
            raise NotTraceableError(f"{op} of other than {self.real} values")
        return self.entries(op, values, shape, numpy.bool_ if OPERATIONS[op].kind == COMPARISON else self.real)

    def entries(self, op: str, args: Sequence[Any], shape: Shape, dtype: Any) -> Symbol:
        """What is computed entry by entry: where it has three axes or more, a view of the matrix of its rows.

        So all that has the same rows can share a kernel, however its other axes are called.
        """
        if len(shape) < 3:
            return self.add(op, tuple(args), shape, dtype)
        args = tuple(self.matrix(a) if isinstance(a, Symbol) else a for a in args)
        return self._view(self.add(op, args, (math.prod(shape[:-1]), shape[-1]), dtype), 0, shape)

    def matrix(self, x: Symbol) -> Symbol:
        """The rows of x, along its last axis, one below the other; what has two axes or fewer is as it is."""
        if x.ndim < 3:
            return x
        shape = math.prod(x.shape[:-1]), x.shape[-1]
        return self.add("window", x.args, shape, x.dtype) if x.op == "window" else self._view(*root_of(x), shape)

    def _fitting(self, x: Symbol, shape: Shape) -> Symbol:
        """x, or where a kernel over `shape` can't tell which entry belongs to which, a copy in that shape."""
        padded = (1,) * (len(shape) - x.ndim) + x.shape
        if padded == shape or x.size == 1:
            return x
        per_row = x.ndim == len(shape) and x.shape[:-1] == shape[:-1] and x.shape[-1] == 1
        per_column = padded[-1] == shape[-1] == x.size
        if per_row or per_column:
            return x
        return self.broadcast_to(x, shape)

    def broadcast_to(self, x: Symbol, shape: Sequence[int]) -> Symbol:
        """A copy of x in another shape, along whose further axes and for whose axes of one entry it is repeated."""
        shape = tuple(shape)
        root, offset, strides = strides_of(x)
        padded = (1,) * (len(shape) - x.ndim) + x.shape
        strides = (0,) * (len(shape) - x.ndim) + strides
        repeated = (n == 1 < m for n, m in zip(padded, shape, strict=True))
        return self.strided(root, offset, tuple(0 if r else n for r, n in zip(repeated, strides, strict=True)), shape)

    def _comparable(self, op: str, values: list[Any]) -> None:
        """Whole numbers are compared as numbers of the real type, which is right where one of two is small."""
        whole = any(isinstance(v, Symbol) and v.dtype.kind == "i" for v in values)
        if whole and values[0] is not values[1]:
            roots = [root_of(v)[0] for v in values if isinstance(v, Symbol)]
            small = any(r.dtype == self.real or r.op in ("positions", "copy") for r in roots)
            if not small and all(isinstance(v, Symbol) or abs(v) >= EXACT for v in values):
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
        if dtype == x.dtype or (dtype.kind == "i" and x.dtype.kind == "i"):
            return x
        if dtype == self.real and x.dtype.kind in "bi":  # an integer operand is read as a number of the kernel's type
            return self.entries("astype" if x.dtype == numpy.bool_ else "copy", (self.by_rows(x),), x.shape, dtype)
        if dtype == numpy.bool_ and x.dtype == self.real:
            return self.elementwise("not_equal", x, 0.0)
        if dtype.kind == "i" and x.dtype == self.real:  # without what is behind the point, also where it is not stored
            return self.entries("copy", (self.elementwise("trunc", x),), x.shape, dtype)
        raise NotTraceableError(f"{x.dtype} as {dtype}")

    def power(self, x: Symbol, exponent: Any) -> Symbol:
        """x**exponent for a whole number, by squares, or a half of one; of a number that is passed in, for any."""
        if x.op == "number" and type(exponent) in (int, float):
            return self.number(f"({self.numbers[x.args[0]]} ** {exponent!r})")
        if type(exponent) not in (int, float) or exponent * 2 != int(exponent * 2) or abs(exponent) > 64:
            raise NotTraceableError(f"a power of {exponent!r}")
        if exponent < 0:
            return self.elementwise("divide", 1.0, self.power(x, -exponent))
        whole = int(exponent)
        factors = [self.elementwise("sqrt", x)] if exponent != whole else []
        while whole:
            if whole % 2:
                factors.append(x)
            x, whole = self.elementwise("multiply", x, x) if whole > 1 else x, whole // 2
        if not factors:
            return self.entries("copy", (1.0,), x.shape, self.real)
        return functools.reduce(lambda a, b: self.elementwise("multiply", a, b), factors)

    def reduce(self, op: str, x: Symbol, axis: Any = None, keepdims: bool = False) -> Symbol:
        """The "sum", "max" or "min" of x over some of its axes."""
        x = self.by_rows(x)
        if x.dtype != self.real:
            raise NotTraceableError(f"{op} of {x.dtype}")
        axes = axes_of(axis, x.ndim)
        if not axes:
            return x
        others = tuple(i for i in range(x.ndim) if i not in axes)
        left = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        # in one kernel with what reads it, also where there is one row
        along_rows = x.ndim > 1 and axes == (x.ndim - 1,)
        if math.prod(left) == 1 and x.size and not along_rows:
            x = self.matrix(x)
            result = self.add(f"full_{op}", (x,), (1,) * x.ndim, x.dtype)
        elif axes == tuple(range(len(axes))) and op == "sum":
            down = math.prod(x.shape[: len(axes)])
            rows = self.matrix(x) if len(others) == 1 else self.reshape(x, (down, math.prod(left)))
            result = self.add("column_sum", (rows,), (*(1,) * (rows.ndim - 1), rows.shape[-1]), x.dtype)
        else:
            if axes != tuple(range(x.ndim - len(axes), x.ndim)):
                x = self.in_order(self.permute(x, others + axes))
            rows = self.matrix(x) if len(axes) == 1 else self.reshape(x, (math.prod(left), -1))
            result = self.add(f"row_{op}", (rows,), (*rows.shape[:-1], 1), x.dtype)
        return self.reshape(result, left if keepdims else tuple(n for i, n in enumerate(left) if i not in axes))

    def matmul(self, a: Symbol, b: Symbol) -> Symbol:
        """Of matrices, and of stacks of them with as many matrices; of one matrix by each of a stack as one product."""
        if a.ndim == 1 or b.ndim == 1:  # a vector is a row on the left, and a column on the right
            rows, columns = (self.reshape(x, s) if x.ndim == 1 else x for x, s in ((a, (1, -1)), (b, (-1, 1))))
            left = (*rows.shape[: -2 if a.ndim == 1 else -1], *columns.shape[columns.ndim if b.ndim == 1 else -1 :])
            return self.reshape(self.matmul(rows, columns), left)
        if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2] or {a.dtype, b.dtype} != {self.real}:
            raise NotTraceableError(f"the product of {a.shape} and {b.shape}")
        if b.ndim == 2 < a.ndim:
            rows = self.reshape(self.in_order(a), (-1, a.shape[-1]))
            return self.reshape(self.matmul(rows, b), (*a.shape[:-1], b.shape[1]))
        a, b = (x if x.ndim == 2 else self._whole(x) for x in (a, b))
        stack = numpy.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (x if x.shape[:-2] == stack else self.broadcast_to(x, (*stack, *x.shape[-2:])) for x in (a, b))
        if not stack and 1 in (a.shape[1], b.shape[1]) and max(min(a.shape), b.shape[1]) >= WIDE:
            return self._by_vector(a, b)
        return self.add("matmul", (a, b), (*stack, a.shape[-2], b.shape[-1]), self.real)

    def _by_vector(self, a: Symbol, b: Symbol) -> Symbol:
        """A product of or by a single column, as what others can share a kernel with: no entry is used twice."""
        (m, k), n = a.shape, b.shape[1]
        if k == 1:
            return self.elementwise("multiply", self.reshape(a, (m, 1)), self.reshape(b, (1, n)))
        if a.op == "transpose":
            each = self.elementwise("multiply", a.args[0], self.reshape(b, (k, 1)))
            return self.reshape(self.reduce("sum", each, 0, True), (m, 1))
        return self.reduce("sum", self.elementwise("multiply", a, self.reshape(b, (1, k))), 1, True)

    def transpose(self, x: Symbol) -> Symbol:
        """x with its last two axes swapped, which products can read as it is."""
        if x.op == "transpose":
            return x.args[0]  # type: ignore[no-any-return]
        return self.add("transpose", (x,), (*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)

    def permute(self, x: Symbol, axes: Sequence[int]) -> Symbol:
        """x with its axes in another order."""
        axes = tuple(axis % x.ndim for axis in axes)
        if axes == tuple(range(x.ndim)):
            return x
        if axes == (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2):
            return self.transpose(x)
        root, offset, strides = strides_of(x)
        return self.strided(root, offset, tuple(strides[i] for i in axes), tuple(x.shape[i] for i in axes))

    def _move_axis(self, x: Symbol, source: int, target: int) -> Symbol:
        axes = list(range(x.ndim))
        axes.insert(target, axes.pop(source))
        return self.permute(x, axes)

    def in_order(self, x: Symbol) -> Symbol:
        """x with its entries in the order of its axes, one after the other."""
        return self.strided(*strides_of(x), x.shape) if x.op in ("transpose", "window") else x

    def by_rows(self, x: Symbol) -> Symbol:
        """x with the entries of a row one after the other, as fused kernels read it."""
        return self.in_order(x) if x.op == "transpose" else x

    def _whole(self, x: Symbol) -> Symbol:
        """x, or its transpose, of what is in order."""
        return self.transpose(self.in_order(x.args[0])) if x.op == "transpose" else self.in_order(x)

    def strided(self, x: Symbol, offset: int, strides: Shape, shape: Shape) -> Symbol:
        """Entries of x in its memory, from `offset` on and so many elements apart along each axis."""
        following = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if all(n == 1 or a == b for n, a, b in zip(shape, strides, following, strict=True)) or 0 in shape:
            return self._view(x, offset if math.prod(shape) else 0, shape)
        return self.add("strided", (x, offset, strides), shape, x.dtype)

    def _looked_at(self, x: Symbol, offset: int, strides: Shape, shape: Shape) -> Symbol:
        """As `strided`, but some columns of all rows are left where they are: who reads them goes from row to row."""
        rows = [(n, stride) for n, stride in zip(shape[:-1], strides[:-1], strict=True) if n != 1]
        regular = all(a == m * b for (_, a), (m, b) in itertools.pairwise(rows))
        if not rows or not regular or shape[-1] < 2 or strides[-1] != 1 or rows[-1][1] <= shape[-1] or 0 in shape:
            return self.strided(x, offset, strides, shape)
        if x.dtype != self.real:
            return self.strided(x, offset, strides, shape)
        return self.add("window", (x, offset, rows[-1][1]), shape, x.dtype)

    def reshape(self, x: Symbol, shape: Any) -> Symbol:
        shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        if -1 in shape:
            rest = math.prod(n for n in shape if n != -1)
            shape = tuple(x.size // max(rest, 1) if n == -1 else n for n in shape)
        if math.prod(shape) != x.size:
            raise NotTraceableError(f"{x.shape} as {shape}")
        return self._view(*root_of(self.in_order(x)), shape)

    def _view(self, x: Symbol, offset: int, shape: Shape) -> Symbol:
        """Elements of x from `offset` on, in another shape."""
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
        """x[index] of whole numbers, slices, None and Ellipsis."""
        items = list(index) if isinstance(index, tuple) else [index]
        if any(not (i is None or i is Ellipsis or isinstance(i, int | slice)) for i in items):
            raise NotTraceableError(f"[{index}]")
        at = items.index(Ellipsis) if Ellipsis in items else len(items)
        missing = x.ndim - sum(i is not None and i is not Ellipsis for i in items)
        items[at : at + 1] = [slice(None)] * missing
        root, offset, strides = strides_of(x)
        axes, left = [], iter(zip(x.shape, strides, strict=True))
        for item in items:
            if item is None:
                axes.append((1, 0))
                continue
            n, stride = next(left)
            some = range(n)[item]  # or the error that an array gives
            if isinstance(some, int):
                offset += some * stride
            else:
                offset += some.start * stride if some else 0
                axes.append((len(some), some.step * stride))
        return self._looked_at(root, offset, tuple(stride for _, stride in axes), tuple(n for n, _ in axes))

    def take(self, x: Symbol, index: Symbol, axis: int = 0) -> Symbol:
        if index.dtype.kind != "i" or x.ndim == 0:
            raise NotTraceableError("take by other than whole numbers")
        axis = axis % x.ndim
        if axis:
            return self._move_axis(self.take(self._move_axis(x, axis, 0), index), 0, axis)
        x = self.in_order(x)
        return self.add("take", (x, self.in_order(index)), (*index.shape, *x.shape[1:]), x.dtype)

    def joined(self, parts: Sequence[Symbol], axis: int = 0) -> Symbol:
        """`concat` of any parts: those that can't be computed into the place of a part of it are copied there."""
        axis = axis % parts[0].ndim if parts[0].ndim else axis
        parts = [part for part in parts if part.size] or list(parts[:1])
        if axis and axis == parts[0].ndim - 1 and len(parts) > 1 and all(part.shape[-1] > 1 for part in parts):
            return self._beside(parts)
        if axis and len(parts) > 1:
            return self._move_axis(self.joined([self._move_axis(part, axis, 0) for part in parts]), 0, axis)
        parts = [self.in_order(part) for part in parts]
        key = tuple(part.number for part in parts)
        if key not in self._joined:
            self._joined[key] = self.concat([self._part(part) for part in parts] if len(parts) > 1 else parts)
        return self._joined[key]

    def _beside(self, parts: Sequence[Symbol]) -> Symbol:
        """`concat` along the last axis: each part is stored into its columns by the kernel that computes it."""
        if any(p.dtype != self.real for p in parts) or len({p.shape[:-1] for p in parts}) > 1:
            raise NotTraceableError(f"concat of {[(p.dtype.name, p.shape) for p in parts]}")
        shape, placed = (*parts[0].shape[:-1], sum(p.shape[-1] for p in parts)), []
        for part in (self.matrix(self.by_rows(p)) for p in parts):
            self._placed += 1  # a place of its own, whoever else wants the same
            placed.append(self.add("place", (part, self._placed), part.shape, self.real))
        joined = self.add("beside", tuple(placed), (*placed[0].shape[:-1], shape[-1]), self.real)
        return self.reshape(joined, shape)

    def _part(self, x: Symbol) -> Symbol:
        x = self.own(x, self._parts)
        self._parts.add(root_of(x)[0])
        return x

    def own(self, x: Symbol, taken: Container[Symbol] = ()) -> Symbol:
        """x, or a copy where it is not computed into memory of its own, which can be a part of a larger one, or that is
        one of those `taken`."""
        whole, _ = root_of(x)
        own = whole.op in POINTWISE | REDUCTIONS | INTO_MEMORY and whole.op != "called"
        return x if own and whole.size == x.size and whole not in taken else self.copy(x, taken)

    def copy(self, x: Symbol, taken: Container[Symbol] = ()) -> Symbol:
        """A copy of x that is none of those `taken`."""
        copied, shape = self.add("copy", (self.matrix(x),), self.matrix(x).shape, x.dtype), x.shape
        return self.reshape(self.copy(copied, taken) if copied in taken else copied, shape)

    def concat(self, parts: Sequence[Symbol]) -> Symbol:
        """Parts that are each computed into memory of their own, one after the other along the first axis."""
        if any(p.dtype != self.real for p in parts):
            raise NotTraceableError(f"concat of other than {self.real} values")
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
