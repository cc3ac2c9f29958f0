"""NumPy's BLAS: its threads, and several matrix products in one call.

`np.matmul` gives BLAS one product at a time, and BLAS cuts it as its number of threads suggests, which changes bits.
OpenBLAS can also be given several products at once, `cblas_?gemm_batch`, and one of its threads computes each alone.
So here products are cut by their shapes, and the bits don't depend on the number of threads; and since BLAS's threads
wait awake for a while, they start within a microsecond, where a thread of Python's is woken in a hundred.
"""

import ctypes
import itertools
import math
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy

from bpnet.backends.base import Array
from bpnet.errors import OutOfMemoryError

Product = tuple[Array, Array, Array]
"""a, b, out: out <- a @ b, all of one float type."""

Limits = list[tuple["_Library", int]]
"""Libraries, each with the number of threads it had."""

SMALL = 100**3
"""Multiplications up to which OpenBLAS takes kernels for small matrices; in batches these crash (until 0.3.33)."""
LARGE = 2**28
"""Multiplications from which a product is cut in four; below in two, which is faster where there are two threads."""
BUFFER = 2**25
"""Bytes of memory in which OpenBLAS computes a product, for each that is computed at the same time."""
MOST_BUFFERS = 64
"""More than these are left to OpenBLAS, which has places for twice as many."""
SLEEPY = 0.1
"""Seconds after which OpenBLAS's threads are asleep: it lets them wait awake for 2**26 ticks of the clock."""
ROW_MAJOR, AS_IT_IS, TRANSPOSED = 101, 111, 112
"""What the C interface of BLAS calls these."""


class Blas:
    """Holds NumPy's BLAS at one thread while any session is open, in whichever thread, then restores what it found.

    A BLAS over OpenMP counts threads for each calling thread apart, so it is held in each.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Also held by whoever forks: what OpenBLAS itself holds just then would stay taken in the child."""
        self.open: set[Any] = set()
        """The sessions that hold it."""
        self.found: Limits = []
        self.shared: list[_Library] | None = None
        self.each: list[_Library] = []
        self.cut: dict[Any, Cut] = {}
        """By the type of products, how they are cut; a type that BLAS takes no batches of is missing."""
        self.used = -math.inf
        self.buffers: _Buffers | None = None

    def awake(self) -> bool:
        """Whether BLAS's threads may still be waiting awake, each of which keeps a processor busy."""
        return time.monotonic() - self.used < SLEEPY

    def forget(self, mine: Sequence[Any]) -> None:
        """In a forked child: end the sessions of threads that are not there, but not `mine`."""
        self.lock = threading.RLock()
        self.open &= set(mine)
        if not self.open:
            _restore(self.found)

    def find(self) -> None:
        if self.shared is None:
            from threadpoolctl import ThreadpoolController

            found = [_Library(c) for c in ThreadpoolController().select(user_api="blas").lib_controllers]
            mine = [
                c for c in found if any("numpy" in part for part in Path(c.controller.filepath).parts[-3:])
            ] or found
            self.each = [c for c in found if c.each]
            shared = [c for c in found if not c.each]
            if len(mine) == 1 and not mine[0].each and mine[0].controller.internal_api == "openblas":
                self.cut, self.buffers = _batches(mine[0]), _Buffers.of(mine[0])
            self.shared = shared  # last: what an interrupt kept from being found is looked for again

    def hold(self, session: Any, own: Limits) -> None:
        """Hold it for a session; `own` becomes what to restore in this thread."""
        with self.lock:
            if self.shared is None:
                self.find()
            if self.buffers is not None:
                self.buffers.reserve(len(self.open) + session.threads)
            if not (self.open or self.found):
                self.found = _limits(self.shared)
            self.open.add(session)
            _hold(self.found)
        if self.each:
            own += _limits(self.each)
            _hold(own)

    def release(self, session: Any, own: Limits) -> None:
        """End what `hold` began, or the rest of it where an interrupt broke that off, or this."""
        if own:
            _restore(own)
        with self.lock:
            self.open.discard(session)
            if not self.open:
                _restore(self.found)
                self.found = []

    def hold_for_good(self) -> None:
        """In a helper thread, which does nothing else."""
        with self.lock:
            self.find()
        _hold(_limits(self.each))

    def multiply(self, products: Sequence[Product], threads: int) -> None:
        """Compute every product, the large ones on so many threads; the result does not depend on their number."""
        cut = self.cut.get(products[0][2].dtype)
        pieces = None if cut is None else cut(tuple([_form(*product) for product in products]))
        for i, (a, b, out) in enumerate(products):
            if pieces is None or i in pieces.alone:
                numpy.matmul(a, b, out=out)
        if pieces is None or not pieces.count:
            return
        several = min(threads, pieces.count)
        if several > 1 and len(self.open) == 1:
            with self.lock:
                if len(self.open) == 1:  # other sessions rely on the one thread
                    try:
                        pieces.library.set(several)
                        pieces.compute(products)
                    finally:
                        pieces.library.set(1)
                        self.used = time.monotonic()
                    return
        pieces.compute(products)


