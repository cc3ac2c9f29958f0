"""NumPy on the CPU: row blocks over threads, each with a BLAS held to one thread.

Blocks, chunks and the order of sums depend on the data alone, so results never depend on the number of threads.
"""

import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import array_api_compat.numpy as xp
import numpy

from bpnet.backends.base import Array, Backend, Key, Piece, Rows, Rule, fold
from bpnet.backends.jit import JIT
from bpnet.backends.numpy_kernels import CHUNK, KERNELS, by_chunks
from bpnet.backends.threads import Job, Session, inside
from bpnet.backends.trace import InPlace, NotTraceableError, Program, in_place

T = TypeVar("T")

BLOCK_ROWS = 4096
"""Most rows in a block: larger products are no faster, and their temporaries no longer fit a cache."""
LEAST_ROWS = 16
"""Fewest rows in a block: below, a product spends its time packing the weights."""
LEAST_WORK = 2e7
"""Floating-point operations under which a batch is one block: waking a thread would cost more than it saves."""
SWEPT = 2 * CHUNK
"""Elements of a vector updated at a time: with fewer, longer operations threads wait less for each other."""
DRAWN = 4 * CHUNK
"""Random numbers drawn with one key."""


class NumpyBackend(Backend):
    name = "numpy"
    kernels: ClassVar = KERNELS

    def device(self, x: Array) -> Any:
        return "cpu"

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        return numpy.array(value, dtype=dtype)

    def to_host(self, x: Array) -> Any:
        return x

    def flat(self, x: Array) -> Array:
        return x.reshape(-1)

    def memory(self, x: Array) -> tuple[int, int] | None:
        if not hasattr(os, "sysconf"):
            return None
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")

    def keep_mask(self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any) -> Array:
        """Drawn 16 bits at a time by NumPy's SFC64, seeded by the key; `keep` is rounded to a multiple of 2**-16."""
        threshold = min(max(round(keep * 65536), 1), 65535)
        mask = numpy.empty(math.prod(shape), dtype)

        def draw(number: int, part: Rows) -> None:
            start, stop = part
            words = numpy.random.SFC64(fold((*key, number))).random_raw((stop - start + 3) // 4)
            bits = words.view(numpy.uint16)[: stop - start]
            numpy.multiply(bits < threshold, 65536 / threshold, out=mask[start:stop], casting="unsafe")

        list(self.map_blocks(draw, [(i, min(i + DRAWN, mask.size)) for i in range(0, mask.size, DRAWN)]))
        return mask.reshape(shape)

    def scatter_add(self, length: int, index: Array, values: Array) -> Array:
        total = numpy.zeros((length, *values.shape[1:]), dtype=values.dtype)
        numpy.add.at(total, index, values)
        return total

    # ---- how work is carried out --------------------------------------------------------------------------------

    def session(self, threads: int | None = None, device: Any = None) -> AbstractContextManager[None]:
        return Session(threads)

    def blocks(self, rows: int, work: float) -> list[Rows]:
        if rows < 2 * LEAST_ROWS or rows * work < LEAST_WORK or inside():
            return [(0, rows)]
        count = max(2, -(-rows // BLOCK_ROWS))
        cuts = [rows * i // count for i in range(count + 1)]
        return list(itertools.pairwise(cuts))

    def map_blocks(self, function: Callable[[int, Rows], T], blocks: Sequence[Rows]) -> Iterator[T]:
        return Job(function, blocks).results() if len(blocks) > 1 else super().map_blocks(function, blocks)

    def add_to(self, total: Array, part: Array) -> Array:
        for _ in self.map_blocks(
            lambda _, rows: numpy.add(total[slice(*rows)], part[slice(*rows)], out=total[slice(*rows)]),
            [(i, i + 4 * CHUNK) for i in range(0, total.size, 4 * CHUNK)],
        ):
            pass
        return total

    def fuse(self, rule: Rule) -> Rule:
        """The rule in chunks of rows that stay in cache, over threads."""
        return functools.partial(by_chunks, rule)

    def sweep(
        self, rule: Rule, outputs: int, arrays: Sequence[Array], pieces: Sequence[Piece], donate: bool
    ) -> tuple[Array, ...]:
        """In chunks that stay in cache, over threads; compiled, or without temporaries, where it can be traced."""
        results = tuple(arrays[:outputs]) if donate else tuple(numpy.empty_like(a) for a in arrays[:outputs])
        scalar_count = len(pieces[0][2])
        loop = JIT.loop(rule, arrays, scalar_count, self.jit) if donate else None
        program = _program(rule, len(arrays), scalar_count)

        def apply(start: int, stop: int, scalars: tuple[float, ...]) -> None:
            ins, outs = [a[start:stop] for a in arrays], [r[start:stop] for r in results]
            if loop is not None:
                loop(ins, scalars)
                return
            if program is not None:
                scratch = _scratch(program.needs, stop - start, ins[0].dtype)
                program.call(numpy, ins, scalars, outs, scratch)
                return
            values = [numpy.array(v) if any(v is a for a in ins) else v for v in rule(self, *ins, *scalars)]
            for out, value in zip(outs, values, strict=True):
                out[...] = value

        if arrays[0].size <= SWEPT:
            for start, stop, scalars in pieces:
                apply(start, stop, scalars)
            return results
        chunks = [
            (start, min(start + SWEPT, stop), scalars)
            for first, stop, scalars in pieces
            for start in range(first, stop, SWEPT)
        ]

        def share(number: int, part: Rows) -> None:
            for chunk in chunks[slice(*part)]:
                apply(*chunk)

        shares = max(2, min(8, len(chunks) // 4))
        cuts = [len(chunks) * i // shares for i in range(shares + 1)]
        list(self.map_blocks(share, list(itertools.pairwise(cuts))))
        return results


_kept = threading.local()


def _scratch(count: int, size: int, dtype: Any) -> Array:
    """Arrays for intermediate results; each thread keeps its own, since new memory is slower than arithmetic."""
    kept = getattr(_kept, "scratch", None)
    if kept is None or kept.dtype != dtype or kept.shape[0] < count or kept.shape[1] < size:
        kept = _kept.scratch = numpy.empty((count, size), dtype)
    return kept[:count, :size]


@functools.cache
def _program(rule: Rule, arrays: int, scalars: int) -> InPlace | None:
    """The rule as calls without temporaries, or None where it does something that can't be traced."""
    try:
        return in_place(Program(rule, arrays, scalars))
    except NotTraceableError:
        return None


BACKEND = NumpyBackend(xp)
