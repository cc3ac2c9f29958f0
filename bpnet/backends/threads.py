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

current = threading.local()
"""`current.threads`: how many threads the public call in this thread may use; `current.inside`: see `inside`."""


def inside() -> bool:
    """Whether this thread is at work on one of several blocks, which is then not cut again."""
    return getattr(current, "inside", False)


@functools.cache
def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session:
    """One public call: its threads, BLAS at one, and no floating-point warnings (divergence is reported by name)."""

    def __init__(self, threads: int | None) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.outer = getattr(current, "threads", 0)
        if not self.outer:
            self.own = _blas.hold()
            self.errors = numpy.errstate(all="ignore")
            self.errors.__enter__()
            current.inside = False
        current.threads = self.threads or self.outer or available_threads()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current.threads = self.outer
        if not self.outer:
            self.errors.__exit__(kind, error, trace)
            _blas.release(self.own)


Limits = list[tuple[Any, int]]
"""Libraries, each with the number of threads it had."""


class _Blas:
    """Holds NumPy's BLAS at one thread while any session is open, in whichever thread, then restores what it found.

    A BLAS over OpenMP counts threads for each calling thread apart, so it is held in each.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.found: Limits = []
        self.shared: list[Any] | None = None
        self.each: list[Any] = []

    def forget(self) -> None:
        """In a forked child: end the sessions of threads that are not there, but not one in which the fork was made."""
        self.lock = threading.Lock()
        mine = 1 if getattr(current, "threads", 0) else 0
        if self.open > mine:
            self.open = mine
            if not mine:
                _restore(self.found)

    def find(self) -> None:
        if self.shared is None:
            from threadpoolctl import ThreadpoolController

            libraries = ThreadpoolController().select(user_api="blas").lib_controllers
            self.each = [library for library in libraries if getattr(library, "threading_layer", "") == "openmp"]
            self.shared = [library for library in libraries if library not in self.each]

    def hold(self) -> Limits:
        """Hold it; what to restore in this thread."""
        with self.lock:
            self.find()
            if self.open == 0:
                self.found = _limit(self.shared or [])
            self.open += 1
        return _limit(self.each) if self.each else []

    def release(self, own: Limits) -> None:
        _restore(own)
        with self.lock:
            self.open -= 1
            if self.open == 0:
                _restore(self.found)

    def hold_for_good(self) -> None:
        """In a helper thread, which does nothing else."""
        with self.lock:
            self.find()
        _limit(self.each)


def _limit(libraries: list[Any]) -> Limits:
    found = [(library, library.get_num_threads()) for library in libraries]
    _restore([(library, 1) for library, threads in found if threads != 1])
    return [(library, threads) for library, threads in found if threads != 1]


def _restore(limits: Limits) -> None:
    for library, threads in limits:
        # From 3.7 on, threadpoolctl's own setter does nothing in any but the first thread that used it.
        getattr(library, "_real_set_num_threads", library.set_num_threads)(threads)


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
        outer = inside()
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
        helpers = min(getattr(current, "threads", 0), len(self.blocks)) - 1
        if helpers > 0 and not inside():
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
    _blas.hold_for_good()
    while True:
        tasks.get()()


def _in_child() -> None:
    """After a fork: the other threads are gone, and with them whatever they held."""
    _pool.forget()
    _blas.forget()


_blas = _Blas()
_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
