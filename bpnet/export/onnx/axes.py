"""Functions of the standard that are about axes, as operators of ONNX: shapes, reading, sums, new arrays."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bpnet.errors import ExportError
from bpnet.export.onnx.graph import Graph, Tensor
from bpnet.export.onnx.operators import OPERATORS, axes_of, common, enter, standard
from bpnet.export.record import Rows

# ---- shapes ---------------------------------------------------------------------------------------------------------


@standard
def reshape(g: Graph, x: Tensor, shape: Any, *, copy: Any = None) -> Tensor:
    return g.reshape(x, g.result.shape)


@standard
def broadcast_to(g: Graph, x: Tensor, shape: Any) -> Tensor:
    wanted = list(g.result.shape)
    for i in range(1, x.ndim + 1):  # where it has the size already, 1 leaves it
        if x.shape[-i] is not None and x.shape[-i] == wanted[-i]:
            wanted[-i] = 1
    return g.node("Expand", x, g.shape(wanted), ndim=len(wanted))


@standard
def broadcast_arrays(g: Graph, *arrays: Tensor) -> tuple[Tensor, ...]:
    wanted = g.result
    found = []
    for x, value in zip(arrays, wanted, strict=True):
        g.result = value
        found.append(broadcast_to(g, x, None))
    return tuple(found)


@standard
def expand_dims(g: Graph, x: Tensor, *, axis: int = 0) -> Tensor:
    return g.node("Unsqueeze", x, g.integers(axis), ndim=x.ndim + 1)


@standard
def squeeze(g: Graph, x: Tensor, axis: Any) -> Tensor:
    axes = axes_of(axis, x.ndim)
    return g.node("Squeeze", x, g.integers(*axes), ndim=x.ndim - len(axes))


@standard
def concat(g: Graph, arrays: Sequence[Any], *, axis: int | None = 0) -> Tensor:
    parts = [g.tensor(x, g.result.dtype) for x in arrays]
    if axis is None:
        parts = [g.node("Reshape", x, g.integers(-1), ndim=1) for x in parts]
    if len(parts) == 1:
        return parts[0]
    return g.node("Concat", *parts, axis=axis or 0)


@standard
def stack(g: Graph, arrays: Sequence[Any], *, axis: int = 0) -> Tensor:
    parts = [expand_dims(g, g.tensor(x, g.result.dtype), axis=axis) for x in arrays]
    return g.node("Concat", *parts, axis=axis)


@standard
def unstack(g: Graph, x: Tensor, *, axis: int = 0) -> tuple[Tensor, ...]:
    return tuple(
        g.node("Gather", x, g.array(i, dtype=np.int64), axis=axis, ndim=x.ndim - 1) for i in range(len(g.result))
    )


@standard
def flip(g: Graph, x: Tensor, *, axis: Any = None) -> Tensor:
    axes = axes_of(axis, x.ndim)
    return _slice(g, x, dict.fromkeys(axes, (-1, -(2**62), -1)))


@standard
def roll(g: Graph, x: Tensor, shift: Any, *, axis: Any = None) -> Tensor:
    if axis is None:
        raise ExportError("roll without an axis")
    shifts = shift if isinstance(shift, tuple | list) else (shift,)
    for a, n in zip(axes_of(axis, x.ndim), shifts, strict=True):
        size = g.result.shape[a]
        if isinstance(size, Rows) or isinstance(n, Rows):
            raise ExportError("roll over the rows")
        if n % size:
            parts = _slice(g, x, {a: (size - n % size, 2**62, 1)}), _slice(g, x, {a: (0, size - n % size, 1)})
            x = g.node("Concat", *parts, axis=a)
    return x


@standard
def repeat(g: Graph, x: Tensor, repeats: int, *, axis: int | None = None) -> Tensor:
    if not isinstance(repeats, int) or axis is None:
        raise ExportError("repeat of other than a number of times along an axis")
    a = axis % x.ndim
    wide = g.node("Unsqueeze", x, g.integers(a + 1), ndim=x.ndim + 1)
    copies = [1] * (x.ndim + 1)
    copies[a + 1] = repeats
    return g.reshape(g.node("Expand", wide, g.integers(*copies)), g.result.shape)


@standard
def tile(g: Graph, x: Tensor, repetitions: Sequence[Any]) -> Tensor:
    ndim = max(x.ndim, len(repetitions))
    if x.ndim < ndim:
        x = g.node("Unsqueeze", x, g.integers(*range(ndim - x.ndim)), ndim=ndim)
    return g.node("Tile", x, g.shape((*(1,) * (ndim - len(repetitions)), *repetitions)))


@standard
def tril(g: Graph, x: Tensor, *, k: int = 0) -> Tensor:
    return g.node("Trilu", x, g.array(k, dtype=np.int64), upper=0)


@standard
def triu(g: Graph, x: Tensor, *, k: int = 0) -> Tensor:
    return g.node("Trilu", x, g.array(k, dtype=np.int64), upper=1)


# ---- reading --------------------------------------------------------------------------------------------------------


def _slice(g: Graph, x: Tensor, ends: dict[int, tuple[Any, Any, Any]]) -> Tensor:
    """x[start:stop:step] of some axes."""
    starts, stops, steps = (g.shape([end[i] for end in ends.values()]) for i in range(3))
    return g.node("Slice", x, starts, stops, g.integers(*ends), steps)


@standard
def getitem(g: Graph, x: Tensor, index: Any) -> Tensor:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in [p for p in parts if not isinstance(p, Tensor)]:
        parts.append(Ellipsis)
    place = next(i for i, p in enumerate(parts) if p is Ellipsis)
    taken = sum(p is not None and p is not Ellipsis for p in parts)
    parts[place : place + 1] = [slice(None)] * (x.ndim - taken)
    if sum(isinstance(p, Tensor) for p in parts) > 1:
        raise ExportError("several arrays in one index")
    ends, axis = {}, 0
    for part in parts:
        if isinstance(part, slice) and part != slice(None):
            step = 1 if part.step is None else part.step
            start = (0 if step > 0 else -1) if part.start is None else part.start
            stop = (2**62 if step > 0 else -(2**62)) if part.stop is None else part.stop
            ends[axis] = start, stop, step
        axis += part is not None
    if ends:
        x = _slice(g, x, ends)
    axis = 0
    for part in parts:
        if part is None:
            x = g.node("Unsqueeze", x, g.integers(axis), ndim=x.ndim + 1)
        elif isinstance(part, int):
            x = g.node("Gather", x, g.array(part, dtype=np.int64), axis=axis, ndim=x.ndim - 1)
            continue
        elif isinstance(part, Rows):
            x = g.node("Squeeze", g.node("Gather", x, g.rows(part), axis=axis), g.integers(axis), ndim=x.ndim - 1)
            continue
        elif isinstance(part, Tensor):
            x = g.node("Gather", x, part, axis=axis, ndim=x.ndim - 1 + part.ndim)
            axis += part.ndim
            continue
        axis += 1
    return x


@standard
def take(g: Graph, x: Tensor, indices: Any, *, axis: int | None = None) -> Tensor:
    if axis is None:
        axis = 0
        if x.ndim != 1:
            raise ExportError("take without an axis, of an array with several")
    indices = g.tensor(indices)
    return g.node("Gather", x, indices, axis=axis, ndim=x.ndim - 1 + indices.ndim)


@standard
def take_along_axis(g: Graph, x: Tensor, indices: Tensor, *, axis: int = -1) -> Tensor:
    return g.node("GatherElements", x, g.cast(indices, np.int64), axis=axis % x.ndim)


@standard
def searchsorted(g: Graph, x1: Tensor, x2: Tensor, *, side: str = "left", sorter: Any = None) -> Tensor:
    """How many of x1 come before each of x2."""
    if sorter is not None:
        x1 = take(g, x1, sorter, axis=0)
    a, b = common(g, x1, x2)
    b = g.node("Unsqueeze", b, g.integers(-1), ndim=b.ndim + 1)
    before = g.node("Less" if side == "left" else "LessOrEqual", a, b, dtype=bool, ndim=b.ndim)
    return g.node("ReduceSum", g.cast(before, np.int64), g.integers(-1), keepdims=0, ndim=b.ndim - 1)


# ---- over axes ------------------------------------------------------------------------------------------------------


def _reduce(g: Graph, operator: str, x: Tensor, axis: Any, keepdims: bool) -> Tensor:
    axes = axes_of(axis, x.ndim)
    if not axes:
        return x
    ndim = x.ndim if keepdims else x.ndim - len(axes)
    return g.node(operator, x, g.integers(*axes), keepdims=int(keepdims), ndim=ndim)


def added(g: Graph, x: Tensor, *, operator: str, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    return _reduce(g, operator, g.cast(x, g.result.dtype), axis, keepdims)


def extreme(g: Graph, x: Tensor, *, operator: str, axis: Any = None, keepdims: bool = False) -> Tensor:
    return _reduce(g, operator, x, axis, keepdims)


def truth(g: Graph, x: Tensor, *, operator: str, axis: Any = None, keepdims: bool = False) -> Tensor:
    return g.cast(_reduce(g, operator, g.cast(g.cast(x, bool), np.int32), axis, keepdims), bool)


for _name, _operator in {"sum": "ReduceSum", "prod": "ReduceProd", "mean": "ReduceMean"}.items():
    enter(_name, added, operator=_operator)
for _name, _operator in {"max": "ReduceMax", "min": "ReduceMin"}.items():
    enter(_name, extreme, operator=_operator)
for _name, _operator in {"all": "ReduceMin", "any": "ReduceMax"}.items():
    enter(_name, truth, operator=_operator)


@standard
def count_nonzero(g: Graph, x: Tensor, *, axis: Any = None, keepdims: bool = False) -> Tensor:
    return _reduce(g, "ReduceSum", g.cast(g.cast(x, bool), np.int64), axis, keepdims)


@standard
def var(g: Graph, x: Tensor, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    off = g.node("Sub", x, _reduce(g, "ReduceMean", x, axis, True))
    found = _reduce(g, "ReduceMean", g.node("Mul", off, off), axis, keepdims)
    if correction:
        counts = [x.shape[a] for a in axes_of(axis, x.ndim)]
        if not all(isinstance(n, int) for n in counts):
            raise ExportError("var with a correction over axes that depend on the number of rows")
        n = math.prod(counts)
        found = g.node("Mul", found, g.array(n / (n - correction), dtype=x.dtype))
    return found


@standard
def std(g: Graph, x: Tensor, **options: Any) -> Tensor:
    return g.node("Sqrt", var(g, x, **options))


def _place(g: Graph, operator: str, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    if axis is None:
        x, axis = g.node("Reshape", x, g.integers(-1), ndim=1), 0
        if keepdims:
            raise ExportError("the place of the largest or smallest of all entries, with keepdims")
    ndim = x.ndim if keepdims else x.ndim - 1
    return g.node(operator, x, axis=axis % x.ndim, keepdims=int(keepdims), dtype=np.int64, ndim=ndim)


@standard
def argmax(g: Graph, x: Tensor, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    return _place(g, "ArgMax", x, axis, keepdims)


@standard
def argmin(g: Graph, x: Tensor, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    return _place(g, "ArgMin", x, axis, keepdims)


def _sorted(g: Graph, x: Tensor, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
    axis = axis % x.ndim
    size = g.result.shape[axis]
    most = g.shape([size])
    values, places = g.nodes_of("TopK", (x, most), 2, axis=axis, largest=int(descending), sorted=1)
    return values, Tensor(places.name, np.dtype(np.int64), places.shape)


@standard
def sort(g: Graph, x: Tensor, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    return _sorted(g, x, axis, descending)[0]


@standard
def argsort(g: Graph, x: Tensor, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    return _sorted(g, x, axis, descending)[1]


@standard
def cumulative_sum(
    g: Graph, x: Tensor, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    if include_initial:
        raise ExportError("cumulative_sum with include_initial")
    if axis is None:
        if x.ndim != 1:
            raise ExportError("cumulative_sum without an axis, of an array with several")
        axis = 0
    return g.node("CumSum", g.cast(x, g.result.dtype), g.array(axis, dtype=np.int64))


@standard
def diff(g: Graph, x: Tensor, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Tensor:
    if prepend is not None or append is not None:
        raise ExportError("diff with prepend or append")
    axis = axis % x.ndim
    for _ in range(n):
        x = g.node("Sub", _slice(g, x, {axis: (1, 2**62, 1)}), _slice(g, x, {axis: (0, -1, 1)}))
    return x


@standard
def softmax(g: Graph, x: Tensor, axis: int) -> Tensor:
    """exp(x_j - max) / sum_k exp(x_k - max)."""
    return g.node("Softmax", x, axis=axis)


# ---- new arrays -----------------------------------------------------------------------------------------------------


def _full(g: Graph, value: Any) -> Tensor:
    wanted = g.result
    return g.node("Expand", g.tensor(value, wanted.dtype), g.shape(wanted.shape), ndim=len(wanted.shape))


@standard
def full(g: Graph, shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    return _full(g, fill_value)


@standard
def full_like(g: Graph, x: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    return _full(g, fill_value)


for _name, _number in {"zeros": 0, "ones": 1, "empty": 0}.items():
    enter(_name, lambda g, shape, *, dtype=None, device=None, number=_number: _full(g, number))
    enter(f"{_name}_like", lambda g, x, *, dtype=None, device=None, number=_number: _full(g, number))


@standard
def arange(g: Graph, start: Any, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Tensor:
    first, last = (0, start) if stop is None else (start, stop)
    ends = []
    for n in (first, last, step):
        n = g.node("Squeeze", g.rows(n), g.integers(0), ndim=0) if isinstance(n, Rows) else n
        ends.append(g.tensor(n, g.result.dtype))
    return g.node("Range", *ends, ndim=1)


@standard
def asarray(g: Graph, x: Any, *, dtype: Any = None, device: Any = None, copy: Any = None) -> Tensor:
    if isinstance(x, list | tuple):
        raise ExportError("an array is made of a list that has arrays in it")
    return g.tensor(x, g.result.dtype)


# ---- linear algebra -------------------------------------------------------------------------------------------------
for _name in ("matmul", "matrix_transpose", "tensordot", "vecdot"):
    enter(f"linalg.{_name}", OPERATORS[_name])


def _outer(g: Graph, x1: Tensor, x2: Tensor) -> Tensor:
    a, b = common(g, x1, x2)
    return g.node("Mul", expand_dims(g, a, axis=1), expand_dims(g, b, axis=0))


def _vector_norm(g: Graph, x: Tensor, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Tensor:
    operators = {1: "ReduceL1", 2: "ReduceL2", math.inf: "ReduceMax", -math.inf: "ReduceMin"}
    if ord not in operators:
        raise ExportError(f"vector_norm with ord={ord}")
    return _reduce(g, operators[ord], x if ord in (1, 2) else g.node("Abs", x), axis, keepdims)


enter("linalg.outer", _outer)
enter("linalg.vector_norm", _vector_norm)
enter("linalg.det", lambda g, x: g.node("Det", x, ndim=x.ndim - 2))


def operator_for(function: str) -> Callable[..., Any] | None:
    """What makes nodes of a function of the standard, from here or `operators`."""
    return OPERATORS.get(function)
