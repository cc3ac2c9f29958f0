"""The functions of the Array API standard as operators of ONNX, one function for each, with the standard's arguments.

Each is given the graph and returns a tensor, or a tuple of such.  What ONNX lacks is made of what it has, so that
digits are kept as by the function itself.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from bpnet.export.onnx.graph import Graph, Tensor

F = TypeVar("F", bound=Callable[..., Any])

OPERATORS: dict[str, Callable[..., Any]] = {}
"""By the name of the function."""


def standard(function: F) -> F:
    """Enter a function under its name, without the underscore that keeps it apart from Python's own."""
    OPERATORS[function.__name__.rstrip("_")] = function
    return function


def axes_of(axis: Any, ndim: int) -> list[int]:
    """Numbers of axes from 0 on."""
    if axis is None:
        return list(range(ndim))
    return [a % ndim for a in (axis if isinstance(axis, tuple | list) else (axis,))]


def common(g: Graph, *xs: Any) -> list[Tensor]:
    """Tensors of the type that these have together."""
    dtype = np.result_type(*(x.dtype if isinstance(x, Tensor) else x for x in xs))
    return [g.tensor(x, dtype) for x in xs]


# ---- elementwise ----------------------------------------------------------------------------------------------------

_UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh", "atan": "Atan", "atanh": "Atanh",
    "ceil": "Ceil", "cosh": "Cosh", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log",
    "negative": "Neg", "reciprocal": "Reciprocal", "round": "Round", "sign": "Sign", "sin": "Sin", "sinh": "Sinh",
    "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu",
}  # fmt: skip
_BINARY = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "pow": "Pow", "maximum": "Max",
    "minimum": "Min", "matmul": "MatMul",
}  # fmt: skip
_COMPARISON = {
    "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
}  # fmt: skip
_LOGICAL = {"and": "And", "or": "Or", "xor": "Xor"}


def enter(name: str, function: Callable[..., Any], **options: Any) -> None:
    """A function with some of its options given."""
    OPERATORS[name] = partial(function, **options)


def unary(g: Graph, x: Tensor, *, operator: str) -> Tensor:
    return g.node(operator, x)


def binary(g: Graph, x1: Any, x2: Any, *, operator: str) -> Tensor:
    a, b = g.tensor(x1, g.result.dtype), g.tensor(x2, g.result.dtype)
    return g.node(operator, a, b, ndim=max(a.ndim, b.ndim))


def comparison(g: Graph, x1: Any, x2: Any, *, operator: str) -> Tensor:
    a, b = common(g, x1, x2)
    if a.dtype == bool and operator != "Equal":
        a, b = g.cast(a, np.int32), g.cast(b, np.int32)
    return g.node(operator, a, b, dtype=bool, ndim=max(a.ndim, b.ndim))


def logical(g: Graph, x1: Any, x2: Any, *, operator: str) -> Tensor:
    a, b = g.tensor(x1, bool), g.tensor(x2, bool)
    return g.node(operator, a, b, ndim=max(a.ndim, b.ndim))


def bitwise(g: Graph, x1: Any, x2: Any, *, operator: str) -> Tensor:
    if g.result.dtype == bool:
        return logical(g, x1, x2, operator=operator)
    return binary(g, x1, x2, operator=f"Bitwise{operator}")


for _name, _operator in _UNARY.items():
    enter(_name, unary, operator=_operator)
for _name, _operator in _BINARY.items():
    enter(_name, binary, operator=_operator)
for _name, _operator in _COMPARISON.items():
    enter(_name, comparison, operator=_operator)
for _name, _operator in _LOGICAL.items():
    enter(f"logical_{_name}", logical, operator=_operator)
    enter(f"bitwise_{_name}", bitwise, operator=_operator)


@standard
def not_equal(g: Graph, x1: Any, x2: Any) -> Tensor:
    return g.node("Not", comparison(g, x1, x2, operator="Equal"))


@standard
def logical_not(g: Graph, x: Tensor) -> Tensor:
    return g.node("Not", g.cast(x, bool))


@standard
def bitwise_invert(g: Graph, x: Tensor) -> Tensor:
    return g.node("Not" if x.dtype == bool else "BitwiseNot", x)


@standard
def positive(g: Graph, x: Tensor) -> Tensor:
    return x


