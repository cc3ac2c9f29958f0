"""The training step of a rank where tables are sparse: what is summed over ranks are gradients of rows that are used.

Each rank's small network has a row for each place of the whole batch, since all ranks tell each other the numbers that
theirs have: see `bpnet.sparse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array, interrupts
from bpnet.backends.base import State
from bpnet.backends.interrupts import current
from bpnet.data.loader import Batch, taken
from bpnet.distributed.step import RankedStep, Share
from bpnet.errors import OptionError
from bpnet.sparse import SIZES
from bpnet.step import Carry

if TYPE_CHECKING:
    from bpnet.engine import Engine


class RankedSparseStep(RankedStep):
    """As the base class; a step is one of the small network."""

    def __init__(self, engine: Engine) -> None:
        if engine.ranks.reduction == "ordered":
            raise OptionError("reduction is 'ordered', but a table is sparse: take 'fast', or leave sparse out")
        assert engine.sparse is not None
        self.tables = engine.sparse
        super().__init__(engine)
        self.inner = lru_cache(SIZES)(lambda *sizes: RankedStep(engine, self.tables.small(sizes).layout))

    def carried_out(
        self, state: State, batch: Batch, share: Share, hyperparameters: Any, number: Any, count: int
    ) -> Array:
        backend, (x, y, weight, _) = self.backend, taken(self.backend, batch) if share.rows else (None,) * 4
        every = self._every(x)
        small, used, given, x = self.tables.gathered(backend, state.now[0], x, every)
        inner = self.inner(*(int(index.shape[0]) for index, _ in every))
        inner.steps, inner.stops, inner.watched = self.steps, self.stops, self.watched

        def step(carry: Carry) -> tuple[Carry, Array]:
            deferred, own = current.deferred, State(given, 0)
            value = inner.advance(own, (x, y, weight, None, hyperparameters, number), share, 1)
            current.deferred = deferred  # of this step, which ends with:
            return self.tables.put(backend, carry, own.now[0], small, used), value

        value: Array = interrupts.advance(step, state, count, state.now[0])
        self.stopping = inner.stopping
        return value

    def _every(self, x: Any) -> list[tuple[Array, int]]:
        """Of each group of tables the numbers of all ranks, and where this rank's begin."""
        backend, rank = self.backend, self.ranks.rank
        own = None if x is None else [backend.to_host(numbers) for numbers in self.tables.numbers(backend, x)]
        told = self.ranks.all_gather(own)
        groups: list[Sequence[Any]] = list(zip(*(some for some in told if some is not None), strict=True))
        before = [sum(len(some[k]) for some in told[:rank] if some is not None) for k in range(len(groups))]
        return [(self._joined(group), start) for group, start in zip(groups, before, strict=True)]
