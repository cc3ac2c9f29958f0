"""The training step of one of several ranks, which ends with the same parameters on all of them.

    rows of this rank -> loss and gradient -> [ summed over ranks ] -> penalties, clipping, optimizer -> theta

What is summed is one vector, the message: the gradient, then the loss, new buffers, and whether a rank is to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bpnet.backends import Array, Backend, definitions
from bpnet.backends.base import Rows, State, by_halves
from bpnet.backends.interrupts import current
from bpnet.backpropagation import blocks_of, finished, part_of_gradient
from bpnet.data.loader import Batch, taken
from bpnet.distributed.base import LONG, NOTHING, Communicator, on_all_ranks
from bpnet.errors import OptionError, plural
from bpnet.layer import each_array, row_count
from bpnet.layout import GradBuffer, Layout
from bpnet.step import Carry, Views, is_elementwise, updated

if TYPE_CHECKING:
    from bpnet.engine import Engine

LOOKED_AT = 32
"""Steps from one look at whether a rank is to stop to the next, where looking waits for a device."""


class Share(NamedTuple):
    """What of a batch is this rank's."""

    rows: int
    """How many rows it has, which are passed to it."""
    first: int
    """The number of the first of them in the batch."""
    size: int
    """How many rows the batch has."""
    total: float
    """The weight of the batch."""


class _AsksAgainError(BaseException):
    """An optimizer asks for the gradient at other parameters while its update is traced, where nobody communicates."""


