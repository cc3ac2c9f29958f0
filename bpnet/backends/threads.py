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
from bpnet.backends.interrupts import Calls, Quiet, current, uninterrupted

TRIES = 16
"""How often an update in place is resumed after interrupts before it counts as broken."""


@functools.cache
def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NumpySession(Quiet):
    """One public call: its threads, BLAS at one, and no floating-point warnings (divergence is reported by name).

    A call that `compiles` computes with neither BLAS nor NumPy, until a session within it says that it does.
    """

    __slots__ = ("compiles", "held", "holds", "own", "threads")

    def __init__(self, threads: int | None, compiles: bool) -> None:
        self.threads, self.compiles = threads or 0, compiles

    def __enter__(self) -> None:
        outer = self.outer = current.session
        self.threads = self.threads or outer.threads or available_threads()
        self.holds = not (self.compiles or outer.held)
        self.held = self.holds or outer.held
        if self.holds:
            self.own: Limits = []
            self.look()
        current.session = self
        if self.holds:
            self.change()
            BLAS.hold(self, self.own)

    def __exit__(self, *_: object) -> None:
        if not self.holds and current.session is self:
            current.session = self.outer
            return
        if self.holds:
            BLAS.release(self, self.own)
        super().__exit__()

    def restore(self) -> None:
        if self.holds:
            BLAS.release(self, self.own)
            super().restore()


class Job:
    """Blocks claimed one by one by helper threads and the caller, results handed out in the order of the blocks.

    The caller may be interrupted at any moment, helpers never are.  So it waits for these alone, and takes no lock.
    """

    def __init__(self, function: Callable[[int, Rows], Any], blocks: Sequence[Rows]) -> None:
        self.function, self.blocks = function, blocks
        self.left = list(range(len(blocks) - 1, -1, -1))
        """Blocks that nobody has claimed, the next one last."""
        self.done: dict[int, Any] = {}
        self.came: list[None] = []
        self.went: list[None] = []
        """An entry for each helper: it came before it claimed anything, and went when it was through with that."""
        self.news: SimpleQueue[None] = SimpleQueue()
        """An entry for whatever helpers did that the caller may wait for."""

    def claim(self) -> int | None:
        try:
            return self.left.pop()
        except IndexError:
            return None

    def work(self) -> None:
        """What a helper does: blocks until none is left."""
        self.came.append(None)
        while (number := self.claim()) is not None:
            try:
                self.run(number)
            except BaseException as error:  # as what a layer of the user's raises
                self.done[number] = _Failure(error)
            self.news.put(None)
        self.went.append(None)
        self.news.put(None)

    def run(self, number: int) -> None:
        outer = current.inside
        try:
            current.inside = True
            result: Any = self.function(number, self.blocks[number])
        except Exception as error:  # raised in the order of the blocks
            result = _Failure(error)
        finally:
            current.inside = outer
        self.done[number] = result

    def results(self) -> Generator[Any, None, None]:
        """The results in order; the caller works too, with as many helpers as its session allows."""
        helpers = min(current.session.threads, len(self.blocks)) - 1
        try:
            if helpers > 0 and not current.inside:
                _pool.start(helpers, self.work)
            for wanted in range(len(self.blocks)):
                while wanted not in self.done:
                    mine = self.claim()
                    if mine is not None:
                        self.run(mine)
                    else:
                        self.news.get()
                result = self.done.pop(wanted)
                if isinstance(result, _Failure):
                    raise result.error
                yield result
        finally:  # after an error, or where the caller stopped early, nobody claims more or goes on writing
            self.left.clear()
            while len(self.went) < len(self.came):
                self.news.get()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class Update:
    """Shares of an update in place, for helper threads and the caller; `calls(i)` are what the i-th share does.

    Once begun it is done to its end, and an interrupt waits for that.
    """

    def __init__(self, calls: Callable[[int], Calls], count: int) -> None:
        self.calls, self.count = calls, count
        self.left = list(range(count))
        self.done: list[Any] = []
        """An entry for each share that is done: None, or the error that ended it in a helper."""
        self.news: SimpleQueue[None] = SimpleQueue()

    def work(self) -> None:
        """What a helper does."""
        while True:
            try:
                mine = self.left.pop()
            except IndexError:
                return
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
        helpers = min(current.session.threads, self.count) - 1
        caught: BaseException | None = None
        for _ in range(TRIES):
            try:
                if helpers > 0 and not current.inside:
                    _pool.start(helpers, self.work)
                    helpers = 0
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
    mine, session = [], current.session
    while isinstance(session, NumpySession):
        mine.append(session)
        session = session.outer
    BLAS.forget(mine)


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
