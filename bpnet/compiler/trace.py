"""Tracing: a function is called once with symbols instead of arrays, and its graph and its results are what it leaves.

Layers, losses and optimizers can't tell: they see the standard's namespace.
"""

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

from bpnet.compiler.commands import FIRST, Array
from bpnet.compiler.graph import EXACT, Graph
from bpnet.compiler.ops import POINTWISE
from bpnet.compiler.symbols import NotTraceableError, Symbol, axes_of
from bpnet.errors import ArgumentError

DEPENDENT = ("unique", "nonzero", "argwhere", "from_dlpack")
"""Beginnings of names of functions whose results have other shapes for other values."""

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
    except MemoryError:
        raise
    except Exception as error:  # whatever a function does that arrays can and symbols can't
        raise NotTraceableError(reason(error)) from error
    results = [graph.in_order(s) if isinstance(s, Symbol) else s for s in results]
    for symbol in results:
        if symbol is not None and (not isinstance(symbol, Symbol) or symbol.dtype != graph.real):
            raise NotTraceableError(f"a result that is {symbol!r}")
    return Traced(graph, tuple(arrays), tuple(results))


def reason(error: Exception) -> str:
    """What an error says, and the place in a user's code where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    home = str(Path(__file__).parents[1])
    place = next((f for f in reversed(frames) if not f.filename.startswith(home)), None)
    where = "" if place is None else f" (line {place.lineno} of {Path(place.filename).name}, in {place.name})"
    return f"{error if isinstance(error, NotTraceableError) else f'{type(error).__name__}: {error}'}{where}"


def called(graph: Graph, library: Any, function: Any, text: str, *trees: Any) -> Any:
    """function(*trees[0], **trees[1]) as a call of the real function; trees of symbols and whatever else.

    What it gives is found by a call with random numbers of these shapes.  All that is no array or number has to be the
    same in each call, since whatever reads it is compiled.
    """
    symbols = [leaf for leaf in _leaves(trees) if isinstance(leaf, Symbol)]
    # in whose place stands their class, since a graph need not live on
    trees = mapped(lambda leaf: Symbol if isinstance(leaf, Symbol) else leaf, trees)

    def array(leaf: Any) -> Any:
        return library.asarray(leaf, dtype=getattr(library, graph.real.name)) if isinstance(leaf, float) else leaf

    def call(*arrays: Any) -> tuple[Any, list[Any], list[Any]]:
        given = iter(arrays)
        args, options = mapped(lambda leaf: next(given) if leaf is Symbol else leaf, trees)
        result = mapped(array, function(*args, **options))
        leaves = _leaves(result)
        return result, [x for x in leaves if hasattr(x, "dtype")], [x for x in leaves if not hasattr(x, "dtype")]

    try:
        example, made, expected = call(*[_example(library, x) for x in symbols])
        outputs = [(tuple(a.shape), str(a.dtype).rpartition(".")[2]) for a in made]
    except MemoryError:
        raise
    except Exception as error:
        raise NotTraceableError(f"{text}: {type(error).__name__}: {error}") from error

    def checked(*arrays: Any) -> list[Any]:
        _, made, others = call(*arrays)
        shapes = [tuple(a.shape) for a in made]
        if others != expected or shapes != [shape for shape, _ in outputs]:
            before = [shape for shape, _ in outputs], expected
            raise ArgumentError(
                f"{text}: it gave {(shapes, others)}, but {before} for other arrays of the same shapes, on which "
                "compiled code relies: give arrays of one shape, or train with compile=False"
            )
        return made

    results = iter(graph.call(checked, text, symbols, outputs))
    return mapped(lambda leaf: next(results) if hasattr(leaf, "dtype") else leaf, example)


def _example(library: Any, x: Symbol) -> Any:
    if x.op == "number":
        return 0.5  # which may be a rate as well as a step
    numbers = numpy.random.default_rng(0).uniform(0.5, 1.5, x.shape)
    return library.asarray(numbers.astype(x.dtype) if x.dtype.kind == "f" else numpy.zeros(x.shape, x.dtype))


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree of tuples, lists and dicts with every leaf replaced, in order."""
    if isinstance(tree, tuple):
        parts = [mapped(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, list):
        return [mapped(function, part) for part in tree]
    if isinstance(tree, Mapping):
        return {name: mapped(function, part) for name, part in tree.items()}
    return function(tree)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    mapped(found.append, tree)
    return found


COMPOSED: dict[str, Callable[..., Symbol]] = {
    "square": lambda xp, x: x * x,
    "reciprocal": lambda xp, x: 1.0 / x,
    "isnan": lambda xp, x: x != x,
    "isfinite": lambda xp, x: x - x == 0.0,
    "isinf": lambda xp, x: ~(xp.isfinite(x) | xp.isnan(x)),
    "all": lambda xp, x, **options: xp.min(xp.astype(x, xp.graph.real), **options) > 0.5,
    "any": lambda xp, x, **options: xp.max(xp.astype(x, xp.graph.real), **options) > 0.5,
    "std": lambda xp, x, **options: xp.sqrt(xp.var(x, **options)),
    "argmin": lambda xp, x, **options: xp.argmax(-x, **options),
    "zeros_like": lambda xp, x: xp.full_like(x, 0.0),
    "ones_like": lambda xp, x: xp.full_like(x, 1.0),
}
"""Functions of the standard that are made of others."""


class Namespace:
    """What of the standard's namespace has symbols: what a function that is traced sees as `xp`."""

    float32, float64, int32, int64 = (numpy.dtype(n) for n in ("float32", "float64", "int32", "int64"))

    def __init__(self, graph: Graph, library: Any = None, part: Any = None) -> None:
        """`library` is the namespace of real arrays, whose functions are called where there is nothing for symbols, or
        those of a `part` of it, as linalg."""
        self.graph, self.library, self.functions = graph, library, part or library
        self.finfo, self.bool = numpy.finfo, numpy.dtype("bool")
        self.matmul, self.astype, self.reshape, self.take = graph.matmul, graph.astype, graph.reshape, graph.take
        self.permute_dims, self.matrix_transpose, self.broadcast_to = graph.permute, graph.transpose, graph.broadcast_to
        self.concat, self.pow = graph.joined, graph.power
        self.sum, self.max, self.min = (functools.partial(graph.reduce, op) for op in ("sum", "max", "min"))

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name in POINTWISE:
            return functools.partial(self.graph.elementwise, name)
        if name in COMPOSED:
            return functools.partial(COMPOSED[name], self)
        function = getattr(self.functions, name, None)
        if isinstance(function, ModuleType):
            return Namespace(self.graph, self.library, function)  # type: ignore[return-value]
        if not callable(function) or name.startswith(DEPENDENT):
            raise NotTraceableError(name)
        return lambda *args, **options: called(self.graph, self.library, function, name, args, options)

    def expand_dims(self, x: Symbol, *, axis: int = 0) -> Symbol:
        place = axis if axis >= 0 else x.ndim + 1 + axis
        return self.reshape(x, (*x.shape[:place], 1, *x.shape[place:]))

    def squeeze(self, x: Symbol, axis: Any) -> Symbol:
        axes = axes_of(axis, x.ndim)
        return self.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))

    def flip(self, x: Symbol, *, axis: Any = None) -> Symbol:
        axes = axes_of(axis, x.ndim)
        return self.graph.slice(x, tuple(slice(None, None, -1 if i in axes else 1) for i in range(x.ndim)))

    def stack(self, arrays: Sequence[Symbol], *, axis: int = 0) -> Symbol:
        return self.concat([self.expand_dims(x, axis=axis) for x in arrays], axis=axis)

    def full_like(self, x: Symbol, value: float) -> Symbol:
        return self.graph.entries("copy", (float(value),), x.shape, self.graph.real)

    def clip(self, x: Symbol, min: Any = None, max: Any = None) -> Symbol:
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def mean(self, x: Symbol, **options: Any) -> Symbol:
        total = self.sum(x, **options)
        return self.divide(total, x.size // total.size)

    def var(self, x: Symbol, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Symbol:
        off = self.subtract(x, self.mean(x, axis=axis, keepdims=True))
        total = self.sum(self.square(off), axis=axis, keepdims=keepdims)
        return self.divide(total, x.size // total.size - correction)

    def argmax(self, x: Symbol, *, axis: int, keepdims: bool = False) -> Symbol:
        """The first position of the largest entry along an axis."""
        axis = axis % x.ndim
        if x.shape[axis] > EXACT:
            raise NotTraceableError(f"argmax over axis {axis} of {x.shape}")
        positions = self.graph.add("positions", (), x.shape[axis : axis + 1], self.graph.real)
        positions = self.reshape(positions, (-1, *(1,) * (x.ndim - 1 - axis)))
        is_largest = self.equal(x, self.max(x, axis=axis, keepdims=True))
        found = self.where(is_largest, positions, float(x.shape[axis]))
        found = self.min(found, axis=axis, keepdims=keepdims)
        return self.graph.entries("copy", (found,), found.shape, self.int64)

    def arange(self, stop: int, *, dtype: Any, device: Any = None) -> Symbol:
        if stop > EXACT:
            raise NotTraceableError("more classes than are told apart")
        return self.graph.add("positions", (), (stop,), dtype)
