"""NumPy on the CPU: row blocks over threads, each running a BLAS held to one thread, so results never depend on their number."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import array_api_compat.numpy as xp
import numpy

from bpnet.backends.base import Array, Backend, Key, Piece, Rows, Rule, fold
from bpnet.backends.threads import Job, Session, current

T = TypeVar("T")

BLOCK_ROWS = 4096
"""Most rows in a block: larger products are no faster, and their temporaries no longer fit a cache."""
LEAST_ROWS = 16
"""Fewest rows in a block: below, a product spends its time packing the weights."""
LEAST_WORK = 2e7
"""Floating-point operations under which a batch is one block: waking a thread would cost more than it saves."""
CHUNK = 65536
"""Elements of a vector that an elementwise rule handles at a time, so that its temporaries stay in cache."""


def dense_forward(run: Any, x: Array, weight: Array, bias: Array | None, f: Any) -> tuple[Array, Array | None]:
    """y over the memory of z where the derivative does not read z, and in chunks of rows that stay in cache."""
    z = x @ weight
    if z.size <= CHUNK:
        if bias is not None:
            z += bias
        y = f.value(run.backend, z)
        return y, f.keep(z, y)
    y = numpy.empty_like(z) if f.keeps == "input" else z
    for part in _chunks(z):
        if bias is not None:
            z[part] += bias
        if f.keeps != "nothing":
            y[part] = f.value(run.backend, z[part])
    return y, f.keep(z, y)


def dense_backward(
    run: Any, x: Array, weight: Array, kept: Array | None, dy: Array, f: Any, need_dx: bool, has_bias: bool
) -> tuple[Array | None, Array, Array | None]:
    """dz and its column sums in chunks of rows that stay in cache."""
    if kept is None or dy.size <= CHUNK:
        dz = f.derivative(run.backend, kept, dy)
        db = numpy.add.reduce(dz, axis=0) if has_bias else None
    else:
        dz, db = numpy.empty_like(dy), numpy.zeros_like(dy[0]) if has_bias else None
        for part in _chunks(dy):
            dz[part] = f.derivative(run.backend, kept[part], dy[part])
            if db is not None:
                db += numpy.add.reduce(dz[part], axis=0)
    return dz @ weight.T if need_dx else None, x.T @ dz, db


def _chunks(a: Array) -> list[slice]:
    """Slices of rows of about CHUNK elements."""
    step = max(CHUNK // a.shape[1], 1)
    return [slice(start, start + step) for start in range(0, a.shape[0], step)]


class NumpyBackend(Backend):
    name = "numpy"
    kernels: ClassVar = {"dense_forward": dense_forward, "dense_backward": dense_backward}

    def device(self, x: Array) -> Any:
        return "cpu"

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        return numpy.array(value, dtype=dtype)

    def to_host(self, x: Array) -> Any:
        return x

    def memory(self, x: Array) -> tuple[int, int] | None:
        if not hasattr(os, "sysconf"):
            return None
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")

    def keep_mask(self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any) -> Array:
        """Drawn 16 bits at a time by NumPy's SFC64 generator, seeded by the key; `keep` is rounded to a multiple of 2**-16."""
        threshold = min(max(round(keep * 65536), 1), 65535)
        count = 1
        for n in shape:
            count *= n
        words = numpy.random.SFC64(fold(key)).random_raw(-(-count // 4))
        bits = words.view(numpy.uint16)[:count].reshape(shape)
        return numpy.multiply(bits < threshold, 65536 / threshold, dtype=dtype)

    def scatter_add(self, length: int, index: Array, values: Array) -> Array:
        total = numpy.zeros((length, *values.shape[1:]), dtype=values.dtype)
        numpy.add.at(total, index, values)
        return total

    # ---- how work is carried out --------------------------------------------------------------------------------

    def session(self, threads: int | None = None) -> AbstractContextManager[None]:
        return Session(threads)

    def blocks(self, rows: int, work: float) -> list[Rows]:
        if rows * work < LEAST_WORK or rows < 2 * LEAST_ROWS:
            return [(0, rows)]
        count = max(2, -(-rows // BLOCK_ROWS))
        cuts = [rows * i // count for i in range(count + 1)]
        return list(itertools.pairwise(cuts))

    def map_blocks(self, function: Callable[[int, Rows], T], blocks: Sequence[Rows]) -> Iterator[T]:
        helpers = min(getattr(current, "threads", 1), len(blocks)) - 1
        if helpers < 1:
            return super().map_blocks(function, blocks)
        return Job(function, blocks).results(helpers)

    def add_to(self, total: Array, part: Array) -> Array:
        return numpy.add(total, part, out=total)

    def sweep(
        self,
        rule: Rule,
        outputs: int,
        arrays: Sequence[Array],
        pieces: Sequence[Piece],
        donate: bool,
    ) -> tuple[Array, ...]:
        fused = self.fuse(rule)
        results = tuple(arrays[:outputs]) if donate else tuple(numpy.empty_like(a) for a in arrays[:outputs])

        def apply(start: int, stop: int, scalars: tuple[float, ...]) -> None:
            values = fused(self, *[a[start:stop] for a in arrays], *scalars)
            for result, value in zip(results, values, strict=True):
                result[start:stop] = value

        if arrays[0].shape[0] <= CHUNK:
            for piece in pieces:
                apply(*piece)
            return results
        chunks = [
            (start, min(start + CHUNK, stop), scalars)
            for first, stop, scalars in pieces
            for start in range(first, stop, CHUNK)
        ]

        def apply_some(number: int, part: Rows) -> None:
            for chunk in chunks[slice(*part)]:
                apply(*chunk)

        half = -(-len(chunks) // 2)
        list(self.map_blocks(apply_some, [(0, half), (half, len(chunks))]))
        return results


BACKEND = NumpyBackend(xp)
