"""Windows of a stream's rows, which threads read, check and convert while others are computed with."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from itertools import islice, pairwise
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from bpnet.data.streams.conversion import Conversion
from bpnet.data.streams.order import Order, Window, cuts_of
from bpnet.data.streams.sources import CHUNK
from bpnet.data.streams.stream import Stream
from bpnet.errors import DataError

SMALL = 2**16
"""Bytes of a piece below which those of a task are gathered, checked and converted as one."""

PATIENCE = 2.0
"""Seconds that whoever ends early waits for threads that read."""


class Threads:
    """They do tasks in the order in which these are submitted.

    One that waits for rows which never come, as of a function of the user's, keeps nobody from ending.
    """

    def __init__(self, count: int) -> None:
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self.threads = [threading.Thread(target=self._work, name="bpnet-stream", daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.tasks.put((future, function, args))
        return future

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            future, function, args = task
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            del task, future, function, args  # which an error would keep

    def close(self) -> bool:
        """Begin no more tasks; whether those that had begun are done."""
        with suppress(Empty):
            while True:
                self.tasks.get_nowait()
        for _ in self.threads:
            self.tasks.put(None)
        until = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)


class Slot:
    """Memory for the rows of a window: an array for each of x, y and the weight; and which of its rows are bad."""

    def __init__(self, like: Sequence[Any], rows: int) -> None:
        self.arrays = [np.empty((rows, *a.shape[1:]), a.dtype) for a in like]
        self.rows = rows
        self.bad: list[Any] = []
        """Places of rows that can't be used, chunk by chunk."""

    def good(self) -> Any:
        """Whether each row can be used; None: all can."""
        if not self.bad:
            return None
        found = np.ones(self.rows, bool)
        found[np.concatenate(self.bad)] = False
        return found


