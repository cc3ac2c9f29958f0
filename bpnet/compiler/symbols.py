"""Symbols: what stands for arrays while a function is traced."""

import math
from typing import TYPE_CHECKING, Any

from bpnet.compiler.ops import COMPARISON, LOOKS, OPERATIONS

if TYPE_CHECKING:
    from bpnet.compiler.graph import Graph

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

    @property
    def inputs(self) -> list["Symbol"]:
        """Those of its arguments that are symbols."""
        return [a for a in self.args if isinstance(a, Symbol)]

    def __bool__(self) -> bool:
        raise NotTraceableError("a function can't decide by a value")

    @property
    def T(self) -> "Symbol":
        return self.graph.transpose(self)

    mT = T

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> "Symbol":
        return self.graph.slice(self, index)

    def __pow__(self, exponent: Any) -> "Symbol":
        return self.graph.power(self, exponent)

    def __matmul__(self, other: Any) -> "Symbol":
        return self.graph.matmul(self, other)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "scalar"
        args = ", ".join(f"%{a.number}" if isinstance(a, Symbol) else str(a) for a in self.args)
        return f"%{self.number} = {self.op}({args})  {self.dtype.name} {shape}"


_METHODS = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv"}
_METHODS |= {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "equal": "eq"}
_METHODS |= {"not_equal": "ne", "logical_and": "and", "logical_or": "or"}
_METHODS |= {"negative": "neg", "abs": "abs", "logical_not": "invert"}
for _op, _method in _METHODS.items():
    setattr(Symbol, f"__{_method}__", lambda *operands, op=_op: operands[0].graph.elementwise(op, *operands))
    if OPERATIONS[_op].kind != COMPARISON and OPERATIONS[_op].arity == 2:
        setattr(Symbol, f"__r{_method}__", lambda self, other, op=_op: self.graph.elementwise(op, other, self))


def space_of(symbol: Symbol) -> Space:
    """Rows and columns of the fused kernel that computes the entries of `symbol`."""
    if symbol.ndim < 2:
        return 1, symbol.size
    return math.prod(symbol.shape[:-1]), symbol.shape[-1]


def root_of(symbol: Symbol) -> tuple[Symbol, int]:
    """What a view or window looks at, and how many elements into it."""
    return (symbol.args[0], symbol.args[1]) if symbol.op in LOOKS else (symbol, 0)


def strides_of(x: Symbol) -> tuple[Symbol, int, Shape]:
    """What holds the entries of x, where the first of them lies in it, and how many elements apart along each axis."""
    if x.op == "transpose":
        root, offset, strides = strides_of(x.args[0])
        return root, offset, (*strides[:-2], strides[-1], strides[-2])
    root, offset = root_of(x)
    if x.op == "window":
        return root, offset, (*(math.prod(x.shape[i + 1 : -1]) * x.args[2] for i in range(x.ndim - 1)), 1)
    return root, offset, tuple(math.prod(x.shape[i + 1 :]) for i in range(x.ndim))


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes that are meant, counted from 0 on."""
    some = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted(range(ndim)[i] for i in some))
