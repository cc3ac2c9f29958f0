"""NumPy on the CPU: row blocks over threads, each with a BLAS held to one thread.

Blocks, chunks and the order of sums depend on the data alone, so results never depend on the number of threads.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import array_api_compat.numpy as xp
import numpy

from bpnet.backends.base import Array, Backend, Context, Key, Piece, Rows, Rule, State
from bpnet.backends.blas import BLAS, Product
from bpnet.backends.interrupts import Calls, advance, current, store_rows, uninterrupted
from bpnet.backends.masks import draw_mask, mask_chunks
from bpnet.backends.numpy.in_place import InPlace, in_place
from bpnet.backends.numpy_kernels import CHUNK, KERNELS, by_chunks
from bpnet.backends.threads import NumpySession, ParallelMap, ParallelUpdate, ThreadsSession, available_threads
from bpnet.compiler.random import start_of
from bpnet.compiler.symbols import NotTraceableError
from bpnet.errors import MissingExtraError

T = TypeVar("T")

BLOCK_ROWS = 4096
"""Most rows in a block: larger products are no faster, and their temporaries no longer fit a cache."""
WHOLE = 1024
"""Most rows that stay one block, whose products are cut over BLAS's own threads: they start at once."""
LEAST_WORK = 2e6
"""Floating-point operations under which a batch is one block: waking a thread would cost more than it saves."""
ALONE = 2**20
"""Elements of a vector up to which one thread updates it while BLAS's threads wait awake: a second one would have to
share a processor with them."""
UPDATE_CHUNK = CHUNK // 2
"""Elements of a vector updated at a time: as many as stay in cache of the six that an update by Adam works on."""
WORTH_IT = 1e11
"""Floating-point operations of a trainer from which on its functions are compiled: one or two seconds of work."""