@standard
def square(g: Graph, x: Tensor) -> Tensor:
    return g.node("Mul", x, x)


def _of_floats(g: Graph, operator: str, x: Tensor) -> Tensor:
    """The operator's answer, which is False of whole numbers."""
    if x.dtype.kind == "f":
        return g.node(operator, x, dtype=bool)
    return g.node("Not", g.node("Equal", x, x, dtype=bool))


@standard
def isnan(g: Graph, x: Tensor) -> Tensor:
    return _of_floats(g, "IsNaN", x)


@standard
def isinf(g: Graph, x: Tensor) -> Tensor:
    return _of_floats(g, "IsInf", x)


@standard
def isfinite(g: Graph, x: Tensor) -> Tensor:
    return g.node("Not", g.node("Or", isnan(g, x), isinf(g, x)))


@standard
def signbit(g: Graph, x: Tensor) -> Tensor:
    """x < 0, or 1 / x < 0, as where x is -0."""
    below = g.node("Less", x, g.array(0, dtype=x.dtype), dtype=bool)
    if x.dtype.kind != "f":
        return below
    return g.node("Or", below, g.node("Less", g.node("Reciprocal", x), g.array(0, dtype=x.dtype), dtype=bool))


@standard
def cos(g: Graph, x: Tensor) -> Tensor:
    """Of float64 1 - 2 sin(x / 2)^2, since onnxruntime had no such cosine for long."""
    if x.dtype != np.float64:
        return g.node("Cos", x)
    sine = g.node("Sin", g.node("Mul", x, g.array(0.5)))
    return g.node("Sub", g.array(1.0), g.node("Mul", g.node("Mul", g.array(2.0), sine), sine), ndim=x.ndim)


@standard
def expm1(g: Graph, x: Tensor) -> Tensor:
    """tanh(x / 2) (exp(x) + 1), which keeps its digits near 0."""
    half, one = g.array(0.5, dtype=x.dtype), g.array(1.0, dtype=x.dtype)
    return g.node("Mul", g.node("Tanh", g.node("Mul", x, half)), g.node("Add", g.node("Exp", x), one))


@standard
def log1p(g: Graph, x: Tensor) -> Tensor:
    """log(u) x / (u - 1) of u = 1 + x where |x| < 1, which keeps its digits near 0 (Kahan); log(u) beyond."""
    zero, one = g.array(0.0, dtype=x.dtype), g.array(1.0, dtype=x.dtype)
    u = g.node("Add", x, one)
    d = g.node("Sub", u, one)
    lost = g.node("Equal", d, zero, dtype=bool)
    near = g.node("And", g.node("Less", g.node("Abs", x), one, dtype=bool), g.node("Not", lost))
    ratio = g.node("Where", near, g.node("Div", x, g.node("Where", near, d, one, dtype=x.dtype)), one, dtype=x.dtype)
    return g.node("Where", lost, x, g.node("Mul", g.node("Log", u), ratio), dtype=x.dtype)


@standard
def log2(g: Graph, x: Tensor) -> Tensor:
    return g.node("Mul", g.node("Log", x), g.array(1.0 / math.log(2.0), dtype=x.dtype))


@standard
def log10(g: Graph, x: Tensor) -> Tensor:
    return g.node("Mul", g.node("Log", x), g.array(1.0 / math.log(10.0), dtype=x.dtype))


@standard
def logaddexp(g: Graph, x1: Any, x2: Any) -> Tensor:
    """max + log(1 + exp(-|difference|)), the larger where they are infinite."""
    a, b = common(g, x1, x2)
    ndim = max(a.ndim, b.ndim)
    top = g.node("Max", a, b, ndim=ndim)
    off = g.node("Where", g.node("Equal", a, b, dtype=bool, ndim=ndim), g.array(0.0, dtype=a.dtype),
                 g.node("Sub", a, b, ndim=ndim), dtype=a.dtype)  # fmt: skip
    return g.node("Add", top, log1p(g, g.node("Exp", g.node("Neg", g.node("Abs", off)))))


@standard
def hypot(g: Graph, x1: Any, x2: Any) -> Tensor:
    a, b = common(g, x1, x2)
    ndim = max(a.ndim, b.ndim)
    return g.node("Sqrt", g.node("Add", g.node("Mul", a, a), g.node("Mul", b, b), ndim=ndim))