class Reader:
    """Reads the rows of a stream window by window, each into a slot, which is another window's later."""

    def __init__(self, stream: Stream, conversion: Conversion) -> None:
        self.stream, self.source, self.convert = stream, stream.source, conversion
        self.row_bytes = max(1, sum(a.nbytes for a in conversion.templates))
        self.chunk = max(1, CHUNK // self.row_bytes)
        """Rows that are read, checked and converted at a time."""
        self.borders = frozenset(self.source.borders or ())
        self.whole: Slot | None = None
        self.free: list[Slot] = []
        self.lock = threading.Lock()

    def windows(self, order: Order) -> Iterator[tuple[Window, Slot]]:
        """Windows of the order, read ahead; the slot of one is another's once the next is asked for."""
        with self.lock:
            slots, self.free = [slot for slot in self.free if slot.rows == order.capacity], []
        while len(slots) < min(1 + self.stream.read_ahead, -(-len(order) // order.capacity) or 1):
            slots.append(Slot(self.convert.templates, order.capacity))
        pool, ends = Threads(self.stream.threads), dict[int, Future[Any]]()
        try:
            todo = order.windows()
            pending = deque(self._begun(pool, window, slot, ends) for slot, window in zip(slots, todo, strict=False))
            while pending:
                window, slot, futures = pending.popleft()
                for future in futures:
                    future.result()
                yield window, slot
                pending.extend(self._begun(pool, window, slot, ends) for window in islice(todo, 1))
        finally:
            ended = pool.close()
            self.source.release()
            if ended:  # else somebody may still write there
                with self.lock:
                    self.free = slots

    def all(self) -> Slot:
        """All rows in memory, as they lie."""
        with self.lock:
            if self.whole is None:
                slot = Slot(self.convert.templates, self.source.count)
                (window,) = Order(cuts_of(slot.rows, slot.rows), 1).windows()
                pool = Threads(self.stream.threads)
                try:
                    for future in self._begun(pool, window, slot, {})[2]:
                        future.result()
                finally:
                    pool.close()
                    self.source.release()
                self.whole = slot
        return self.whole

    def _begun(
        self, pool: Threads, window: Window, slot: Slot, ends: dict[int, Future[Any]]
    ) -> tuple[Window, Slot, list[Future[Any]]]:
        """Have a window read; tasks begin in the order of the rows.

        `ends` are tasks that have begun, by the row at which they end between two borders: who reads on from there
        waits for them.
        """
        slot.bad = []
        if isinstance(window.pieces, np.ndarray):
            return window, slot, [pool.submit(self._read, slot, *task) for task in self._scattered(window.pieces)]
        futures = []
        for at, pieces in self._tasks(window.pieces):
            before = [found for start, _ in pieces if (found := ends.pop(start, None))]
            futures.append(pool.submit(self._read, slot, at, pieces, before))
            ends |= {stop: futures[-1] for _, stop in pieces if self.borders and stop not in self.borders}
        return window, slot, futures

    def _scattered(self, numbers: Any) -> Iterator[tuple[int, Any]]:
        """(place in the window, numbers of rows) of what one thread gathers: a chunk, or what borders hold."""
        cuts: Any = range(self.chunk, len(numbers), self.chunk)
        if self.source.borders is not None:
            cuts = np.flatnonzero(np.diff(np.searchsorted(self.source.borders, numbers, "right"))) + 1
        for start, stop in pairwise((0, *cuts, len(numbers))):
            if start < stop:
                yield start, numbers[start:stop]

    def _tasks(self, pieces: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Any]]:
        """(place in the window, pieces) of what one thread reads without a break: a chunk, or what borders hold."""
        task: list[tuple[int, int]] = []
        begin = at = size = 0
        for start, stop in pieces:
            step = self.chunk if self.source.borders is None else stop - start
            for first in range(start, stop, step):
                last = min(first + step, stop)
                if task and size + last - first > self.chunk:
                    yield begin, task
                    task, begin, size = [], at, 0
                task.append((first, last))
                at, size = at + last - first, size + last - first
        if task:
            yield begin, task

    def _read(self, slot: Slot, at: int, pieces: Any, before: Sequence[Future[Any]] = ()) -> None:
        """Rows of the source to their places from `at` on, once others have been read."""
        wait(before)
        with np.errstate(all="ignore"):
            if isinstance(pieces, list):
                rows = sum(stop - start for start, stop in pieces)
                if len(pieces) == 1 or rows > self.chunk or rows * self.row_bytes >= SMALL * len(pieces):
                    for start, stop in pieces:
                        for first in range(start, stop, self.chunk):
                            last = min(first + self.chunk, stop)
                            into = self._into(slot, at, last - first)
                            self._store(slot, at, self.source.read(first, last, into), range(first, last))
                            at += last - first
                    return
                pieces = np.concatenate([np.arange(*piece) for piece in pieces])
            elif self.source.borders is not None:
                self._sweep(slot, at, pieces)
                return
            if (np.diff(pieces) > 0).all():
                found = self.source.gather(pieces)
            else:
                numbers, back = np.unique(pieces, return_inverse=True)
                found = [a[back] for a in self.source.gather(numbers)]
            self._store(slot, at, found, pieces)

    def _sweep(self, slot: Slot, at: int, numbers: Any) -> None:
        """Rows between two borders, of which all are read up to the second one: so nobody has to go on from there."""
        borders = np.asarray(self.source.borders)
        last = int(borders[np.searchsorted(borders, numbers[-1], "right")])
        for start in range(int(numbers[0]), last, self.chunk):
            stop = min(start + self.chunk, last)
            arrays = self.source.read(start, stop)
            here = numbers[slice(*np.searchsorted(numbers, (start, stop)))]
            if len(here):
                self._store(slot, at, [a[here - start] for a in arrays], here)
            at += len(here)

    def _into(self, slot: Slot, at: int, rows: int) -> list[Any]:
        """For each field the part of the slot's array that it can be read into, or None."""
        into: list[Any] = [None] * len(self.source.fields)
        for array, place in zip(slot.arrays, self.convert.places, strict=False):
            here = array[at : at + rows]
            if here.shape[1:] == self.source.fields[place].shape:
                into[place] = here
        return into

    def _store(self, slot: Slot, at: int, given: Sequence[Any], numbers: Any) -> None:
        """Rows of these numbers, checked and converted, to their places."""
        convert = self.convert
        try:
            arrays = convert(given)
        except DataError:
            if self.stream.bad_rows == "error":
                first = convert.first_bad(given)
                raise convert.error(given, first, int(numbers[first])) from None
            bad = convert.bad(given)
            slot.bad.append(at + bad)
            arrays = convert(given, False)
        for out, array in zip(slot.arrays, arrays, strict=True):
            here = out[at : at + len(numbers)]
            if array.__array_interface__["data"] != here.__array_interface__["data"] or array.shape != here.shape:
                here[...] = array
