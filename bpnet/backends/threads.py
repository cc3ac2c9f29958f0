"""Threads for the NumPy backend: blocks over a pool, and BLAS held to one thread while they run."""

import functools
import os
import threading
from collections.abc import Callable, Generator, Sequence
from operator import call
from queue import SimpleQueue
from typing import Any

import numpy

from bpnet.backends.base import Rows
from bpnet.backends.blas import BLAS, Limits
from bpnet.backends.interrupts import Calls, NoWarnings, Session, current, uninterrupted

TRIES = 16
"""How often an update in place is resumed after interrupts before it counts as broken."""


@functools.cache
def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NumpySession(NoWarnings):
    """One public call that computes with NumPy: its threads, BLAS at one, and no floating-point warnings.

    Divergence is reported by name.
    """

    limits_blas = True

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or current.session.threads or available_threads()
        self.own: Limits = []

    def __enter__(self) -> None:
        super().__enter__()
        BLAS.hold(self, self.own)

    def __exit__(self, *_: object) -> None:
        BLAS.release(self, self.own)
        super().__exit__()

    def restore(self) -> None:
        BLAS.release(self, self.own)
        super().restore()


class ThreadsSession(Session):
    """The threads of a public call, where nothing more is to hold than does already.

    As of one that `compiles`: it computes with neither BLAS nor NumPy, until a session within it says that it does.
    """

    def __init__(self, threads: int | None, compiles: bool) -> None:
        outer = current.session
        self.threads = threads or outer.threads or available_threads()
        self.compiles, self.limits_blas = compiles, outer.limits_blas


class _Shares:
    """What helper threads and the caller do together, by shares that they claim one by one."""

    def __init__(self, count: int) -> None:
        self.count, self.left = count, list(range(count - 1, -1, -1))
        """Shares that nobody has claimed, the next one last."""
        self.news: SimpleQueue[None] = SimpleQueue()
        """An entry for whatever helpers did that the caller may wait for."""

    def claim(self) -> int | None:
        try:
            return self.left.pop()
        except IndexError:
            return None

    def start_helpers(self) -> None:
        """As many as the session allows."""
        helpers = min(current.session.threads, self.count) - 1
        if helpers > 0 and not current.inside:
            _pool.start(helpers, self.work)

    def work(self) -> None:
        """What a helper does: shares until none is left."""
        raise NotImplementedError


class ParallelMap(_Shares):
    """A function of blocks of rows, whose results are handed out in the order of the blocks.

    The caller may be interrupted at any moment, helpers never are.  So it waits for these alone, and takes no lock.
    """

    def __init__(self, function: Callable[[int, Rows], Any], blocks: Sequence[Rows]) -> None:
        super().__init__(len(blocks))
        self.function, self.blocks = function, blocks
        self.done: dict[int, tuple[Any, BaseException | None]] = {}
        self.came: list[None] = []
        self.went: list[None] = []
        """An entry for each helper: it came before it claimed anything, and went when it was through with that."""

    def work(self) -> None:
        self.came.append(None)
        while (number := self.claim()) is not None:
            self.run(number, BaseException)  # as what a layer of the user's raises
            self.news.put(None)
        self.went.append(None)
        self.news.put(None)

    def run(self, number: int, caught: type[BaseException] = Exception) -> None:
        outer, error = current.inside, None
        try:
            current.inside = True
            result = self.function(number, self.blocks[number])
        except caught as failure:  # raised in the order of the blocks
            result, error = None, failure
        finally:
            current.inside = outer
        self.done[number] = result, error

    def results(self) -> Generator[Any, None, None]:
        """The results in order; the caller works too."""
        try:
            self.start_helpers()
            for number in range(self.count):
                while number not in self.done:
                    mine = self.claim()
                    if mine is not None:
                        self.run(mine)
                    else:
                        self.news.get()
                result, error = self.done.pop(number)
                if error is not None:
                    raise error
                yield result
        finally:  # after an error, or where the caller stopped early, nobody claims more or goes on writing
            self.left.clear()
            while len(self.went) < len(self.came):
                self.news.get()


class ParallelUpdate(_Shares):
    """An update in place; `calls(i)` are what its i-th share does.

    Once begun it is done to its end, and an interrupt waits for that.
    """

    def __init__(self, calls: Callable[[int], Calls], count: int) -> None:
        super().__init__(count)
        self.calls = calls
        self.done: list[BaseException | None] = []
        """An entry for each share that is done: None, or the error that ended it in a helper."""

    def work(self) -> None:
        while (mine := self.claim()) is not None:
            try:
                uninterrupted(self.calls(mine))
            except BaseException as error:
                self.done.append(error)
            else:
                self.done.append(None)
            self.news.put(None)

    def carry_out(self, then: Calls) -> None:
        """All shares, and then these calls."""
        mine: list[int] = []
        started = False
        caught: BaseException | None = None
        for _ in range(TRIES):
            try:
                if not started:
                    self.start_helpers()
                    started = True
                while self.left or mine:
                    if not mine:
                        mine.extend(map(call, [self.left.pop]))  # claimed and noted in one
                    uninterrupted([*self.calls(mine[0]), (mine.clear,), (self.done.append, None)])
                while len(self.done) < self.count:
                    self.news.get()
                for error in self.done:
                    if error is not None:
                        raise error
                uninterrupted(then)
                break
            except IndexError as error:  # a helper was quicker
                if mine:
                    caught = error
            except BaseException as error:
                caught = error
        if caught is not None:
            raise caught


class _Pool:
    """Threads that wait for work; started when first needed, and again in a forked child."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.lock = threading.Lock()
        self.size = 0
        self.tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def start(self, copies: int, task: Callable[[], None]) -> None:
        """Have helpers do the task, so many at most: where the system gives no more threads, those that there are."""
        with self.lock:
            while self.size < copies:
                helper = threading.Thread(target=_serve, args=(self.tasks,), name=f"bpnet-{self.size}", daemon=True)
                try:
                    helper.start()
                except RuntimeError:
                    break
                self.size += 1
        for _ in range(min(copies, self.size)):
            self.tasks.put(task)


def _serve(tasks: "SimpleQueue[Callable[[], None]]") -> None:
    numpy.seterr(all="ignore")
    BLAS.hold_for_good()
    while True:
        tasks.get()()


def _in_child() -> None:
    """After a fork: the other threads are gone, and with them whatever they held."""
    _pool.forget()
    mine = [current.session]
    while hasattr(mine[-1], "outer"):
        mine.append(mine[-1].outer)
    BLAS.forget(mine)


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
