"""Which rows of every batch are a rank's, and how much the batches weigh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from bpnet.backends.base import Rows
from bpnet.data.loader import Loader, parts
from bpnet.distributed.base import LONG, NOTHING
from bpnet.distributed.step import Share, parted
from bpnet.errors import OptionError, plural

if TYPE_CHECKING:
    from bpnet.engine import Engine


class Cut(NamedTuple):
    """Of a batch: this rank's rows, in their order; the number of the first in it; how many rows it has; and the fewest
    that a rank has of them."""

    rows: Rows
    first: int
    size: int
    least: int


class RankedBatches:
    """The batches of an epoch, as one of several ranks has its part of each.

    Where all are given the same rows it is a contiguous part, in the order of the ranks.  Where each has rows of its
    own, the data are those of all of them, in the order of the ranks, and a batch has the same part of each rank's: all
    are used once in an epoch, whatever their numbers.
    """

    def __init__(self, engine: Engine, data: Loader, batch_size: int, count: int, counts: list[int]) -> None:
        """`counts` are the rows that each rank was given, and `count` how many of all of them an epoch takes."""
        assert engine.ranked is not None
        self.ranks, self.step, self.data, self.batch_size = engine.ranks, engine.ranked, data, batch_size
        self.own, self.count = self.ranks.rows == "own", count
        self.cuts = [self._cut_own(part, counts) if self.own else self._cut(part) for part in parts(count, batch_size)]
        self.order: Any = None
        self.totals: list[float] = []
        self._check(batch_size)

    def _check(self, batch_size: int) -> None:
        """Raise OptionError where the batches are too small for so many ranks."""
        ranks, largest = self.ranks.size, self.cuts[0].size
        if self.own and batch_size < ranks:
            raise OptionError(f"batch_size is {batch_size}, but there are {ranks} ranks: take at least as many")
        if self.step.ordered and len(self.step.blocks(largest)) < ranks:
            raise OptionError(
                f"reduction is 'ordered', but a batch of {plural(largest, 'row')} has fewer blocks than there are "
                f"ranks, {ranks}: give the trainer a smaller micro_batch, the most rows of a block"
            )
        if self.step.ordered and self.data.lazy:
            for size in {cut.size for cut in self.cuts}:
                if self.step.part(size) != parted(size, ranks)[self.ranks.rank]:
                    blocks = plural(len(self.step.blocks(size)), "block")
                    raise OptionError(
                        f"reduction is 'ordered', and x a stream: {blocks} of a batch of {plural(size, 'row')} can't "
                        f"be shared evenly by {ranks} ranks; take another batch_size or micro_batch"
                    )
        for cut in self.cuts:
            self.step.check_rows(cut.least, cut.size)

    def _cut(self, part: Rows) -> Cut:
        start, stop = part
        first, last = self.step.part(stop - start)
        return Cut((start + first, start + last), first, stop - start, (stop - start) // self.ranks.size)

    def _cut_own(self, part: Rows, counts: list[int]) -> Cut:
        start, stop = part
        cuts = [(n * start // sum(counts), n * stop // sum(counts)) for n in counts]
        sizes, rank = [b - a for a, b in cuts], self.ranks.rank
        return Cut(cuts[rank], sum(sizes[:rank]), sum(sizes), min(sizes))

    def order_of(self, seed: int, epoch: int, shuffle: Any) -> Any:
        """The order of the rows that were passed; of data that are `lazy`, of this rank's rows alone."""
        data, rank = self.data, self.ranks.rank
        if self.own:  # each in an order of its own
            return data.order(seed + (rank << 64), epoch, shuffle, [0, *(cut.rows[1] for cut in self.cuts)])
        if data.lazy:
            return data.order(seed, epoch, shuffle, self.batch_size, (rank, self.ranks.size))
        order = data.order(seed, epoch, shuffle, self.batch_size)[: self.count]
        return self.ranks.broadcast(order) if callable(shuffle) else order

    def begin(self, order: Any) -> list[float]:
        """An epoch in that order of the rows that were passed: the weight of each batch.

        Where only reading tells, they are put in its place one by one.
        """
        self.order = order
        if self.data.weight is None or not self.data.told:
            self.totals = [float(cut.size) for cut in self.cuts]
        elif not self.own:
            self.totals = self.data.sizes(self.batch_size, order)[: len(self.cuts)]
        else:
            every = self.ranks.all_gather(self.data.sizes([cut.rows for cut in self.cuts], order))
            self.totals = [sum(some) for some in zip(*every, strict=True)]
        return self.totals

    def _loaded(self, first: int) -> Any:
        """This rank's rows of each batch after the first so many that has some."""
        if not self.data.lazy:
            some = [cut.rows for cut in self.cuts[first:] if cut.rows[0] < cut.rows[1]]
            return self.data.batches(some, self.order)
        done = sum(stop - start for start, stop in (cut.rows for cut in self.cuts[:first]))
        every = sum(stop - start for start, stop in (cut.rows for cut in self.cuts))
        return self.data.batches(self.batch_size, self.order[done:every])

    def batches(self, first: int) -> Iterator[Any]:
        """This rank's part of each batch after the first so many, with its share."""
        rank, weight = self.ranks.rank, self.step.weight
        with closing(self._loaded(first)) as loaded:
            for number, cut in enumerate(self.cuts[first:], first):
                start, stop = cut.rows
                batch = (None, None, None, None)
                if start < stop:
                    with self.ranks.phase("reading data", LONG) if self.data.streams else NOTHING:
                        batch = next(loaded)
                if self.data.told:
                    yield *batch, Share(stop - start, cut.first, cut.size, weight(self.totals[number]))
                    continue
                size, own = self.step.size_of(batch)
                sizes, weights = zip(*self.ranks.all_gather((size, own)), strict=True)
                self.totals[number] = sum(weights)
                self.step.check_rows(min(sizes), sum(sizes))
                yield *batch, Share(size, sum(sizes[:rank]), sum(sizes), weight(sum(weights)))
            for _ in loaded:  # which has come to its end, and may have something to say there
                pass