Pair = tuple[int, int]
Form = tuple[Pair, Pair, Pair, Pair, Pair, bool]
"""Shapes of a and out, strides of a, b and out, and whether BLAS can do with their numbers."""
Cut = Callable[[tuple[Form, ...]], "_Pieces"]


def _form(a: Array, b: Array, out: Array) -> Form:
    fit = a.dtype == b.dtype == out.dtype and a.flags.aligned and b.flags.aligned
    return a.shape, out.shape, a.strides, b.strides, out.strides, fit


class _Pieces:
    """How products of certain forms are cut: all that BLAS is told of them, but for where they lie in memory."""

    def __init__(self, library: "_Library", function: Any, integer: Any, real: Any, forms: tuple[Form, ...]) -> None:
        size = ctypes.sizeof(real)
        self.alone: set[int] = set()
        """Products that are left to NumPy."""
        found: list[tuple[int, ...]] = []
        for i, ((rows, inner), (_, columns), left, right, (down, along), fit) in enumerate(forms):
            a, b = _read((rows, inner), left, size), _read((inner, columns), right, size)
            writable = along == size and down >= columns * size and down % size == 0
            if rows * inner * columns <= SMALL or a is None or b is None or not writable or not fit:
                self.alone.add(i)
                continue
            (ta, lda), (tb, ldb), ldc = a, b, down // size
            by_rows = 2 * rows >= columns
            for first, last in _cuts(rows, inner * columns) if by_rows else _cuts(columns, inner * rows):
                offsets = (first * left[0], 0, first * down) if by_rows else (0, first * right[1], first * along)
                sizes = (last - first, columns) if by_rows else (rows, last - first)
                found.append((i, *offsets, ta, tb, *sizes, inner, lda, ldb, ldc))
        self.count = n = len(found)
        self.sizes = [piece[6:9] for piece in found]
        """Rows, columns and inner size of every piece."""
        if not found:
            return
        self.library, self.function, self.pointers = library, function, ctypes.c_void_p * n
        self.places = [piece[:4] for piece in found]
        enums, integers, reals = ctypes.c_int * n, integer * n, real * n
        transposed, table = zip(*(p[4:6] for p in found), strict=True), zip(*(p[6:] for p in found), strict=True)
        *lengths, lda, ldb, ldc = (integers(*values) for values in table)
        self.before = (ROW_MAJOR, *(enums(*values) for values in transposed), *lengths, reals(*[1.0] * n))
        self.lda, self.ldb_and_beta, self.after = lda, (ldb, reals()), (ldc, n, integers(*[1] * n))

    def compute(self, products: Sequence[Product]) -> None:
        at = [[] if i in self.alone else [m.ctypes.data for m in product] for i, product in enumerate(products)]
        a, b, c = zip(*[(at[i][0] + da, at[i][1] + db, at[i][2] + dc) for i, da, db, dc in self.places], strict=True)
        pointers = self.pointers
        self.function(*self.before, pointers(*a), self.lda, pointers(*b), *self.ldb_and_beta, pointers(*c), *self.after)


