"""Threads for the NumPy backend: blocks over a pool, and BLAS held to one thread while they run."""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy

from bpnet.backends.base import Rows
from bpnet.backends.blas import BLAS


class _Current(threading.local):
    threads = 0
    """How many threads the public call in this thread may use; 0: there is none."""
    compiles = False
    """Whether that call runs compiled functions."""
    held = False
    """Whether BLAS is held at one thread."""
    inside = False
    """Whether this thread is at work on one of several blocks, which is then not cut again."""


current = _Current()


@functools.cache
def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session:
    """One public call: its threads, BLAS at one, and no floating-point warnings (divergence is reported by name).

    A call that `compiles` computes with neither BLAS nor NumPy, until a session within it says that it does.
    """

    __slots__ = ("before", "compiles", "errors", "held", "outer", "own", "threads")

    def __init__(self, threads: int | None, compiles: bool) -> None:
        self.threads, self.compiles = threads, compiles

    def __enter__(self) -> None:
        self.held = not self.compiles and not current.held
        if self.held:
            self.own = BLAS.hold()
            self.errors = numpy.errstate(all="ignore")
            self.errors.__enter__()
            current.held = True
        self.outer, self.before = current.threads, current.compiles
        current.threads, current.compiles = self.threads or self.outer or available_threads(), self.compiles

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current.threads, current.compiles = self.outer, self.before
        if self.held:
            current.held = False
            self.errors.__exit__(kind, error, trace)
            BLAS.release(self.own)


class Job:
    """Blocks claimed one by one by helper threads and the caller, results handed out in the order of the blocks."""

    def __init__(self, function: Callable[[int, Rows], Any], blocks: Sequence[Rows]) -> None:
        self.function = function
        self.blocks = blocks
        self.next = self.running = 0
        self.done: dict[int, Any] = {}
        self.changed = threading.Condition()

    def claim(self) -> int | None:
        with self.changed:
            number = self.next
            if number == len(self.blocks):
                return None
            self.next = number + 1
            self.running += 1
            return number

    def work(self) -> None:
        """What a helper does: blocks until none is left."""
        while (number := self.claim()) is not None:
            self.run(number)

    def run(self, number: int) -> None:
        outer = current.inside
        try:
            current.inside = True
            result: Any = self.function(number, self.blocks[number])
        except BaseException as error:
            result = _Failure(error)
        finally:
            current.inside = outer
        with self.changed:
            self.done[number] = result
            self.running -= 1
            self.changed.notify()

    def results(self) -> Iterator[Any]:
        """The results in order; the caller works too, with as many helpers as its session allows."""
        helpers = min(current.threads, len(self.blocks)) - 1
        if helpers > 0 and not current.inside:
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
            with (
                self.changed
            ):  # after an error, or where the caller stopped early, nobody claims more or goes on writing
                self.next = len(self.blocks)
                while self.running:
                    self.changed.wait()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Pool:
    """Threads that wait for work; started when first needed, and again in a forked child."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.lock = threading.Lock()
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
    BLAS.hold_for_good()
    while True:
        tasks.get()()


def _in_child() -> None:
    """After a fork: the other threads are gone, and with them whatever they held."""
    _pool.forget()
    BLAS.forget(1 if current.held else 0)


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
