"""The seam as a function sees it while the compiler traces it: every definition as it stands, on symbols."""

import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from bpnet.backends.base import Array, Backend, Context, Key, Rows
from bpnet.compiler.graph import Graph
from bpnet.compiler.random import threshold
from bpnet.compiler.symbols import NotTraceableError, Symbol, root_of
from bpnet.compiler.trace import NUMBER, Argument, Namespace, Traced, called, reason, trace

T = TypeVar("T")

Tree = Any
"""Tuples of tuples ... of arrays, numbers and None."""


def leaves_of(tree: Tree) -> list[Any]:
    """What a tree holds, in order."""
    found: list[Any] = []
    for part in tree:
        if isinstance(part, tuple):
            found += leaves_of(part)
        else:
            found.append(part)
    return found


def rebuilt(tree: Tree, leaves: Iterator[Any]) -> Tree:
    """A tree of the same form with the next of `leaves` in the place of each."""
    return tuple([rebuilt(part, leaves) if isinstance(part, tuple) else next(leaves) for part in tree])


def trace_trees(
    function: Callable[..., Any],
    real: Backend,
    kind: Any,
    args: Tree,
    cut: Callable[[int, float], list[Rows]] = lambda rows, _: [(0, rows)],
) -> tuple[Traced, Any, str]:
    """function(backend, *args) of trees of arrays of this `kind` as a graph, its result as a tree of symbols or as one,
    and the precision of its products.
    """
    found: list[Any] = []

    def on_symbols(graph: Graph, symbols: list[Any]) -> list[Any]:
        tracing = TracingBackend(graph, cut, real)
        result = function(tracing, *rebuilt(args, iter(symbols)))
        found.extend((result, tracing.precision))
        return leaves_of(result if isinstance(result, tuple) else (result,))

    def argument(leaf: Any) -> Argument:
        if isinstance(leaf, kind):
            if not leaf.dtype.isnative:
                raise NotTraceableError("an array of another byte order")
            return leaf.shape, leaf.dtype.name
        if leaf is not None and type(leaf) not in (int, float):
            raise NotTraceableError(f"{leaf!r} is passed in")
        return None if leaf is None else NUMBER

    traced = trace(on_symbols, [argument(leaf) for leaf in leaves_of(args)])
    return traced, *found


def _matmul(run: Any, a: Symbol, b: Symbol, transpose_a: bool = False, transpose_b: bool = False) -> Symbol:
    """A compiled sum is never of many rows one after the other, so it needs no parts."""
    graph: Graph = run.backend.graph
    return graph.matmul(graph.transpose(a) if transpose_a else a, graph.transpose(b) if transpose_b else b)


def _sum_rows(run: Any, x: Symbol) -> Symbol:
    """As any sum, for the same reason."""
    return run.xp.sum(x, axis=0)  # type: ignore[no-any-return]


def _scatter_add(run: Any, table: Symbol, index: Symbol, rows: Symbol) -> Symbol:
    """A command of its own."""
    graph: Graph = run.backend.graph
    if index.dtype.kind != "i" or index.shape != rows.shape[:1] or rows.ndim != 2 or rows.dtype != graph.real:
        raise NotTraceableError("scatter_add of other than rows by their whole numbers")
    return graph.add("scatter_add", (graph.in_order(rows), index), (table.shape[0], rows.shape[1]), graph.real)


