"""The batches of a stream: rows of a window in memory, on their way to NumPy or to a device."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.data.loader import Batch, Loader, Selected, Size, StreamingLoader, row_order
from bpnet.data.memory import bytes_per_row
from bpnet.data.streams.conversion import Conversion
from bpnet.data.streams.order import Listed, Order, Shuffled, Window, cuts_of, part_of
from bpnet.data.streams.reading import Reader, Slot
from bpnet.data.streams.stream import Stream
from bpnet.errors import BpnetWarning, DataError, OptionError, plural, users_line
from bpnet.losses.base import Loss


class StreamLoader(StreamingLoader):
    """The rows of a stream, of which `template`, a loader of its first row, says what a batch is to be.

    Its batches are rows of windows: for NumPy the window's arrays with the numbers of the rows, as from arrays in
    memory, so that the step gathers them itself.
    """

    lazy = True

    def __init__(self, stream: Stream, template: Loader, loss: Loss, threads: int | None, values: bool = True) -> None:
        self.stream, self.source = stream, stream.source
        convert = Conversion(stream, template, loss, values)
        types = template.types if isinstance(template, StreamingLoader) else [a.dtype for a in convert.inputs]
        x = template.x
        given = template.backend, template.layout, x, template.y, template.weight, template.like, types, threads, ()
        super().__init__(*given)
        self.count = self.source.count
        self.reader = Reader(stream, convert)
        self.budget = max(1, stream.buffer // (1 + stream.read_ahead) // self.reader.row_bytes)
        """Rows of a window."""
        self.kept = self.source.constant and self.count * self.reader.row_bytes <= stream.buffer
        """Whether all rows are read once, and stay."""
        self.missing: list[Any] = []
        """The numbers of rows that were left out of the last pass over all in their order."""
        self.current: Sequence[Any] = ()
        """The arrays that the last batch was of."""
        self.weights: dict[int, float] = {}
        """What the batches of the last pass weigh, by their numbers, where only reading tells."""

    # ---- the order of rows --------------------------------------------------------------------------------------

    def order(self, seed: int, epoch: int, shuffle: Any, size: Any, part: tuple[int, int] = (0, 1)) -> Order:
        """The order of an epoch, drawn from the seed, or as a function gives it, in batches of `size` or of such cuts.

        `part` is a rank, and of how many, whose own part of each batch it is.
        """
        stream, (rank, ranks) = self.stream, part
        whole = cuts_of(self.count, size)
        sizes, together = np.diff(whole), max(1, self.budget // int(np.diff(whole).max()))
        cuts = np.r_[0, np.cumsum(part_of(sizes, (rank, rank + 1), ranks))]
        if callable(shuffle) and not self.source.constant:
            raise OptionError(f"shuffle is a function, but {self.source.name} can only be read in its own order")
        blocks = shuffle and not self.kept and stream.shuffle == "blocks" and not callable(shuffle)
        if not blocks:
            if shuffle or ranks > 1:
                numbers = row_order(seed, epoch, self.count, shuffle)
                starts = whole[:-1] + sizes * rank // ranks
                numbers = np.concatenate([numbers[a : a + n] for a, n in zip(starts, np.diff(cuts), strict=True)])
                return Listed(cuts, together, numbers=numbers)
            return Order(cuts, together)
        lanes = stream.lanes or ranks
        if lanes % ranks:
            raise OptionError(f"the stream has {plural(lanes, 'lane')}, which {plural(ranks, 'rank')} can't share")
        mine = rank * lanes // ranks, (rank + 1) * lanes // ranks
        given: dict[str, Any] = {"seed": seed, "epoch": epoch, "lanes": lanes, "mine": mine}
        return Shuffled(cuts, together, whole=whole, borders=stream.blocks(self.reader.row_bytes), **given)

    @property
    def by_ranks(self) -> bool:  # type: ignore[override]
        return self.stream.shuffle == "blocks" and not self.kept and self.stream.lanes is None

    def _as_order(self, order: Any, size: Size) -> Order:
        if isinstance(order, Order):
            return order
        together = max(1, self.budget // (size if isinstance(size, int) else int(np.diff(np.asarray(size)).max())))
        if order is None:
            return Order(cuts_of(self.count, size), together)
        cuts = cuts_of(len(order), size)
        if isinstance(order, range) and order.step == 1:
            return Order(cuts, together, order.start)
        return Listed(cuts, together, numbers=np.asarray(order))

    def options(self) -> dict[str, Any]:
        stream = self.stream
        found: dict[str, Any] = {"the order of the stream": "exact" if self.kept else stream.shuffle}
        if not self.kept and stream.shuffle == "blocks":
            found |= {"buffer": stream.buffer, "read_ahead": stream.read_ahead, "block": stream.block}
            found["lanes"] = stream.lanes
        return found

    def sample(self, most: int) -> Iterator[Any]:
        yield np.frombuffer(self.source.fingerprint().encode(), "u1")
        yield from self.reader.convert(self.stream.head(most), False)

    # ---- batches ------------------------------------------------------------------------------------------------

    def _windows(self, order: Order) -> Iterator[tuple[Window, Slot]]:
        if not self.kept:
            yield from self.reader.windows(order)
            return
        slot, cuts = self.reader.all(), order.cuts.tolist()
        offset = 0 if isinstance(order, Listed) else order.base
        batches = [(i, offset + cuts[i], offset + cuts[i + 1]) for i in range(order.first, order.stop)]
        yield Window([], order.numbers.astype(np.int32) if isinstance(order, Listed) else None, batches), slot

    def selected(self, size: Size, order: Any, report: bool = True) -> Iterator[Selected]:
        """The batches that have rows; what they weigh is noted, and with `report` it is told how many were left out."""
        skipped, self.missing, self.weights = 0, [], {}
        ordered = self._as_order(order, size)
        for window, slot in self._windows(ordered):
            good, self.current = slot.good(), slot.arrays
            for number, start, stop in window.batches:
                rows: Any = slice(start, stop) if window.rows is None else window.rows[start:stop]
                if good is not None:
                    there = good[rows]
                    if window.rows is None:
                        self.missing.append(ordered.cuts[number] + np.flatnonzero(~there))
                        rows = np.arange(start, stop, dtype=np.int32)
                    rows = rows[there]
                    skipped += stop - start - len(rows)
                some = stop - start if isinstance(rows, slice) else len(rows)
                if not self.told:
                    self.weights[number] = some if self.weight is None else float(slot.arrays[-1][rows].sum(dtype="f8"))
                if some:
                    yield slot.arrays, rows
                elif isinstance(order, Order) and stop > start:  # which nobody could train on
                    few = "bad_rows='skip' is for few bad rows"
                    raise DataError(f"none of the {plural(stop - start, 'row')} of a batch can be used: {few}")
        if order is None and skipped == self.count:
            raise DataError(f"none of the {plural(self.count, 'row')} of {self.source.name} can be used")
        if report:
            self._report(skipped)

    def _report(self, skipped: int) -> None:
        if skipped != self.stream.skipped and self.stream.bad_rows == "skip":
            self.stream.skipped = skipped
            text = f"{plural(skipped, 'row')} of {self.source.name} could not be used and were left out"
            warnings.warn(text, BpnetWarning, stacklevel=users_line())

    def batches(self, size: Size, order: Any = None) -> Iterator[Batch]:
        size = self.largest_batch() if size is None else size
        if self.backend is not self.host:
            yield from super().batches(size, order)
            return
        several, count = isinstance(self.x, tuple), len(self.inputs)
        for arrays, rows in self.selected(size, order):
            if order is None or isinstance(rows, slice):  # who goes through all looks at no numbers of rows
                arrays, rows = [a[rows] for a in arrays], None
            x, rest = arrays[:count], list(arrays[count:])
            y, weight = (None if a is None else rest.pop(0) for a in (self.y, self.weight))
            yield (tuple(x) if several else x[0]), y, weight, rows

    def whole_batch(self) -> Batch:
        return next(self.batches(min(self.count, self.largest_batch())))

    # ---- how many rows, and what they weigh ---------------------------------------------------------------------

    @property
    def told(self) -> bool:  # type: ignore[override]
        """Whether the number of rows says what they weigh."""
        return self.weight is None and self.stream.bad_rows == "error"

    def sizes(self, size: Size, order: Any = None) -> list[float]:
        ordered = self._as_order(order, size)
        if self.told:
            return list(np.diff(ordered.cuts[ordered.first : ordered.stop + 1]).tolist())
        known = dict(self.weights)
        lacking = [number for number in range(ordered.first, ordered.stop) if number not in known]
        if lacking:  # as before a training was taken up
            begin = int(ordered.cuts[ordered.first])
            part = slice(int(ordered.cuts[lacking[0]]) - begin, int(ordered.cuts[lacking[-1] + 1]) - begin)
            for _ in self.selected(size, ordered[part], report=False):
                pass
            known |= self.weights
        return [known[number] for number in range(ordered.first, ordered.stop)]

    def passed(self) -> tuple[float, float] | None:
        if self.told:
            return None
        total = float(sum(self.weights.values()))
        return (total if self.weight is None else self.count), total

    def total_weight(self) -> float:
        return float(self.count)

    def largest_batch(self) -> int:
        if self.backend is not self.host:
            return int(super().largest_batch())
        fit = self.stream.buffer // bytes_per_row(self.layout, int(self.like.dtype.itemsize))
        return int(max(1, min(self.count, self.budget, fit)))

    def _transfer(self) -> int:
        return int(min(self.budget, super()._transfer()))

    def cached(self) -> Loader:
        return self

    # ---- predictions --------------------------------------------------------------------------------------------

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