@standard
def trunc(g: Graph, x: Tensor) -> Tensor:
    negative = g.node("Less", x, g.array(0, dtype=x.dtype), dtype=bool)
    return g.node("Where", negative, g.node("Ceil", x), g.node("Floor", x), dtype=x.dtype)


@standard
def copysign(g: Graph, x1: Any, x2: Any) -> Tensor:
    a, b = common(g, x1, x2)
    size = g.node("Abs", a)
    return g.node("Where", signbit(g, b), g.node("Neg", size), size, dtype=a.dtype, ndim=max(a.ndim, b.ndim))


@standard
def floor_divide(g: Graph, x1: Any, x2: Any) -> Tensor:
    a, b = common(g, x1, x2)
    ndim = max(a.ndim, b.ndim)
    if a.dtype.kind == "f":
        return g.node("Floor", g.node("Div", a, b, ndim=ndim))
    return g.node("Div", g.node("Sub", a, g.node("Mod", a, b, ndim=ndim), ndim=ndim), b)


@standard
def remainder(g: Graph, x1: Any, x2: Any) -> Tensor:
    a, b = common(g, x1, x2)
    ndim = max(a.ndim, b.ndim)
    if a.dtype.kind != "f":
        return g.node("Mod", a, b, ndim=ndim)
    whole = g.node("Floor", g.node("Div", a, b, ndim=ndim))
    return g.node("Sub", a, g.node("Mul", whole, b), ndim=ndim)


@standard
def clip(g: Graph, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    for operator, limit in (("Max", min), ("Min", max)):
        if limit is not None:
            x = g.node(operator, x, g.tensor(limit, x.dtype))
    return x


@standard
def where(g: Graph, condition: Any, x1: Any, x2: Any) -> Tensor:
    dtype = g.result.dtype
    parts = g.tensor(condition, bool), g.tensor(x1, dtype), g.tensor(x2, dtype)
    return g.node("Where", *parts, dtype=dtype, ndim=max(p.ndim for p in parts))


@standard
def astype(g: Graph, x: Tensor, dtype: Any, *, copy: bool = True, device: Any = None) -> Tensor:
    return g.cast(x, dtype)


# ---- products -------------------------------------------------------------------------------------------------------


@standard
def gemm(g: Graph, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c of matrices a and b."""
    return g.node("Gemm", a, b, c)


@standard
def matrix_transpose(g: Graph, x: Tensor) -> Tensor:
    return permute_dims(g, x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


@standard
def permute_dims(g: Graph, x: Tensor, axes: Sequence[int]) -> Tensor:
    return g.node("Transpose", x, perm=[a % x.ndim for a in axes])


@standard
def moveaxis(g: Graph, x: Tensor, source: Any, destination: Any) -> Tensor:
    moved, to = axes_of(source, x.ndim), axes_of(destination, x.ndim)
    order = [a for a in range(x.ndim) if a not in moved]
    for place, axis in sorted(zip(to, moved, strict=True)):
        order.insert(place, axis)
    return permute_dims(g, x, order)


@standard
def vecdot(g: Graph, x1: Tensor, x2: Tensor, *, axis: int = -1) -> Tensor:
    a, b = common(g, x1, x2)
    product = g.node("Mul", a, b, ndim=max(a.ndim, b.ndim))
    return g.node("ReduceSum", product, g.integers(axis), keepdims=0, ndim=product.ndim - 1)


@standard
def tensordot(g: Graph, x1: Tensor, x2: Tensor, *, axes: Any = 2) -> Tensor:
    a, b = common(g, x1, x2)
    if isinstance(axes, int):
        axes = list(range(a.ndim - axes, a.ndim)), list(range(axes))
    left, right = axes_of(tuple(axes[0]), a.ndim), axes_of(tuple(axes[1]), b.ndim)
    letters = "abcdefghijklmnopqrstuvwxyz"
    first, second = letters[: a.ndim], list(letters[a.ndim : a.ndim + b.ndim])
    for i, j in zip(left, right, strict=True):
        second[j] = first[i]
    kept = [c for i, c in enumerate(first) if i not in left] + [c for j, c in enumerate(second) if j not in right]
    equation = f"{first},{''.join(second)}->{''.join(kept)}"
    return g.node("Einsum", a, b, equation=equation, ndim=len(kept))
