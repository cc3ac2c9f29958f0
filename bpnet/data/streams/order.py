"""The order in which an epoch takes the rows of a stream: batches, and windows of several of them.

A window is what lies in memory at a time.  Its rows are read in pieces, and taken in an order of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


class Window(NamedTuple):
    """Some batches that follow each other.

    `pieces` are the rows to read, one after the other: a list of (first, last + 1), or numbers that ascend.  `rows`
    are the places in what has been read of the rows in their order; None: as they lie.  `batches` has of each batch
    its number, and where it begins and ends in that.
    """

    pieces: Any
    rows: Any
    batches: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class Order:
    """Rows in their order, here as they lie from the row `base` on.

    `cuts` are the borders of batches, from 0 on; a window is `together` of them.  Of all batches those from `first` on
    up to `last` are asked for, which is the slice that this is.
    """

    cuts: Any
    together: int
    base: int = 0
    first: int = 0
    last: int | None = None

    @property
    def stop(self) -> int:
        return len(self.cuts) - 1 if self.last is None else self.last

    def __len__(self) -> int:
        return int(self.cuts[self.stop] - self.cuts[self.first])

    def __getitem__(self, part: slice) -> "Order":
        start, stop, _ = part.indices(len(self))
        begin = self.cuts[self.first]
        first, last = (int(np.searchsorted(self.cuts, begin + at)) for at in (start, max(start, stop)))
        return replace(self, first=first, last=last)

    @cached_property
    def capacity(self) -> int:
        """The most rows of a window."""
        borders = self.cuts[np.minimum(np.arange(0, len(self.cuts) + self.together, self.together), len(self.cuts) - 1)]
        return max(1, int(np.diff(borders).max()))

    def windows(self) -> Iterator[Window]:
        """Those that have the batches, in their order."""
        for number in range(self.first // self.together, -(-self.stop // self.together)):
            first = number * self.together
            last = min(first + self.together, len(self.cuts) - 1)
            start = int(self.cuts[first])
            pieces, rows = self.window(number, start, int(self.cuts[last]))
            here = range(max(first, self.first), min(last, self.stop))
            yield Window(pieces, rows, [(i, int(self.cuts[i]) - start, int(self.cuts[i + 1]) - start) for i in here])

    def window(self, number: int, start: int, stop: int) -> tuple[Any, Any]:
        """Pieces and rows of a window, which has rows start ... stop - 1 of the order."""
        return [(self.base + start, self.base + stop)] if stop > start else [], None

    def rows(self) -> Any:
        """The numbers of the rows in the source: so many numbers in memory."""
        found = [np.empty(0, np.int64)]
        for pieces, rows, batches in self.windows():
            some = np.concatenate([found[0], *[np.arange(*p) for p in pieces]]) if isinstance(pieces, list) else pieces
            some = some if rows is None else some[rows]
            found.append(some[batches[0][1] : batches[-1][2]])
        return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Listed(Order):
    """An order that is written down, row by row."""

    numbers: Any = None

    def window(self, number: int, start: int, stop: int) -> tuple[Any, Any]:
        distinct, places = np.unique(self.numbers[start:stop], return_inverse=True)
        return distinct, places.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Shuffled(Order):
    """Blocks of rows in random order, and the rows of each window, as many blocks as it holds, in random order.

    The blocks in their order are cut into lanes.  A batch has as many rows of each, in the order of the lanes, and a
    window's rows change places within their lane.  Those of the lanes that are `mine`, first and last + 1, are here.
    """

    whole: Any = None
    """Borders of the batches of all lanes."""
    borders: Any = None
    """Those of the blocks."""
    lanes: int = 1
    mine: tuple[int, int] = (0, 1)
    seed: int = 0
    epoch: int = 0

    @cached_property
    def drawn(self) -> tuple[Any, Any]:
        """The blocks in their order, and where each begins in it."""
        blocks = _rng(self.seed, self.epoch, 0).permutation(len(self.borders) - 1)
        return blocks, np.r_[0, np.cumsum(np.diff(self.borders)[blocks])]

    @cached_property
    def own(self) -> list[Any]:
        """Of each lane that is here the borders of its parts of the batches, in the blocks in their order."""
        sizes, lanes = np.diff(self.whole), self.lanes
        begins = [int(np.sum(sizes * lane // lanes)) for lane in range(*self.mine)]
        return [
            begin + np.r_[0, np.cumsum(part_of(sizes, (lane, lane + 1), lanes))]
            for begin, lane in zip(begins, range(*self.mine), strict=True)
        ]

    def window(self, number: int, start: int, stop: int) -> tuple[Any, Any]:
        first = number * self.together
        last = min(first + self.together, len(self.whole) - 1)
        pieces: list[tuple[int, int]] = []
        places, of = [], []
        at = 0
        for lane, cuts in zip(range(*self.mine), self.own, strict=True):
            begin, end = int(cuts[first]), int(cuts[last])
            pieces += sorted(self._pieces(begin, end))
            rng = _rng(self.seed, self.epoch, 1 + number, lane)
            places.append(rng.permutation(np.arange(at, at + end - begin, dtype=np.int32)))
            of.append(np.repeat(np.arange(last - first), np.diff(cuts[first : last + 1])))
            at += end - begin
        if len(places) == 1:
            return pieces, places[0]
        return pieces, np.concatenate(places)[np.argsort(np.concatenate(of), kind="stable")]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows start ... stop - 1 of the blocks in their order, as the source has them."""
        blocks, starts = self.drawn
        i = int(np.searchsorted(starts, start, side="right")) - 1
        while start < stop:
            offset, end = int(self.borders[blocks[i]]) - int(starts[i]), min(stop, int(starts[i + 1]))
            if end > start:
                yield offset + start, offset + end
            start, i = end, i + 1


def part_of(sizes: Any, mine: tuple[int, int], lanes: int) -> Any:
    """How many rows of batches of these sizes are of the lanes mine[0] ... mine[1] - 1."""
    return sizes * mine[1] // lanes - sizes * mine[0] // lanes


def cuts_of(count: int, size: Any) -> Any:
    """The borders of batches of `size` rows; or they themselves."""
    return np.r_[np.arange(0, count, size), count] if isinstance(size, int) else np.asarray(size)


def _rng(*key: int) -> Any:
    return np.random.default_rng(key)
