"""The order in which an epoch takes the rows of a stream, drawn window by window.

A window is what lies in memory at a time.  Its rows are read in pieces, and taken in an order of their own.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


class Window(NamedTuple):
    """Some consecutive rows of an order: start ... stop - 1 of it, counted from its beginning.

    `pieces` are what is to be read, (first, last + 1) in the source, one after the other; `rows` then are the places
    of the rows in what has been read, in their order (None: as they lie).
    """

    start: int
    stop: int
    pieces: Sequence[tuple[int, int]]
    rows: Any


@dataclass(frozen=True)
class Order:
    """Rows start ... stop - 1 of an epoch's order, in windows of `capacity` rows, counted from the epoch's start.

    This is the order of the rows as they lie.
    """

    count: int
    capacity: int
    start: int = 0
    stop: int = -1

    def __post_init__(self) -> None:
        if self.stop < 0:
            object.__setattr__(self, "stop", self.count)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> "Order":
        start, stop, step = part.indices(len(self))
        assert step == 1
        return replace(self, start=self.start + start, stop=self.start + max(start, stop))

    def windows(self) -> Iterator[Window]:
        """What comes one after the other, from the window in which it starts."""
        for start in range(self.start - self.start % self.capacity, self.stop, self.capacity):
            yield self.window(start, min(start + self.capacity, self.count))

    def window(self, start: int, stop: int) -> Window:
        """Rows start ... stop - 1."""
        return Window(start, stop, [(start, stop)], None)

    def rows(self) -> Any:
        """Their numbers in the source: so many numbers in memory."""
        found = []
        for start, stop, pieces, rows in self.windows():
            some = np.concatenate([np.arange(*piece) for piece in pieces])
            some = some if rows is None else some[rows]
            found.append(some[max(self.start - start, 0) : min(self.stop, stop) - start])
        return np.concatenate(found)


@dataclass(frozen=True)
class Listed(Order):
    """An order that is written down, row by row."""

    numbers: Any = None

    def window(self, start: int, stop: int) -> Window:
        distinct, rows = np.unique(self.numbers[start:stop], return_inverse=True)
        ends = np.flatnonzero(np.diff(distinct) != 1) + 1
        firsts, lasts = distinct[np.r_[0, ends]], distinct[np.r_[ends - 1, len(distinct) - 1]] + 1
        pieces = list(zip(firsts.tolist(), lasts.tolist(), strict=True))
        return Window(start, stop, pieces, rows.astype(np.int32))


@dataclass(frozen=True)
class Shuffled(Order):
    """Blocks of rows in random order, and the rows of each window, as many blocks as it holds, in random order.

    How far that is from a permutation of all rows: a row is anywhere in the epoch with the same probability, but those
    of a block come within one window, or two that follow each other.  `borders` are those of the blocks.
    """

    borders: Any = None
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = _rng(self.seed, self.epoch, 0).permutation(len(self.borders) - 1)
        sizes = np.diff(self.borders)[blocks]
        object.__setattr__(self, "_drawn", (blocks, np.r_[0, np.cumsum(sizes)]))

    def window(self, start: int, stop: int) -> Window:
        blocks, starts = self._drawn  # type: ignore[attr-defined]
        at, pieces = start, []
        i = bisect.bisect_right(starts, start) - 1
        while at < stop:
            first, end = int(self.borders[blocks[i]]), min(stop, int(starts[i + 1]))
            pieces.append((first + at - int(starts[i]), first + end - int(starts[i])))
            at, i = end, i + 1
        rows = _rng(self.seed, self.epoch, 1 + start // self.capacity).permutation(
            np.arange(stop - start, dtype=np.int32)
        )
        return Window(start, stop, sorted(pieces), rows)


def _rng(*key: int) -> Any:
    return np.random.default_rng(key)
