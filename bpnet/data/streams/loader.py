"""The batches of a stream: windows of its rows are read, checked and converted in threads while steps compute."""

import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.data.checks import LARGEST_WEIGHT, check_input, check_target, ignored_rows, numeric
from bpnet.data.loader import Batch, Loader, Selected, Size, StreamingLoader, parts, row_order
from bpnet.data.memory import bytes_per_row as bytes_of_a_step
from bpnet.data.streams.order import Listed, Order, Shuffled, Window
from bpnet.data.streams.sources import CHUNK
from bpnet.data.streams.stream import Stream
from bpnet.errors import BpnetWarning, DataError, ShapeError, plural, users_line
from bpnet.layout import accepting
from bpnet.losses.base import Loss

SMALL = 2**16
"""Bytes of a piece below which those of a task are gathered, checked and converted as one."""
HEAD = 4096
"""Rows of which the largest weight says how all weights are scaled."""


class Slot:
    """Memory for the rows of a window: an array for each of x, y and the weight; and which of its rows are bad."""

    def __init__(self, like: Sequence[Any], rows: int) -> None:
        self.arrays = [np.empty((rows, *a.shape[1:]), a.dtype) for a in like]
        self.bad: list[Any] = []
        """Places of rows that can't be used, chunk by chunk."""

    def good(self) -> Any:
        """Whether each row can be used; None: all can."""
        if not self.bad:
            return None
        found = np.ones(len(self.arrays[0]), bool)
        found[np.concatenate(self.bad)] = False
        return found


