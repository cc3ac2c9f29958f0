"""Threads for the NumPy backend: blocks over a pool, and BLAS held to one thread while they run."""

import functools
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from operator import call, setitem
from queue import Empty, SimpleQueue
from typing import Any

import numpy

from bpnet.backends.base import Rows
from bpnet.backends.blas import BLAS, Limits
from bpnet.backends.interrupts import TRIES, Calls, NoWarnings, Session, current, uninterrupted


@functools.cache
def available_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def default_threads() -> int:
    """How many threads compute where nobody says: OMP_NUM_THREADS if that is set, as joblib, Dask and Ray do for the
    processes that they start, so that these leave each other their processors; else one on each that there is.
    """
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list is of nested regions
    return min(int(told), available_threads()) if told.isdecimal() and int(told) > 0 else available_threads()


class NumpySession(NoWarnings):
    """One public call that computes with NumPy: its threads, BLAS at one, and no floating-point warnings.

    Divergence is reported by name.
    """

    limits_blas = True

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or current.session.threads or default_threads()
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
        self.threads = threads or outer.threads or default_threads()
        self.compiles, self.limits_blas = compiles, outer.limits_blas


class _Shares:
    """What helper threads and the caller do together, by shares that they claim one by one.

    The caller may be interrupted at any moment, helpers never are.  So it waits for these alone, and takes no lock.
    Either may find no memory, even for what is noted here: so a helper notes where there is a place already, and what
    it was broken off at is left to the caller.
    """

    def __init__(self, count: int) -> None:
        self.count, self.left = count, list(range(count - 1, -1, -1))
        """Shares that nobody has claimed, the next one last."""
        helpers = min(current.session.threads, count) - 1
        self.helpers = 0 if current.inside else max(helpers, 0)
        self.came, self.went = [False] * self.helpers, [False] * self.helpers
        """Of each helper: it came before it claimed anything, and went when it was through with that."""
        self.news: SimpleQueue[None] = SimpleQueue()
        """An entry for whatever helpers did that the caller may wait for."""

    def claim(self) -> int | None:
        try:
            return self.left.pop()
        except IndexError:
            return None

    def start_helpers(self) -> None:
        """As many as the session allows."""
        if self.helpers:
            _pool.start(self.helpers, self.help)

    def help(self, number: int) -> None:
        """What the helper of this number does: shares until none is left."""
        try:
            self.came[number] = True
            while (mine := self.claim()) is not None:
                self.work(mine)
                while self.far_ahead() and self.left:
                    time.sleep(0.001)
                self.news.put(None)
        finally:
            self.went[number] = True
            self.news.put(None)

    def work(self, mine: int) -> None:
        """A share, which a helper has claimed."""
        raise NotImplementedError

    def far_ahead(self) -> bool:
        """Whether more is done than there should be memory for, so that nobody is to claim the next share."""
        return False

    def at_work(self) -> bool:
        """Whether a helper may still be at a share."""
        return any(came and not went for came, went in zip(self.came, self.went, strict=True))

    def wait(self) -> None:
        """For news of helpers, though not for ever: one that finds no memory can't bring any."""
        with suppress(Empty):
            self.news.get(timeout=1.0)


class ParallelMap(_Shares):
    """A function of blocks of rows, whose results are handed out in the order of the blocks."""

    def __init__(self, function: Callable[[int, Rows], Any], blocks: Sequence[Rows]) -> None:
        super().__init__(len(blocks))
        self.function, self.blocks = function, blocks
        self.done: dict[int, tuple[Any, BaseException | None]] = {}

    def work(self, mine: int) -> None:
        self.run(mine, BaseException)  # as what a layer of the user's raises

    def far_ahead(self) -> bool:
        return len(self.done) > 2 * self.helpers

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
                    mine = None if self.at_work() and self.far_ahead() else self.claim()
                    if mine is not None:
                        self.run(mine)
                    elif self.at_work():
                        self.wait()
                    elif number not in self.done:  # a helper was broken off
                        self.run(number)
                result, error = self.done.pop(number)
                if error is not None:
                    raise error
                yield result
        finally:  # after an error, or where the caller stopped early, nobody claims more or goes on writing
            self.left.clear()
            while self.at_work():
                self.wait()


class ParallelUpdate(_Shares):
    """An update in place by shares, each a list of calls.

    Once begun it is done to its end, and an interrupt waits for that.
    """

    def __init__(self, shares: Sequence[Sequence[tuple[Any, ...]]]) -> None:
        super().__init__(len(shares))
        self.begun, self.done = [False] * self.count, [False] * self.count
        self.calls = [
            [(setitem, self.begun, i, True), *share, (setitem, self.done, i, True)] for i, share in enumerate(shares)
        ]
        self.error: BaseException | None = None
        """What a helper's share ended with."""

    def work(self, mine: int) -> None:
        try:
            uninterrupted(self.calls[mine])
        except BaseException as error:
            self.error = error

    def carry_out(self, then: Calls) -> None:
        """All shares, and then these calls."""
        mine: list[int] = []
        started = False
        caught: BaseException | None = None
        for _ in range(TRIES):
            try:
                if not started:
                    started = True  # before: an interrupt in between costs their help
                    self.start_helpers()
                while not all(self.done):
                    if not mine and self.left:
                        mine.extend(map(call, [self.left.pop]))  # claimed and noted in one
                    if not mine and not self.at_work():  # a helper was broken off before it began
                        mine.extend(i for i in range(self.count) if not (self.done[i] or self.begun[i]))
                        if not mine and not all(self.done):
                            raise self.error or MemoryError
                    if mine:
                        uninterrupted([*self.calls[mine[0]], (mine.pop, 0)])
                    else:
                        self.wait()
                uninterrupted(then)
                break
            except IndexError as error:  # a helper was quicker
                if mine:
                    caught = error
            except BaseException as error:
                caught = error
                if mine and self.begun[mine[0]]:  # NumPy's own, in the midst of a share
                    break
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

    def start(self, copies: int, task: Callable[[int], None]) -> None:
        """Have so many helpers do the task, each with a number; fewer where the system gives no more threads."""
        with self.lock:
            while self.size < copies:
                helper = threading.Thread(target=_serve, args=(self.tasks,), name=f"bpnet-{self.size}", daemon=True)
                try:
                    helper.start()
                except (RuntimeError, MemoryError):
                    break
                self.size += 1
        for number in range(min(copies, self.size)):
            self.tasks.put(functools.partial(task, number))


def _serve(tasks: "SimpleQueue[Callable[[], None]]") -> None:
    numpy.seterr(all="ignore")
    BLAS.hold_for_good()
    while True:
        with suppress(MemoryError):  # which the caller notices by what is not done
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
    os.register_at_fork(before=BLAS.lock.acquire, after_in_parent=BLAS.lock.release, after_in_child=_in_child)
