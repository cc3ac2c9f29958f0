"""JAX: arrays can't be written to, and a whole training step is compiled by XLA."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import jax
import jax.numpy as xp
import numpy
from jax.experimental import io_callback

from bpnet.backends.base import GROUPED, SUMMED, Array, Backend, Key, State
from bpnet.compiler.random import GOLDEN
from bpnet.errors import DTypeError


def sum_rows(run: Any, x: Array) -> Array:
    return xp.sum(x, axis=0)


def scatter_add(run: Any, table: Array, index: Array, rows: Array) -> Array:
    """XLA's, which adds in the order of the rows on a processor; on other devices it does in whatever order.

    Of a small table there are several, each for a group of rows.
    """
    if jax.default_backend() != "cpu":
        return NotImplemented
    (count, width) = table.shape
    groups = max(1, min(-(-index.shape[0] // SUMMED), GROUPED // table.size))
    group = xp.arange(index.shape[0]) // -(-index.shape[0] // groups)
    return xp.sum(xp.zeros((groups, count, width), rows.dtype).at[group, index].add(rows), axis=0)


def read(run: Any, values: Any) -> Any:
    """Else XLA would read them again where they are used, and copy what is written to meanwhile."""
    return jax.lax.optimization_barrier(values)


def put_rows(run: Any, vectors: Any, puts: Any) -> Any:
    """Element by element, which XLA does in place where the vectors are donated."""
    if any(vector.size >= 2**31 for vector in vectors):  # whose elements int32 can't number
        return NotImplemented
    made = []
    for vector, some in zip(vectors, puts, strict=True):
        for part, shape, index, values in some:
            if index is not None:
                part = part.start + index[:, None] * shape[1] + xp.arange(shape[1])
            vector = vector.at[part].set(values)
        made.append(vector)
    return tuple(made)


def _kind_of(a: Any) -> Any:
    """All of an argument that decides whether JAX knows it."""
    return tuple([_kind_of(part) for part in a]) if isinstance(a, tuple) else getattr(a, "aval", type(a))


class JaxBackend(Backend):
    name = "jax"
    traces = True
    kernels: ClassVar = {"sum_rows": sum_rows, "scatter_add": scatter_add, "read": read, "put_rows": put_rows}

    def __init__(self, xp: Any) -> None:
        super().__init__(xp)
        self.seen: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
        """The kinds of arguments of which each compiled step is known to be called without JAX's Python."""

    def device(self, x: Array) -> Any:
        return None if isinstance(x, jax.core.Tracer) else super().device(x)

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        wide = None if dtype is None or jax.config.jax_enable_x64 else numpy.dtype(dtype)
        if wide is not None and wide.itemsize == 8:  # JAX would halve it, with no more than a warning
            narrow = numpy.asarray(value).astype(f"{wide.kind}4") if wide.kind in "iu" else None
            if narrow is None or not numpy.array_equal(narrow, value):
                raise DTypeError(
                    f"JAX computes with 32 bits, which can't hold these {wide} values: start with JAX_ENABLE_X64=1 "
                    "set, or call jax.config.update('jax_enable_x64', True) first"
                )
            value, dtype = narrow, narrow.dtype  # labels, as NumPy makes them
        return super().from_host(value, dtype, device)

    def to_host(self, x: Array) -> Any:
        return numpy.array(x)

    def unfit(self, x: Array) -> str | None:
        gone = getattr(x, "is_deleted", None)
        return "an array that was given up: copy what must stay" if gone is not None and gone() else None

    def synchronise(self, x: Array) -> None:
        jax.block_until_ready(x)

    def memory(self, x: Array) -> tuple[int, int] | None:
        stats = next(iter(x.devices())).memory_stats()
        return (stats["bytes_limit"] - stats["bytes_in_use"], stats["bytes_limit"]) if stats else None

    def _start(self, key: Key, first: Any, width: int, device: Any) -> Array:
        """As the base's, but by array operations, since the step and the row may be traced."""

        def word(part: Any) -> Array:
            return self._uint32(part & 0xFFFFFFFF if isinstance(part, int) else part, device)

        state = self._uint32(0, device)
        for part in key:
            state = self._hashed((state ^ word(part)) + self._uint32(GOLDEN, device), device)
        return state + word(first) * word(width * GOLDEN)

    def erf(self, x: Array) -> Array:
        return jax.scipy.special.erf(x)

    def compile(
        self, function: Callable[..., Any], donate: bool = False, choice: bool | str = "auto"
    ) -> Callable[..., Any]:
        if choice is False:
            return super().compile(function)
        compiled: Callable[..., Any] = jax.jit(partial(function, self), donate_argnums=0 if donate else ())
        return compiled

    def advance(self, step: Callable[..., Any], state: State, args: Sequence[Any], count: int) -> Any:
        """A call that JAX does not know yet goes through its Python, where an interrupt would lose what is donated.

        Such a one is given a copy, until one of its kind has come without.
        """
        known = getattr(step, "_cache_size", None)  # None: it was not compiled
        kind = _kind_of(args)
        if known is None or kind in (seen := self.seen.setdefault(step, set())):
            return super().advance(step, state, args, count)
        size = known()
        given = State(jax.tree.map(self.copy, state.now[0]), 0)
        result = super().advance(step, given, args, count)
        state.now = given.now
        if known() == size:
            seen.add(kind)
        return result

    def outside(
        self, function: Callable[[Backend, Any], Any], array: Array, text: str, captured: bool = False
    ) -> Array:
        """By NumPy where XLA compiles what is around: a function that it calls may not use JAX itself."""
        if not isinstance(array, jax.core.Tracer):
            return function(self, array)
        from bpnet.backends import get

        made = jax.ShapeDtypeStruct(array.shape, array.dtype)
        on_host = partial(function, get("numpy"))
        return io_callback(lambda a: numpy.asarray(on_host(numpy.array(a))), made, array, ordered=True)

    def explain(self, function: Callable[..., Any], args: Sequence[Any]) -> str:
        return "jax: the whole function as one program that XLA compiles; see jax.jit(...).lower(...).as_text()"

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        return [float(s) for s in jax.device_get(list(scalars))]


BACKEND = JaxBackend(xp)