class NumpyBackend(Backend):
    name = "numpy"
    fused = repeated = "compiled code"
    oom_errors: ClassVar = (MemoryError, SystemError)
    """NumPy's functions may fail without a MemoryError where memory is short: "returned NULL without an error set"."""
    writable = True
    kernels: ClassVar = KERNELS | {"put_rows": store_rows}

    def device(self, x: Array) -> Any:
        return "cpu"

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        return numpy.array(value, dtype=dtype)

    def to_host(self, x: Array) -> Any:
        return x

    def empty_vector(self, size: int, like: Array) -> Array | None:
        return numpy.empty(size, like.dtype)

    def context(self, precision: str = "float32", grad_buffers: dict[int, Array] | None = None) -> Context:
        return Context(self, precision, grad_buffers)

    def store(self, out: Array, value: Array) -> None:
        out[...] = value

    def keep_mask(
        self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any, first: Any = 0
    ) -> Array:
        """The definition's, in chunks that stay in cache, over threads."""
        mask, start = numpy.empty(math.prod(shape), dtype), start_of(key, first * math.prod(shape[1:]))
        list(self.map_blocks(lambda _, chunk: draw_mask(mask, chunk, start, keep), mask_chunks(mask.size)))
        return mask.reshape(shape)

    # ---- how work is carried out --------------------------------------------------------------------------------

    def session(
        self, threads: int | None = None, device: Any = None, work: float = 0.0, choice: bool | str = "auto"
    ) -> AbstractContextManager[None]:
        if current.reference:
            return nullcontext()
        pays = work >= WORTH_IT and can_compile() if choice == "auto" else bool(choice)
        compiles = work > 0.0 and pays
        return ThreadsSession(threads, compiles) if compiles or current.session.limits_blas else NumpySession(threads)

    def compile(
        self, function: Callable[..., Any], donate: bool = False, choice: bool | str = "auto"
    ) -> Callable[..., Any]:
        """By LLVM where the `jit` extra is installed and it pays, else as it stands."""
        if choice is True and not can_compile():
            raise MissingExtraError("compile=True with NumPy arrays", "llvmlite", "jit")
        step = functools.partial(function, self)

        def plain(state: State | None, count: int, *args: Any) -> Any:
            if not current.session.limits_blas:
                with NumpySession(None):
                    return plain(state, count, *args)
            if state is None:
                return step(*args)
            result = advance(step, state, count, *args)
            return state.now[0], result

        @functools.cache
        def compiled_function() -> Any:
            if not can_compile():
                return None
            from bpnet.backends.numpy.compiled import CompiledFunction

            return CompiledFunction(function, plain, donate)

        def run(state: State | None, count: int, *args: Any) -> Any:
            session = current.session
            if not session.compiles:
                return plain(state, count, *args)
            compiled = compiled_function()
            threads, call = compiled.last
            if threads == session.threads:
                try:
                    return call(state, count, *args)
                except compiled.changed:
                    pass
            return compiled.find(session.threads, args)(state, count, *args)

        call: Any = functools.partial(run, None, 0)
        call.compiled, call.step = compiled_function, step
        return call  # type: ignore[no-any-return]

    def explain(self, function: Callable[..., Any], args: Sequence[Any]) -> str:
        made: Any = function
        compiled = made.compiled()
        if compiled is None:
            return "numpy: every operation as it stands; the extra jit (llvmlite) compiles it as a whole"
        return f"numpy: {compiled.explain(current.session.threads or available_threads(), args)}"

    def advance(self, step: Callable[..., Any], state: State, args: Sequence[Any], count: int) -> Any:
        made: Any = step
        if current.session.limits_blas and not current.session.compiles:
            return advance(made.step, state, count, state.now[0], *args)
        return made.func(state, count, state.now[0], *args)[1]

    def blocks(self, rows: int, work: float) -> list[Rows]:
        if rows <= WHOLE or rows * work < LEAST_WORK or current.inside:
            return [(0, rows)]
        return _cut(rows, max(2, -(-rows // BLOCK_ROWS)))

    def map_blocks(self, function: Callable[[int, Rows], T], blocks: Sequence[Rows]) -> Generator[T, None, None]:
        return ParallelMap(function, blocks).results() if len(blocks) > 1 else super().map_blocks(function, blocks)

    def multiply(self, products: Sequence[Product]) -> None:
        """out <- a @ b of every (a, b, out), the products cut over BLAS's threads by their shapes."""
        if current.inside:
            for a, b, out in products:
                numpy.matmul(a, b, out=out)
        else:
            BLAS.multiply(products, min(current.session.threads or 1, available_threads()))

    def add_to(self, total: Array, part: Array) -> Array:
        if total.ndim == 0:
            return total + part

        def add(number: int, rows: Rows) -> None:
            total[slice(*rows)] += part[slice(*rows)]

        list(self.map_blocks(add, [(i, i + 4 * CHUNK) for i in range(0, total.size, 4 * CHUNK)]))
        return total

    def evaluate(self, rule: Rule, arrays: Sequence[Array], out: Array) -> None:
        """out <- rule(self, *arrays), without temporaries where the rule can be traced; out may be arrays[0]."""
        program = _in_place(rule, len(arrays), 0, out.dtype, out.shape[1:])
        if program is None:
            value = rule(self, *arrays)
            if value is not out:
                out[...] = value
        else:
            uninterrupted(program.calls(numpy, arrays, (), (out,), _scratch(program.needs, out)))

    def fuse(self, rule: Rule) -> Rule:
        """The rule in chunks of rows that stay in cache, over threads."""
        return functools.partial(by_chunks, rule)

    def map_vector(
        self, rule: Rule, outputs: int, arrays: Sequence[Array], pieces: Sequence[Piece], donate: bool
    ) -> tuple[Array, ...]:
        """In chunks that stay in cache, over threads; without temporaries where it can be traced."""
        deferred = current.deferred
        program = _in_place(rule, len(arrays), len(pieces[0][2]), arrays[0].dtype, ()) if pieces else None
        donate = donate and program is not None  # else the rule may fail when part of it is done
        results = tuple(arrays[:outputs]) if donate else tuple(numpy.empty_like(a) for a in arrays[:outputs])
        update = functools.partial(_update, functools.partial(rule, self), program, arrays, pieces, results)
        if donate and deferred is not None:
            deferred.append(update)
        else:
            update(())
        return results


def _update(
    rule: Rule,
    program: InPlace | None,
    arrays: Sequence[Array],
    pieces: Sequence[Piece],
    results: Sequence[Array],
    then: Calls,
) -> None:
    """results <- rule(*arrays, *scalars) of vectors, in chunks, and then these calls.

    All of it or nothing, whatever interrupt comes, or lack of memory.  With a program the i-th result may be the i-th
    array.
    """

    def calls(arrays: Sequence[Array], scalars: tuple[float, ...], results: Sequence[Array], scratch: Array) -> Calls:
        if program is not None:
            return program.calls(numpy, arrays, scalars, results, scratch)
        made = rule(*arrays, *scalars)
        return [(operator.setitem, out, ..., value) for out, value in zip(results, made, strict=True)]

    size, needs = arrays[0].size, 0 if program is None else program.needs
    if size <= UPDATE_CHUNK and len(pieces) == 1:
        uninterrupted([*calls(arrays, pieces[0][2], results, _scratch(needs, results[0])), *then])
        return
    chunks = [
        (slice(start, min(start + UPDATE_CHUNK, stop)), scalars)
        for first, stop, scalars in pieces
        for start in range(first, stop, UPDATE_CHUNK)
    ]

    def share(first: int, stop: int, scratch: Array) -> Iterator[tuple[Any, ...]]:
        for c, scalars in chunks[first:stop]:
            some = scratch[:, : c.stop - c.start]
            yield from calls([a[c] for a in arrays], scalars, [r[c] for r in results], some)

    if size <= (ALONE if BLAS.awake() else CHUNK):
        uninterrupted([*share(0, len(chunks), _scratch(needs, results[0][:UPDATE_CHUNK])), *then])
        return
    count = max(2, min(8, len(chunks) // 4))
    shares = _cut(len(chunks), count)
    scratch = _scratch(count * needs, results[0][:UPDATE_CHUNK], "shares")  # all that is needed, beforehand
    parts = [list(share(*rows, scratch[i * needs : (i + 1) * needs])) for i, rows in enumerate(shares)]
    ParallelUpdate(parts).carry_out(then)


def _cut(size: int, count: int) -> list[Rows]:
    """So many parts of a size, as equal as can be."""
    return list(itertools.pairwise(size * i // count for i in range(count + 1)))


@functools.cache
def can_compile() -> bool:
    """Whether llvmlite is there, and not older than its present way to optimize."""
    try:
        from llvmlite import binding
    except Exception:  # an installation can be broken in any way
        return False
    return hasattr(binding, "create_pass_builder")


_memory = threading.local()


def _scratch(count: int, like: Array, name: str = "scratch") -> Array:
    """Arrays for intermediate results; each thread keeps its own, since new memory is slower than arithmetic."""
    memory = getattr(_memory, name, None)
    if memory is None or memory.dtype != like.dtype or memory.shape[0] < count or memory.shape[1] < like.size:
        memory = numpy.empty((count, like.size), like.dtype)
        setattr(_memory, name, memory)
    some = memory[:count, : like.size]
    return some if like.ndim == 1 else some.reshape(count, *like.shape)


@functools.lru_cache(maxsize=256)
def _in_place(rule: Rule, arrays: int, scalars: int, dtype: Any, row: tuple[int, ...]) -> InPlace | None:
    """The rule as calls without temporaries, or None where it does something that can't be traced."""
    try:
        return in_place(rule, arrays, scalars, dtype.name, row)
    except NotTraceableError:
        return None


# glibc gives back the free end of its memory once that is twice the largest block it has seen freed, up to 64 MB.  So
# one such block is freed here, which was never written to and so took no memory: then what a step frees stays for the
# next step.  Elsewhere this does nothing.
numpy.empty(2**25 - 2**16, numpy.uint8)

BACKEND = NumpyBackend(xp)