class StreamLoader(StreamingLoader):
    """The rows of a stream, of which arrays of `template`, a loader of its first row, say what a batch is to be."""

    def __init__(self, stream: Stream, template: Loader, loss: Loss, threads: int | None, values: bool = True) -> None:
        x = template.inputs if isinstance(template, StreamingLoader) else template.x
        types = template.types if isinstance(template, StreamingLoader) else ()
        given = template.backend, template.layout, x, template.y, template.weight, template.like, types, threads, ()
        super().__init__(*given)
        self.x = template.x
        self.stream, self.loss, self.values = stream, loss, values
        self.source, self.count = stream.source, stream.source.count
        self.templates = [a for a in (*self.inputs, self.y, self.weight) if a is not None]
        self.row_bytes = max(1, sum(a.nbytes for a in self.templates))
        self.budget = max(1, stream.buffer // (1 + stream.read_ahead) // self.row_bytes)
        """Rows of a window."""
        self.kept = self.count * self.row_bytes <= stream.buffer
        """Whether all rows are read once, and stay."""
        self.whole: Slot | None = None
        self.free: list[Slot] = []
        self.lock = threading.Lock()
        self.missing: list[Any] = []
        """The numbers of rows that were left out of the last pass over all in their order."""
        self.current: Sequence[Any] = ()
        """The arrays that the last batch was of."""
        self.weights: dict[int, float] = {}
        """What batches of the epoch weigh, by the places where they begin in its order."""
        takes = self.layout.network.takes
        self.codes = [part for _, part in takes] if isinstance(takes, tuple) else [takes]
        self.scale = self._scale() if stream.has_weight and self.weight is not None else 1.0

    @property
    def foreseen(self) -> bool:  # type: ignore[override]
        return self.weight is None and self.stream.bad_rows == "error"

    # ---- the order of rows --------------------------------------------------------------------------------------

    def capacity(self, size: int) -> int:
        """Rows of a window for batches of `size`."""
        return self.count if self.kept else max(self.budget // size, 1) * size

    def order(self, seed: int, epoch: int, shuffle: Any, size: int) -> Any:
        """The order of an epoch: drawn from the seed, or as a function gives it."""
        capacity = self.capacity(size)
        if callable(shuffle) or (shuffle and (self.kept or self.stream.shuffle == "exact")):
            return Listed(self.count, capacity, numbers=row_order(seed, epoch, self.count, shuffle))
        if not shuffle:
            return Order(self.count, capacity)
        return Shuffled(self.count, capacity, borders=self.stream.blocks(self.row_bytes), seed=seed, epoch=epoch)

    def options(self) -> dict[str, Any]:
        stream = self.stream
        found: dict[str, Any] = {"shuffle of the stream": "exact" if self.kept else stream.shuffle}
        if not self.kept and stream.shuffle == "blocks":
            found |= {"buffer": stream.buffer, "read_ahead": stream.read_ahead, "block": stream.block}
        return found

    def sample(self, most: int) -> Iterator[Any]:
        yield np.frombuffer(self.source.fingerprint().encode(), "u1")
        yield from self._converted(self.source.read(0, min(most, self.count)), False)

    def _as_order(self, order: Any, size: int) -> Order:
        capacity = self.capacity(size)
        if order is None:
            return Order(self.count, capacity)
        if isinstance(order, Order):
            return order
        if isinstance(order, range) and order.step == 1:
            return Order(self.count, capacity, order.start, order.stop)
        numbers = np.asarray(order)
        return Listed(len(numbers), capacity, numbers=numbers)

    # ---- reading ------------------------------------------------------------------------------------------------

    def _selected(self, size: int, order: Any) -> Iterator[tuple[int, Selected]]:
        """Batches of `size` rows as arrays of NumPy, each with where it begins in the order."""
        order, self.missing = self._as_order(order, size), []
        for window, slot in self._windows(order):
            good, self.current = slot.good(), slot.arrays
            if good is not None and window.rows is None:
                self.missing.append(window.start + np.flatnonzero(~good[: window.stop - window.start]))
            first, last = max(window.start, order.start), min(window.stop, order.stop)
            for start, stop in parts(last - first, size):
                here = slice(first - window.start + start, first - window.start + stop)
                rows: Any = here if window.rows is None else window.rows[here]
                if good is not None:
                    rows = np.arange(here.start, here.stop, dtype=np.int32) if window.rows is None else rows
                    rows = rows[good[rows]]
                yield first + start, (slot.arrays, rows)

    def _windows(self, order: Order) -> Iterator[tuple[Window, Slot]]:
        """Windows of the order, read ahead; the memory of one is another's once the next is asked for."""
        if self.kept:
            numbers = order.numbers if isinstance(order, Listed) else None
            yield Window(0, len(order) if numbers is None else len(numbers), [], numbers), self._all()
            return
        with self.lock:
            slots = [self.free.pop() if self.free else None for _ in range(1 + self.stream.read_ahead)]
        held = [slot or Slot(self.templates, order.capacity) for slot in slots]
        pool = ThreadPoolExecutor(self.stream.threads, "bpnet-stream")
        try:
            pending: deque[tuple[Window, Slot, list[Future[Any]]]] = deque()
            windows = order.windows()
            pending.extend(self._begun(pool, window, slot) for slot, window in zip(held, windows, strict=False))
            while pending:
                window, slot, futures = pending.popleft()
                for future in futures:
                    future.result()
                yield window, slot
                pending.extend(self._begun(pool, window, slot) for window in islice(windows, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            with self.lock:
                self.free = [slot for slot in held if len(slot.arrays[0]) == order.capacity]

    def _begun(self, pool: ThreadPoolExecutor, window: Window, slot: Slot) -> tuple[Window, Slot, list[Future[Any]]]:
        """Have a window read, in tasks of about `CHUNK` bytes, of which those between two borders are one."""
        slot.bad = []
        return window, slot, [pool.submit(self._read, slot, *task) for task in self._tasks(window.pieces)]

    def _tasks(self, pieces: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """(place in the window, pieces) of what one thread reads without a break."""
        rows, at = max(1, CHUNK // self.row_bytes), 0
        task: list[tuple[int, int]] = []
        begin = size = 0
        for start, stop in pieces:
            step = rows if self.source.borders is None else stop - start
            for first in range(start, stop, step):
                last = min(first + step, stop)
                if task and size + last - first > rows:
                    yield begin, task
                    task, begin, size = [], at, 0
                task.append((first, last))
                at, size = at + last - first, size + last - first
        if task:
            yield begin, task

    def _read(self, slot: Slot, at: int, pieces: list[tuple[int, int]]) -> None:
        """Rows of the source to their places from `at` on."""
        rows = max(1, CHUNK // self.row_bytes)
        with np.errstate(all="ignore"):
            total = sum(stop - start for start, stop in pieces)
            if total <= rows and total * self.row_bytes < SMALL * len(pieces):
                numbers = np.concatenate([np.arange(*piece) for piece in pieces])
                self._store(slot, at, self.source.gather(numbers), numbers)
                return
            for start, stop in pieces:
                for first in range(start, stop, rows):
                    last = min(first + rows, stop)
                    here = [a[at : at + last - first] for a in slot.arrays]
                    fields = self.source.fields[: len(here)]
                    into = [a if a.shape[1:] == f.shape else None for a, f in zip(here, fields, strict=False)]
                    into += [None] * (len(self.source.fields) - len(into))
                    self._store(slot, at, self.source.read(first, last, into), range(first, last))
                    at += last - first

    def _store(self, slot: Slot, at: int, given: Sequence[Any], numbers: Any) -> None:
        """Rows of these numbers, checked and converted, to their places."""
        try:
            arrays = self._converted(given, self.values)
        except DataError:
            bad = self._bad(given, 0, len(numbers))
            if not len(bad):
                raise
            if self.stream.bad_rows == "error":
                raise self._located(given, int(bad[0]), int(numbers[bad[0]])) from None
            arrays = self._converted(given, False)
            slot.bad.append(at + bad)
        for out, array in zip(slot.arrays, arrays, strict=True):
            here = out[at : at + len(numbers)]
            if array is not here and array.__array_interface__["data"][0] != here.__array_interface__["data"][0]:
                here[...] = array

    def _all(self) -> Slot:
        """All rows in memory, as they lie."""
        with self.lock:
            if self.whole is None:
                slot = Slot(self.templates, self.count)
                with ThreadPoolExecutor(self.stream.threads, "bpnet-stream") as pool:
                    _, _, futures = self._begun(pool, Order(self.count, self.count).window(0, self.count), slot)
                    try:
                        for future in futures:
                            future.result()
                    except BaseException:
                        pool.shutdown(wait=True, cancel_futures=True)
                        raise
                self.whole = slot
        return self.whole

    # ---- checks -------------------------------------------------------------------------------------------------

    def _converted(self, given: Sequence[Any], values: bool) -> list[Any]:
        """Arrays of the source as a batch has them; raises DataError where values can't be used."""
        count, host, stream = len(self.inputs), self.host, self.stream
        found = []
        whats = zip(stream.whats, self.codes, accepting(self.layout.network), strict=True)
        for (what, codes, nan), x, like in zip(whats, given, self.inputs, strict=False):
            if values and (codes is not None or x.dtype.kind == "f"):
                check_input(host, x, what, codes, nan)
            found.append(x if x.dtype == like.dtype else x.astype(like.dtype))
        rest, rows = list(given[count:]), len(given[0])
        if self.y is None:
            return found
        dtype = self.dtype
        y = check_target(host, self.loss, self.layout.out_shape, rows, dtype, rest.pop(0), "y", "x", values)
        weight = self._weight(rest.pop(0), rows, values) if stream.has_weight else None
        weight = ignored_rows(host, self.loss, dtype, y, weight, "y", False)
        return [*found, y] if weight is None else [*found, y, weight]

    @property
    def dtype(self) -> Any:
        """The floating type of targets and weights on the host."""
        return np.dtype("float32" if self.like.dtype == self.backend.xp.float32 else "float64")

    def _weight(self, weight: Any, rows: int, values: bool) -> Any:
        weight, _ = numeric(self.host, weight, "sample_weight", "float32 or float64, or whole numbers")
        if weight.shape != (rows,):
            raise ShapeError(f"sample_weight has rows of shape {weight.shape[1:]}; expected one number per row")
        found = (weight * self.scale if self.scale != 1.0 else weight).astype(self.dtype, copy=False)
        if values and not (np.isfinite(found) & (found >= 0.0)).all():
            row = int(np.argmin(np.isfinite(found) & (found >= 0.0)))
            raise DataError(f"sample_weight is negative, NaN or too large, first in row {row}: {weight[row]:g}")
        return found

    def _scale(self) -> float:
        """A power of 2 by which weights are multiplied: of a mean only ratios count."""
        if self.loss.reduction != "mean":
            return 1.0
        head = np.asarray(self.source.read(0, min(HEAD, self.count))[-1])
        largest = float(np.nanmax(np.where(np.isfinite(head), head, 0)))
        if largest <= 0.0 or 1.0 <= largest < 2.0**LARGEST_WEIGHT:
            return 1.0
        return float(2.0 ** (LARGEST_WEIGHT // 2 - np.frexp(largest)[1]))

    def _bad(self, given: Sequence[Any], start: int, stop: int) -> Any:
        """Which of rows start ... stop - 1 of a chunk can't be used; of those only the first where one is an error."""
        todo, found = [(start, stop)], []
        while todo:
            first, last = todo.pop()
            try:
                self._converted([a[first:last] for a in given], True)
            except DataError:
                if last - first == 1:
                    found.append(first)
                    if self.stream.bad_rows == "error":
                        break
                    continue
                middle = (first + last) // 2
                todo += [(middle, last), (first, middle)]
        return np.asarray(found, np.int64)

    def _located(self, given: Sequence[Any], place: int, row: int) -> DataError:
        """The error that a row can't be used."""
        try:
            self._converted([a[place : place + 1] for a in given], True)
        except DataError as error:
            text = str(error).replace(", first in row 0", "").replace(" in row 0", "")
            return DataError(f"{text}, in {self.source.where(row)} (bad_rows='skip' leaves such rows out)")
        raise AssertionError(row)

    # ---- batches ------------------------------------------------------------------------------------------------

    def batches(self, size: Size, order: Any = None) -> Iterator[Batch]:
        size = self.largest_batch() if size is None else size
        self.weights = {}
        if self.backend is not self.host:
            yield from super().batches(size, order)
            return
        several, count = isinstance(self.x, tuple), len(self.inputs)
        for arrays, rows in self.selected(size, order):
            if isinstance(rows, slice):
                arrays, rows = [a[rows] for a in arrays], None
            x, rest = arrays[:count], list(arrays[count:])
            y, weight = (None if a is None else rest.pop(0) for a in (self.y, self.weight))
            yield (tuple(x) if several else x[0]), y, weight, rows

    def selected(self, size: Size, order: Any) -> Iterator[Selected]:
        """The batches that have rows; what they weigh is noted."""
        assert isinstance(size, int)  # not yet of several ranks
        skipped = 0
        length = self.count if order is None else len(order)
        for n, (at, (arrays, rows)) in enumerate(self._selected(size, order)):
            number = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            expected = min(size, length - n * size)
            skipped += expected - number
            self.weights[at] = number if self.weight is None else float(arrays[-1][rows].sum(dtype="float64"))
            if number:
                yield arrays, rows
            elif order is not None:
                raise DataError(
                    f"none of the {plural(expected, 'row')} of a batch can be used: bad_rows='skip' is for few bad rows"
                )
        if skipped != self.stream.skipped:
            self.stream.skipped = skipped
            warnings.warn(
                f"{plural(skipped, 'row')} of {self.source.name} could not be used and were left out",
                BpnetWarning,
                stacklevel=users_line(),
            )

    def sizes(self, size: Size, order: Any = None) -> list[float]:
        assert isinstance(size, int)  # not yet of several ranks
        count = self.count if order is None else len(order)
        if self.weight is None and self.stream.bad_rows == "error":
            return [stop - start for start, stop in parts(count, size)]
        known, base = dict(self.weights), 0 if order is None else order.start
        missing = [start for start, _ in parts(count, size) if base + start not in known]
        if missing:  # before a training was taken up
            self.weights = {}
            for _ in self.selected(size, self._as_order(order, size)[missing[0] : missing[-1] + size]):
                pass
            known |= self.weights
            self.weights = known
        return [known[base + start] for start, _ in parts(count, size)]

    def passed(self) -> tuple[float, float] | None:
        """Rows and weight of the last pass, where only that tells."""
        if self.weight is None and self.stream.bad_rows == "error":
            return None
        total = sum(self.weights.values())
        return (total if self.weight is None else self.count), total

    def own(self, result: Array) -> Array:
        shares = self.backend is self.host and any(np.may_share_memory(result, a) for a in self.current)
        return result.copy() if shares else result

    def joined(self, results: Sequence[Any]) -> Any:
        """The outputs of the batches of a pass; NaN for rows that were left out."""
        found = results[0] if len(results) == 1 else np.concatenate(results)
        if len(found) == self.count:
            return found
        whole = np.full((self.count, *found.shape[1:]), np.nan, found.dtype)
        whole[self._there()] = found
        return whole

    def first_nan(self, results: Sequence[Any]) -> int | None:
        """The number of the first row for which an output is NaN."""
        wrong = np.concatenate([np.isnan(some).reshape(len(some), -1).any(axis=1) for some in results])
        return int(np.flatnonzero(self._there())[int(np.argmax(wrong))]) if wrong.any() else None

    def _there(self) -> Any:
        """Whether each row was there in the last pass."""
        there = np.ones(self.count, bool)
        for rows in self.missing:
            there[rows] = False
        return there

    def total_weight(self) -> float:
        return float(self.count)

    def whole_batch(self) -> Batch:
        return next(self.batches(min(self.count, self.largest_batch())))

    def largest_batch(self) -> int:
        if self.backend is not self.host:
            return int(super().largest_batch())
        fit = self.stream.buffer // bytes_of_a_step(self.layout, int(self.like.dtype.itemsize))
        return int(max(1, min(self.count, self.budget, fit)))

    def _transfer(self) -> int:
        return int(min(self.budget, super()._transfer()))

    def cached(self) -> Loader:
        return self