class TracingBackend(Backend):
    """The seam as a function sees it while it is traced: every definition as it stands, on symbols."""

    name = "numpy"
    traces = True
    kernels: ClassVar = {"matmul": _matmul, "sum_rows": _sum_rows, "scatter_add": _scatter_add}
    precision = "float32"
    """That of the products, as the last context says."""

    def __init__(self, graph: Graph, cut: Callable[[int, float], list[Rows]], real: Backend | None = None) -> None:
        """`real` is the backend of the arrays for which a function is traced."""
        self.graph, self.cut, self.real = graph, cut, real
        super().__init__(Namespace(graph, None if real is None else real.xp))
        # what `add_to` has added up to a symbol
        self.terms: dict[Symbol, list[Symbol]] = {}

    def device(self, x: Any) -> Any:
        return "cpu"

    def context(self, precision: str = "float32", grad_buffers: dict[int, Array] | None = None) -> Context:
        self.precision = precision
        return Context(self, precision, grad_buffers)

    def outline(self, part: Any) -> Any:
        return part if self.real is None else _Outlined(self, part)

    def outside(self, function: Callable[[Backend, Any], Any], array: Any, text: str, captured: bool = False) -> Symbol:
        """A call whose result is known beforehand, and which tracing does not make: other processes wait for it."""
        real = self.real
        if real is None:
            raise NotTraceableError(text)
        (made,) = self.graph.call(
            lambda given: (function(real, given),), text, (array,), ((array.shape, array.dtype.name),), captured
        )
        return made

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

    def constants(self, values: Sequence[float], like: Any) -> Any:
        return self.graph.table(values)

    def add_to(self, total: Symbol, part: Symbol) -> Symbol:
        """Part by part, so that products, and sums of rows, are added to those before, and all others are one sum."""
        if total.op == part.op == "concat" and [p.shape for p in total.args] == [p.shape for p in part.args]:
            return self.graph.concat([self.add_to(t, p) for t, p in zip(total.args, part.args, strict=True)])
        if total.op == part.op == "view" and total.args[1] == part.args[1] == 0:
            return self.graph.reshape(self.add_to(total.args[0], part.args[0]), total.shape)
        if total.op == part.op and part.op in ("matmul", "scatter_add"):
            return self.graph.add(part.op, (*part.args, total), part.shape, part.dtype)
        terms = [*self.terms.get(total, (total,)), part]

        def own(term: Symbol) -> Symbol:  # a sum of products lies where the first of them did
            return self.graph.copy(term) if len(root_of(term)[0].args) == 3 else self.graph.own(term)

        together = self.graph.concat([self.graph.reshape(own(term), (1, total.size)) for term in terms])
        found = self.graph.reshape(self.xp.sum(together, axis=0), total.shape)
        self.terms[found] = terms
        return found

    def keep_mask(self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any, first: Any = 0) -> Any:
        """The definition's mask, drawn again by every kernel that reads it."""
        return self._drawn("mask", threshold(keep), key, shape, dtype, first)

    def uniform(self, key: Key, shape: tuple[int, ...], dtype: Any, device: Any, first: Any = 0) -> Any:
        return self._drawn("uniform", 1, key, shape, dtype, first)

    def _drawn(self, op: str, limit: int, key: Key, shape: tuple[int, ...], dtype: Any, first: Any) -> Any:
        before = first * math.prod(shape[1:])
        if any(isinstance(part, Symbol) and part.op != "number" for part in (before, *key)):
            raise NotTraceableError("a key of random numbers that is computed")
        return self.graph.entries(op, (limit, before, *key), tuple(shape), dtype)


class _Alone:
    """In the place of a training's communicator: the other ranks are not there."""

    def all_reduce(self, backend: Backend, vector: Array, tail: int = 0) -> Array:
        return vector


class _Outlined:
    """A layer or loss, of which a method that can't be traced is called with real arrays, as it stands."""

    def __init__(self, tracing: TracingBackend, part: Any) -> None:
        self.tracing, self.part = tracing, part

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._call, name)

    def __call__(self, run: Any, *args: Any) -> Any:
        return self._call("__call__", run, *args)

    def _call(self, name: str, run: Any, *args: Any) -> Any:
        method, tracing = getattr(self.part, name), self.tracing
        real, precision = tracing.real, run.context.precision
        assert real is not None
        terms = run.terms
        count = len(terms or ())
        try:
            return method(run, *args)
        except MemoryError:
            raise
        except Exception as error:  # whatever a method does that arrays can and symbols can't
            text = f"{name} of {self.part}, {reason(error)}"
        if terms is not None:
            del terms[count:]  # which it adds again

        ranks: list[Any] = [None if run.ranks is None else _Alone()]  # while this is traced, which others need not be

        def really(key: Key, first: Any, values: Any, share: Any, *args: Any) -> tuple[Any, Any]:
            with real.session():
                schedules = dict(zip(run.values, values, strict=True))
                own = type(run)(real, run.training, tuple(map(int, key)), real.context(precision), schedules)
                own.terms, own.share = None if terms is None else [], share
                own.first_row, own.ranks = int(first), ranks[-1]
                return method(own, *args), own.terms or []

        given = run.key, run.first_row, list(run.values.values()), run.share, *args
        made, added = called(tracing.graph, real.xp, really, text, given, {})
        ranks.append(run.ranks)
        if added:
            run.terms += added
        return made
