"""Tracing: a function is called once with symbols instead of arrays, and its graph and its results are what it leaves.

Layers, losses and optimizers can't tell: they see the standard's namespace.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from bpnet.compiler.commands import FIRST, Array
from bpnet.compiler.graph import EXACT, Graph, NotTraceableError, Symbol
from bpnet.compiler.ops import POINTWISE

NUMBER = "number"
"""What stands for a number among the arguments of a function."""

Argument = tuple[tuple[int, ...], str] | str | None
"""What a function is traced for: shape and type of an array, NUMBER, or None, which is passed on."""


@dataclass(frozen=True)
class Traced:
    """A function as a graph; `arguments` and `results` are in its order, None where there is no array."""

    graph: Graph
    arguments: tuple[Array | None, ...]
    results: tuple[Symbol | None, ...]


def trace(function: Callable[[Graph, list[Any]], Sequence[Any]], arguments: Sequence[Argument]) -> Traced:
    """The graph of `function(graph, symbols)`, which gives a list of symbols, and None where there is no result.

    The k-th array is the memory FIRST + k, and the i-th argument, if a number, is called v<i>.  Raises
    NotTraceableError, also for whatever error a function raises that arrays would not.
    """
    reals = {a[1] for a in arguments if isinstance(a, tuple) and a[1].startswith("float")}
    if len(reals) != 1 or not reals <= {"float32", "float64"}:
        raise NotTraceableError("no array of float32 or float64, or several types")
    (real,) = reals
    graph = Graph(real)
    arrays: list[Array | None] = []
    symbols: list[Any] = []
    for i, a in enumerate(arguments):
        if not isinstance(a, tuple):
            arrays.append(None)
            symbols.append(graph.number(f"v{i}") if a == NUMBER else None)
            continue
        if a[1] not in (real, "int32", "int64", "bool"):
            raise NotTraceableError(f"{a[1]} values")
        array = Array(*a, FIRST + sum(other is not None for other in arrays))
        arrays.append(array)
        symbols.append(graph.memory(array.memory, array.shape, array.dtype))
    try:
        results = function(graph, symbols)
    except NotTraceableError:
        raise
    except Exception as error:  # whatever a function does that arrays can and symbols can't
        raise NotTraceableError(f"{type(error).__name__}: {error}") from error
    for symbol in results:
        if symbol is not None and (not isinstance(symbol, Symbol) or symbol.dtype != graph.real):
            raise NotTraceableError(f"a result that is {symbol!r}")
    return Traced(graph, tuple(arrays), tuple(results))


class Namespace:
    """What of the standard's namespace has symbols: what a function that is traced sees as `xp`."""

    float32, float64, int32, int64 = (numpy.dtype(n) for n in ("float32", "float64", "int32", "int64"))

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.finfo = numpy.finfo
        self.matmul, self.astype, self.reshape, self.take = graph.matmul, graph.astype, graph.reshape, graph.take
        self.concat = graph.joined

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name not in POINTWISE:
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
        return self.graph.elementwise("divide", total, x.size // total.size)

    def all(self, x: Symbol, *, axis: Any = None) -> Symbol:
        least = self.graph.reduce("min", self.astype(x, self.graph.real), axis, False)
        return self.graph.elementwise("greater", least, 0.5)

    def argmax(self, x: Symbol, *, axis: int) -> Symbol:
        """The first position of the largest entry of every row, as a number of the type of x."""
        if x.ndim != 2 or axis not in (1, -1) or x.shape[1] > EXACT:
            raise NotTraceableError(f"argmax over axis {axis} of {x.shape}")
        largest, positions = self.max(x, axis=1, keepdims=True), self.graph.add("positions", (), x.shape[1:], x.dtype)
        is_largest = self.graph.elementwise("equal", x, largest)
        first = self.min(self.graph.elementwise("where", is_largest, positions, float(x.shape[1])), axis=1)
        return self.graph.add("view", (first.args[0], 0), first.shape, self.int64) if first.op == "view" else first

    def arange(self, stop: int, *, dtype: Any, device: Any = None) -> Symbol:
        if stop > EXACT:
            raise NotTraceableError("more classes than are told apart")
        return self.graph.add("positions", (), (stop,), dtype)
