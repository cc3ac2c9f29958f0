"""NumPy on the CPU: row blocks over threads, each running a BLAS held to one thread, so results never depend on their number."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import array_api_compat.numpy as xp
import numpy

from bpnet.backends.base import Array, Backend, Key, Piece, Rows, Rule, fold

T = TypeVar("T")

BLOCK_ROWS = 4096
"""Most rows in a block: larger products are no faster, and their temporaries no longer fit a cache."""
LEAST_ROWS = 16
"""Fewest rows in a block: below, a product spends its time packing the weights."""
LEAST_WORK = 2e7
"""Floating-point operations under which a batch is one block: waking a thread would cost more than it saves."""
CHUNK = 65536
"""Elements of a vector that an elementwise rule handles at a time, so that its temporaries stay in cache."""


class NumpyBackend(Backend):
    name = "numpy"

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
        return _Session(threads)

    def blocks(self, rows: int, work: float) -> list[Rows]:
        if rows * work < LEAST_WORK or rows < 2 * LEAST_ROWS:
            return [(0, rows)]
        count = max(2, -(-rows // BLOCK_ROWS))
        cuts = [rows * i // count for i in range(count + 1)]
        return list(itertools.pairwise(cuts))

    def map_blocks(self, function: Callable[[int, Rows], T], blocks: Sequence[Rows]) -> Iterator[T]:
        helpers = min(getattr(_current, "threads", 1), len(blocks)) - 1
        if helpers < 1:
            return super().map_blocks(function, blocks)
        return _Job(function, blocks).results(helpers)

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
        results = tuple(arrays[:outputs]) if donate else tuple(numpy.empty_like(a) for a in arrays[:outputs])
        fused = self.fuse(rule)

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


# ---- threads --------------------------------------------------------------------------------------------------------

_current = threading.local()
"""`_current.threads`: how many threads the public call running in this thread may use."""


def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Session:
    """One public call: its threads, BLAS at one thread, and no floating-point warnings (divergence is reported by name)."""

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or available_threads()
        self.errors = numpy.errstate(all="ignore")

    def __enter__(self) -> None:
        self.outer = getattr(_current, "threads", 1)
        _current.threads = self.threads
        self.errors.__enter__()
        _blas.hold()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _blas.release()
        self.errors.__exit__(kind, error, trace)
        _current.threads = self.outer


class _Blas:
    """Holds NumPy's BLAS at one thread while any session is open, in whichever thread, and then restores what it found."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.found: list[tuple[Any, int]] = []
        self.libraries: list[Any] | None = None

    def hold(self) -> None:
        with self.lock:
            if self.libraries is None:
                from threadpoolctl import ThreadpoolController

                self.libraries = list(ThreadpoolController().select(user_api="blas").lib_controllers)
            if self.open == 0:
                self.found = [(library, library.get_num_threads()) for library in self.libraries]
                for library, threads in self.found:
                    if threads != 1:
                        library.set_num_threads(1)
            self.open += 1

    def release(self) -> None:
        with self.lock:
            self.open -= 1
            if self.open == 0:
                for library, threads in self.found:
                    if threads != 1:
                        library.set_num_threads(threads)


class _Job:
    """Blocks claimed one after another by helper threads and by the caller, results handed out in the order of the blocks."""

    def __init__(self, function: Callable[[int, Rows], Any], blocks: Sequence[Rows]) -> None:
        self.function = function
        self.blocks = blocks
        self.next = 0
        self.done: dict[int, Any] = {}
        self.changed = threading.Condition()

    def claim(self) -> int | None:
        with self.changed:
            number = self.next
            if number == len(self.blocks):
                return None
            self.next = number + 1
            return number

    def work(self) -> None:
        """What a helper does: blocks until none is left."""
        while (number := self.claim()) is not None:
            self.run(number)

    def run(self, number: int) -> None:
        try:
            result: Any = self.function(number, self.blocks[number])
        except BaseException as error:
            result = _Failure(error)
        with self.changed:
            self.done[number] = result
            self.changed.notify()

    def results(self, helpers: int) -> Iterator[Any]:
        _pool.start(helpers, self.work)
        try:
            for wanted in range(len(self.blocks)):
                while wanted not in self.done:
                    mine = self.claim()
                    if mine is not None:
                        self.run(mine)
                        continue
                    with self.changed:
                        while wanted not in self.done:
                            self.changed.wait()
                result = self.done.pop(wanted)
                if isinstance(result, _Failure):
                    raise result.error
                yield result
        finally:
            with self.changed:  # after an error, or where the caller stopped early, nobody claims more
                self.next = len(self.blocks)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Pool:
    """Threads that wait for work; started when first needed, and again in a forked child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self.size = 0
        self.tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def start(self, copies: int, task: Callable[[], None]) -> None:
        with self.lock:
            while self.size < copies:
                threading.Thread(target=_serve, args=(self.tasks,), name=f"bpnet-{self.size}", daemon=True).start()
                self.size += 1
        for _ in range(copies):
            self.tasks.put(task)


def _serve(tasks: "SimpleQueue[Callable[[], None]]") -> None:
    numpy.seterr(all="ignore")
    while True:
        tasks.get()()


_blas = _Blas()
_pool = _Pool()
BACKEND = NumpyBackend(xp)