class RankedStep:
    """The training step of an engine with several ranks."""

    def __init__(self, engine: Engine, layout: Layout | None = None) -> None:
        """`layout` is that of the parameters, where it is another than the engine's."""
        self.ranks, self.backend = engine.ranks, engine.backend
        self.layout = layout = layout or engine.layout
        backend, optimizer = self.backend, engine.optimizer
        self.optimizer, self.micro_batch, self.like = optimizer, engine.micro_batch, backend.copy(engine.carry[0][:1])
        check_network(self.ranks, layout)
        options: dict[str, Any] = {"layout": layout, "schedules": engine.schedules}
        self.finish: Callable[..., Any] = partial(
            finished, penalties=engine.penalties, clip_norm=engine.clip_norm, **options
        )
        names = "loss", "seed", "precision", "micro_batch"
        options |= {name: getattr(engine, name) for name in names}
        self.gradient: Callable[..., Any] = partial(part_of_gradient, views=Views(layout), ranks=self.ranks, **options)
        self.updates_buffers = layout.network.updates_buffers
        self.tail = 2 + (layout.buffer_size if self.updates_buffers else 0)
        """How many elements of a message come after the gradient."""
        self.ordered = self.ranks.reduction == "ordered"
        self.reuses = is_elementwise(optimizer) and not self.ordered and not backend.traces
        """Whether the memory of a message is used again: not where somebody may keep the gradient."""
        self.message: State | None = None
        """Where the last one lies."""
        self.grad_buffers: list[GradBuffer] | None = [] if self.reuses else None
        local = self._reusing if self.reuses else self._fresh
        self.local = backend.compile(local, donate=self.reuses, choice=engine.compile)
        self.update: Callable[..., tuple[Carry, Array]] = partial(self._update, backend, again=self._ask)
        self.move: Callable[..., Any] = partial(Backend.advance, backend)
        if optimizer.traceable:
            self.update = backend.compile(self._update, donate=True, choice=engine.compile)
            self.move = backend.advance
        self.whole: Callable[..., Any] | None = None
        if self.ranks.captured and optimizer.traceable and not self.ordered:
            self.whole = backend.compile(self._whole, donate=True, choice=engine.compile)
        # of the step that is at work: this rank's part, and what gives the message at other parameters
        self.batch: Batch
        self.again: Callable[[Array], Array]
        self.stops = self.stopping = self.watched = False
        """Whether this rank is to stop; whether one of them is, as far as was looked; whether anybody wants to know."""
        self.steps = 0
        self.sizes: set[int] = set()
        """How many rows this rank has had in a step."""

    # ---- a step -------------------------------------------------------------------------------------------------

    def advance(self, state: State, args: Sequence[Any], share: Share | None, count: int) -> Array:
        """As `Backend.advance`: one step, which is that of the number `count`; the loss before it.

        `args` are those of a step of one process, of this rank's rows of a batch.  Without a `share` it is all that the
        user has passed.
        """
        self.ranks.check()
        *batch, hyperparameters, number = args
        self.batch, share = (tuple(batch), share) if share is not None else self._own(tuple(batch))
        self.steps += 1
        known = share.rows in self.sizes  # otherwise a step of that size may have to be compiled
        with NOTHING if known else self.ranks.phase("its first step of so many rows", LONG):
            value = self.carried_out(state, self.batch, share, hyperparameters, number, count)
        self.sizes.add(share.rows)
        return value

    def carried_out(
        self, state: State, batch: Batch, share: Share, hyperparameters: Any, number: Any, count: int
    ) -> Array:
        """The step, of this rank's rows of a batch."""
        theta, buffers, _ = state.now[0]
        if self.whole is not None and share.rows and not current.reference:
            self._watch()
            rest = *self._arguments(number, share), hyperparameters
            return self.backend.advance(self.whole, state, (*batch, *rest), count)
        self.again = partial(self._summed, buffers=buffers, number=number, share=share)
        message = self.again(theta)
        self._watch(message)
        rest = message, number, share.total, hyperparameters
        if current.reference:
            carry, value = self._update(definitions(self.backend), state.now[0], *rest, self._ask)
            state.now = carry, count
            return value
        try:
            return self.move(self.update, state, rest, count)
        except _AsksAgainError:
            self.update = partial(self._update, self.backend, again=self._ask)
            self.move = partial(Backend.advance, self.backend)
            return self.move(self.update, state, rest, count)

    def _ask(self, theta: Array) -> Array:
        return self.again(theta)

    def _arguments(self, number: Any, share: Share) -> tuple[Any, ...]:
        """What `_fresh` is given after the batch."""
        return number, share.total, share.first, share.rows / max(share.size, 1), float(self.stops)

    def _own(self, batch: Batch) -> tuple[Batch, Share]:
        """This rank's part of what all were given; or where that is its own, as it is."""
        size, total = self.size_of(batch)
        if self.ranks.rows == "own":
            sizes, totals = zip(*self.ranks.all_gather((size, total)), strict=True)
            self.check_rows(min(sizes), sum(sizes))
            return batch, Share(size, sum(sizes[: self.ranks.rank]), sum(sizes), self.weight(sum(totals)))
        self.check_rows(size // self.ranks.size, size)
        start, stop = self.part(size)
        return some_rows(batch, start, stop), Share(stop - start, start, size, self.weight(total))

    def check_rows(self, least: int, size: int) -> None:
        """Raise OptionError where a rank has no rows of a batch of that size, and a layer needs some of each."""
        if self.layout.network.communicates and not least:
            raise on_all_ranks(
                OptionError(
                    "a layer of the network, such as a synchronised BatchNorm, needs rows of every rank in each batch, "
                    f"but one has {plural(size, 'row')}: pass drop_last=True, or take another batch_size"
                )
            )

    def size_of(self, batch: Batch) -> tuple[int, float]:
        """How many rows it has, and their weight."""
        x, _, weight, rows = batch
        size = 0 if x is None else int(row_count(x if rows is None else rows))
        if weight is None or not size:
            return size, float(size)
        return size, float(self.backend.xp.sum(weight if rows is None else self.backend.xp.take(weight, rows)))

    def weight(self, total: float) -> float:
        """What the sum over a batch of that weight is divided by: rows of no weight have no loss, not NaN."""
        return max(total, float(self.backend.xp.finfo(self.like.dtype).smallest_normal))

    def part(self, size: int) -> Rows:
        """This rank's rows of a batch of so many."""
        ranks = self.ranks
        if not self.ordered:
            return parted(size, ranks.size)[ranks.rank]
        blocks = self.blocks(size)
        first, stop = parted(len(blocks), ranks.size)[ranks.rank]
        return (blocks[first][0], blocks[stop - 1][1]) if first < stop else (0, 0)

    def whole_batch(self) -> Batch:
        """The batch of the last step, with the rows of all ranks."""
        backend = self.backend
        host: Any = None
        if self.batch[0] is not None:
            host = [None if a is None else each_array(backend.to_host, a) for a in taken(backend, self.batch)[:3]]
        every = [one for one in self.ranks.all_gather(host) if one is not None]

        x, y, weight = map(self._joined, zip(*every, strict=True))
        return x, y, weight, None

    def _joined(self, arrays: Sequence[Any]) -> Any:
        """Arrays of the host, or tuples of such, of one rank after the other, as one of the backend's."""
        if isinstance(arrays[0], tuple):
            return tuple(map(self._joined, zip(*arrays, strict=True)))
        if arrays[0] is None:
            return None
        backend, device = self.backend, self.backend.device(self.like)
        several = [backend.from_host(a, getattr(backend.xp, a.dtype.name), device) for a in arrays]
        return several[0] if len(several) == 1 else backend.xp.concat(several)

    def _watch(self, message: Array | None = None) -> None:
        """See now and then whether a rank is to stop: all of them at the same steps."""
        if not self.watched or (self.backend.has_streams and self.steps % LOOKED_AT):
            return
        if self.whole is not None:  # where a message stays on the device
            self.stopping = any(self.ranks.all_gather(self.stops))
        elif message is not None:
            flag = self.backend.fetch([message[message.shape[0] - 1]])
            self.ranks.check()
            self.stopping = flag[0] > 0.0

    def _summed(self, theta: Array, buffers: Array, number: Any, share: Share) -> Array:
        """The message of all ranks."""
        if self.ordered:
            return self._ordered(theta, buffers, number, share)
        if share.rows:
            message = self._local(theta, buffers, *self.batch, *self._arguments(number, share))
        else:
            zeros = self._zeros(theta)
            message = self.backend.concat([zeros[:-1], zeros[-1:] + float(self.stops)])
        return self.ranks.all_reduce(self.backend, message, tail=self.tail)

    def _zeros(self, theta: Array) -> Array:
        size, device = self.layout.size + self.tail, self.backend.device(theta)
        return self.backend.xp.zeros((size,), dtype=theta.dtype, device=device)

    def _local(self, *args: Any) -> Array:
        """This rank's message."""
        if current.reference:
            return self._fresh(definitions(self.backend), *args)
        if not self.reuses:
            made: Array = self.local(*args)
            return made
        if self.message is None:
            self.message = State((self._zeros(args[0]),), 0)
        self.backend.advance(self.local, self.message, args, 0)
        message: Array = self.message.now[0][0]
        return message

    def explain(
        self, explain: Callable[..., str], batch: Batch, carry: Carry, hyperparameters: Any, number: Any
    ) -> str:
        """What a step on that batch does, by `explain(function, args)` of what is compiled."""
        theta, buffers, _ = carry
        size, total = self.size_of(batch)
        share = Share(size, 0, size, self.weight(total))
        if self.ranks.rows == "same":  # otherwise others would have to say how many they have
            batch, share = self._own(batch)
        message = self._zeros(theta)
        args = theta, buffers, *batch, *self._arguments(number, share)
        rest = carry, message, number, share.total, hyperparameters
        ranks, numbers = plural(self.ranks.size, "rank"), plural(message.shape[0], "number")
        return "\n\n".join(
            (
                f"this rank has {plural(share.rows, 'row')} of {share.size}",
                explain(self.local, ((message,), *args) if self.reuses else args),
                f"then the sum over {ranks} of {numbers}: the gradient, the loss, and what else all are to know",
                explain(self.update, rest) if self.optimizer.traceable else f"not compiled: {self.optimizer}",
            )
        )

    # ---- what is compiled ---------------------------------------------------------------------------------------

    def _reusing(self, backend: Backend, message: tuple[Array], *args: Any) -> tuple[tuple[Array], Array]:
        """`_fresh`, to which the memory of the last message is given up."""
        # with a number, as a captured step gives one: not the loss, which is part of the message
        return (self._fresh(backend, *args),), backend.xp.sum(args[0][:1])

    def _fresh(
        self, backend: Backend, theta: Array, buffers: Array, x: Any, y: Any, weight: Any, rows: Any,
        number: Any, total: Any, first: Any, share: Any, stops: Any,
    ) -> Array:  # fmt: skip
        """The message of these rows; new buffers are the mean over ranks, by `share`."""
        pool = [] if self.grad_buffers is None else self.grad_buffers
        batch = x, y, weight, rows, number, total, first
        value, grad, new = self.gradient(backend, theta, buffers, *batch, grad_buffers=pool)
        tail = [backend.xp.reshape(value, (1,)), backend.xp.zeros_like(grad[:1]) + stops]
        if self.updates_buffers:  # by how much they change, since those that stay are to keep their bits
            tail.insert(1, backend.xp.zeros_like(buffers) if new is None else (new - buffers) * share)
        memory = next((buffer.memory for buffer in pool if buffer.vector is grad), None)
        if memory is None:
            return backend.concat([grad, *tail])
        start = self.layout.size
        for part in tail:
            backend.store(memory[start : start + part.shape[0]], part)
            start += part.shape[0]
        return memory[:start]

    def _update(
        self, backend: Backend, carry: Carry, message: Array, number: Any, total: Any, hyperparameters: Any,
        again: Callable[[Array], Array] | None = None,
    ) -> tuple[Carry, Array]:  # fmt: skip
        """The carry after a step, and the loss before it; again(theta) is the message at other parameters."""
        begin, buffers, state = carry
        layout, size = self.layout, self.layout.size

        def read(theta: Array, message: Array) -> tuple[Array, Array]:
            value = backend.xp.sum(message[size : size + 1])  # a number of its own, as where a step is captured
            found: tuple[Array, Array] = self.finish(backend, theta, value, message[:size], number, total)
            return found

        value, grad = read(begin, message)

        def evaluate(at: Array) -> tuple[Array, Array]:
            if at is begin:
                return value, grad
            if again is None and backend.traces:
                raise _AsksAgainError
            return read(at, (again or self.again)(at))

        theta, state = updated(self.optimizer, backend, layout, begin, grad, state, hyperparameters, evaluate)
        if self.updates_buffers:
            buffers = buffers + message[size + 1 : size + 1 + layout.buffer_size]
        return (theta, buffers, state), value

    def _whole(self, backend: Backend, carry: Carry, *args: Any) -> tuple[Carry, Array]:
        """All of a step, where the sum over ranks is captured with it."""
        *rest, hyperparameters = args
        number, total = rest[4:6]

        def summed(theta: Array) -> Array:
            message = self._fresh(backend, theta, carry[1], *rest)
            reduce = partial(_all_reduce, self.ranks, self.tail)
            return backend.outside(reduce, message, "the sum over ranks", captured=True)

        return self._update(backend, carry, summed(carry[0]), number, total, hyperparameters, summed)

    # ---- sums in the order of blocks ----------------------------------------------------------------------------

    def blocks(self, count: int) -> list[Rows]:
        """Those of a batch, whose sums are added up in one order."""
        return blocks_of(self.backend, self.layout, count, self.micro_batch)

    def _ordered(self, theta: Array, buffers: Array, number: Any, share: Share) -> Array:
        """The message of all ranks, added up from those of blocks as one process adds up their gradients.

        Each block is computed by itself, one after the other, so that nothing depends on who computes it.
        """
        blocks, ranks = self.blocks(share.size), self.ranks
        tree, parts = _tree(len(blocks)), parted(len(blocks), ranks.size)
        # who has no block sends something too, which is left out of the sum
        nodes = [[*_within(tree, *part)] or [None] for part in parts]
        stops, inside = float(self.stops), current.inside
        messages: dict[Any, Array] = {None: self._zeros(theta)}
        try:
            current.inside = True
            for k in range(*parts[ranks.rank]):
                start, stop = blocks[k]
                batch = some_rows(self.batch, start - share.first, stop - share.first)
                part = (stop - start) / share.size
                messages[k] = self._local(theta, buffers, *batch, number, share.total, start, part, stops)
        finally:
            current.inside = inside
        own = [_folded(node, messages) for node in nodes[ranks.rank]]
        every = [node for some in nodes for node in some]

        def combine(vectors: Sequence[Array]) -> Array:
            return _folded(tree, dict(zip(every, vectors, strict=True)))

        return ranks.all_reduce_ordered(self.backend, own, [len(some) for some in nodes], combine)


def ranked_step(engine: Engine) -> RankedStep:
    """That of an engine whose ranks are not alone."""
    if engine.sparse is None:
        return RankedStep(engine)
    from bpnet.distributed.sparse import RankedSparseStep

    return RankedSparseStep(engine)


def _all_reduce(ranks: Communicator, tail: int, backend: Backend, vector: Array) -> Array:
    return ranks.all_reduce(backend, vector, tail=tail)


def check_network(ranks: Communicator, layout: Layout) -> None:
    """Raise OptionError where a network can't be trained by several ranks, or not in that way."""
    network = layout.network
    if ranks.reduction == "ordered" and ranks.rows == "own":
        raise OptionError("reduction is 'ordered', but ranks have rows of their own: leave one of them out")
    if ranks.reduction == "ordered" and (network.couples_rows or network.updates_buffers):
        raise OptionError(
            "reduction is 'ordered', but a layer of the network (such as BatchNorm) needs all rows of a batch at once: "
            "take 'fast'"
        )


def parted(count: int, ranks: int) -> list[Rows]:
    """The parts of so many rows, or blocks, by rank."""
    return [(count * r // ranks, count * (r + 1) // ranks) for r in range(ranks)]


def some_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Those of the rows of a batch."""
    x, y, weight, rows = batch
    if rows is not None:
        return x, y, weight, rows[start:stop]
    x, y, weight = (None if a is None else each_array(lambda one: one[start:stop, ...], a) for a in (x, y, weight))
    return x, y, weight, None


# A sum of blocks is a tree: the number of a block, or a pair of sums.


@cache
def _tree(count: int) -> Any:
    """How one process adds up so many blocks."""
    pair: Any = lambda some, more: (some, more)  # noqa: E731
    return by_halves(range(count), pair, count)


def _within(tree: Any, first: int, stop: int) -> Iterator[Any]:
    """The largest sums in it of blocks from `first` to before `stop` alone."""
    blocks = [*_blocks(tree)]
    if first <= blocks[0] and blocks[-1] < stop:
        yield tree
    elif type(tree) is not int and first <= blocks[-1] and blocks[0] < stop:
        for part in tree:
            yield from _within(part, first, stop)


def _blocks(tree: Any) -> Iterator[int]:
    if type(tree) is int:
        yield tree
    else:
        for part in tree:
            yield from _blocks(part)


def _folded(tree: Any, known: Mapping[Any, Array]) -> Array:
    """A sum, of which some parts are known."""
    if tree in known:
        return known[tree]
    some, more = tree
    return _folded(some, known) + _folded(more, known)