def _batches(library: "_Library") -> dict[Any, Cut]:
    """By type, how products are cut for the library's functions for several; none where it is too old for these."""
    found: dict[Any, Cut] = {}
    configuration = _symbol(library.controller.dynlib, "openblas_get_config")
    if configuration is None:
        return found
    configuration.restype = ctypes.c_char_p
    integer = ctypes.c_int64 if b"USE64BITINT" in configuration() else ctypes.c_int
    for dtype, letter, real in ((numpy.float32, "s", ctypes.c_float), (numpy.float64, "d", ctypes.c_double)):
        function = _symbol(library.controller.dynlib, f"cblas_{letter}gemm_batch")
        if function is not None:
            function.restype = None
            function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 13, integer, ctypes.c_void_p]
            found[numpy.dtype(dtype)] = lru_cache(maxsize=256)(partial(_Pieces, library, function, integer, real))
    return found


def _cuts(size: int, work: int) -> list[tuple[int, int]]:
    """Where to cut an axis of so many entries, each of which costs `work` multiplications."""
    count = 4 if size * work > LARGE else 2
    if size // count * work <= SMALL:
        return [(0, size)]
    return [(size * i // count, size * (i + 1) // count) for i in range(count)]


def _read(shape: Pair, strides: Pair, size: int) -> Pair | None:
    """How BLAS reads a matrix, as it stands or transposed, and the distance of its rows or columns; None: it can't."""
    for (down, along), length, form in ((strides, shape[1], AS_IT_IS), (strides[::-1], shape[0], TRANSPOSED)):
        if along == size and down >= length * size and down % size == 0:
            return form, down // size
    return None


class _Library:
    """A BLAS in this process, and how many threads it takes."""

    def __init__(self, controller: Any) -> None:
        self.controller = controller
        self.each = getattr(controller, "threading_layer", "") == "openmp"  # thread has a number of its own
        self.set, self.get = controller.set_num_threads, controller.get_num_threads
        if controller.internal_api == "openblas":  # straight to the library: this is done in every call
            for name, result in (("get", ctypes.c_int), ("set", None)):
                function = _symbol(controller.dynlib, f"openblas_{name}_num_threads")
                if function is not None:
                    function.restype = result
                    setattr(self, name, function)


class _Buffers:
    """Memory in which OpenBLAS computes, which it takes when it first needs it and keeps.

    Where it gets none it ends the process.  So what is needed is had beforehand, or OutOfMemoryError raised; nothing of
    it is written to, so that it is address space and no more.
    """

    def __init__(self, allocate: Any, free: Any) -> None:
        self.allocate, self.free, self.count = allocate, free, 0
        allocate.argtypes, allocate.restype = [ctypes.c_int], ctypes.c_void_p
        free.argtypes, free.restype = [ctypes.c_void_p], None

    @classmethod
    def of(cls, library: "_Library") -> "_Buffers | None":
        functions = [getattr(library.controller.dynlib, f"blas_memory_{name}", None) for name in ("alloc", "free")]
        return None if None in functions else cls(*functions)

    def reserve(self, count: int) -> None:
        """See to it that so many products can be computed at the same time."""
        count = min(count, MOST_BUFFERS)
        if count <= self.count:
            return
        try:
            mmap.mmap(-1, (count - self.count) * BUFFER).close()
        except OSError as error:
            raise OutOfMemoryError(
                f"no memory for the buffers of matrix products, {count * BUFFER:,} bytes for {count} at a time: "
                f"{error}; give the trainer fewer threads"
            ) from error
        had: list[int] = []
        had.extend(map(self.allocate, [0] * count))
        deque(map(self.free, had), 0)
        self.count = count


def _symbol(dynlib: Any, name: str) -> Any:
    """The function `name` of OpenBLAS, as its builds for NumPy may call it; None where there is none."""
    for prefix, suffix in itertools.product(("scipy_", ""), ("64_", "_64", "")):
        function = getattr(dynlib, f"{prefix}{name}{suffix}", None)
        if function is not None:
            return function
    return None


def _limits(libraries: Sequence[_Library] | None) -> Limits:
    """The threads of those that have several."""
    return [(library, threads) for library in libraries or () if (threads := library.get()) != 1]


def _hold(limits: Limits) -> None:
    for library, _ in limits:
        library.set(1)


def _restore(limits: Limits) -> None:
    for library, threads in limits:
        library.set(threads)


BLAS = Blas()
