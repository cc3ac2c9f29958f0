"""A training step as a CUDA graph: recorded once, then launched again with a single call.

What differs from step to step lies in device memory: the numbers (learning rate, bias correction, the step in the
random key) are written there before each launch, and the loss goes where one of them says.  The first call of a kind
launches every kernel by itself, with the numbers in the same place, so it gives the same bits.
"""

import contextlib
import logging
import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cupy

from bpnet.backends import cuda
from bpnet.backends.base import Array, State
from bpnet.backends.cupy_places import Known, Recorded
from bpnet.backends.cupy_slots import Losses, Numbers
from bpnet.backends.interrupts import Calls, advance, apart, uninterrupted
from bpnet.errors import BpnetError

MOST_KINDS = 8
"""Kinds of arguments of which a step keeps graphs; then those of the kind that was used longest ago go."""

LOG = logging.getLogger("bpnet")


class Source:
    """What the pool of the graphs grows by: memory of the allocator and of the stream that were current outside.

    So a capture takes up what the call before it left, and where there is no memory left the error reaches the caller,
    before the pool could give back what another graph uses.
    """

    device: Any = None

    def __call__(self, size: int) -> Any:
        with self.stream:
            try:
                return self.allocate(size)
            except cupy.cuda.runtime.CUDARuntimeError as error:  # of an allocator without a pool; see above
                if error.status != 2:  # cudaErrorMemoryAllocation
                    raise
                raise cupy.cuda.memory.OutOfMemoryError(size, 0, 0) from error

    def follow(self) -> None:
        """From now on, take what is current."""
        self.allocate, self.stream = cupy.cuda.get_allocator(), cupy.cuda.get_current_stream()
        self.device = cupy.cuda.Device()


class CapturedStep:
    """step(carry, *arguments) -> carry, loss, as a graph; the carry that is passed in is given up.

    Of every kind of arguments (shapes, types, device, and which are None) the first call is run as it stands, the
    second is captured, and later ones launch that graph.  An argument that lay at the same address in both is read
    there, as a data set of which rows are taken; a large one that has moved gets a graph of its own when it comes from
    there again.  Any other is copied to a buffer of the graph: see `Known`.  Numbers may differ from call to call, and
    change nothing but values.  `run_steps` steps on parts of the same data may be one graph.

    The carry stays in the memory in which it first came, whatever `step` makes of it, and one from elsewhere is copied
    there.  The graphs share one memory pool, which gives nothing back while a graph may use it.  All is launched on
    CuPy's current stream.

    What can't be captured, such as a step that copies to the host, runs as it stands, and is logged once, at debug
    level.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.refused = self.told = self.singly = False
        """Whether nothing is captured any more; whether that was told; whether only single steps are."""
        self.carry: Any = None
        self.leaves: list[Array] = []
        """The arrays of the carry."""
        self.losses: Losses
        self.numbers: dict[str, Numbers] = {}
        self.kinds: OrderedDict[Any, Known] = OrderedDict()
        """What is known of each kind of arguments."""
        self.last: Any = None
        """The kind of the last call."""
        self.launched: int | None = None
        """The stream of the last call."""
        self.source = Source()
        self.pool = cupy.cuda.MemoryPool(self.source)
        self.pool.set_limit(size=0)  # else it would give back what graphs use when it meets CUPY_GPU_MEMORY_LIMIT
        self.stream: Any = None
        """The one that captures."""
        weakref.finalize(self, _retire, self.kinds, self.pool, self.source, self.numbers).atexit = False

    def __call__(self, carry: Any, *args: Any) -> tuple[Any, Array]:
        state = State(carry, 0)
        value = self.advance(state, args, 0)
        return state.now[0], value

    def advance(self, state: State, args: Sequence[Any], count: int) -> Array:
        """See `Backend.advance`."""
        carry = state.now[0]
        kind, arrays, numbers = _sorted(args)
        known = self.kinds.get(kind)
        if known is not None and carry is self.carry:
            found = known.serving(arrays)
            if found is not None:
                return self._replay(state, count, kind, found, arrays, numbers)
        if self.refused or (known is not None and known.failed):
            return self._plain(state, args, count)
        recorded = self._recorded(kind, carry, args, arrays)
        if recorded is None:
            return self._one_by_one(state, args, count, arrays, self._ring(args, 1), numbers)
        return self._replay(state, count, kind, recorded, arrays, numbers)

    def _replay(
        self, state: State, count: int, kind: Any, found: Recorded, arrays: list[Array], numbers: list[float]
    ) -> Array:
        self._prepare(kind, found, arrays)
        value, address = self.losses.next()
        numbers.append(address)
        found.numbers.write(numbers)
        uninterrupted(((found.graph.launch,), (setattr, state, "now", (self.carry, count))))
        return value

    def run_steps(self, state: State, shared: Sequence[Any], each: Sequence[tuple[Any, ...]]) -> list[Array] | None:
        """The steps step(carry, *shared, *own) by one launch, each on its equal part of the last of `shared`.

        None, and nothing done, where they have no graph, as at the first call of a kind, or where memory runs out: the
        caller then does them one by one, and learns which of them fails.
        """
        if self.refused or self.singly:
            return None
        carry, before = state.now
        args = (*shared, *(a for own in each for a in own))
        kind, arrays, numbers = _sorted(args)
        known = self.kinds.get(kind)
        try:
            found = None if known is None or carry is not self.carry else known.serving(arrays)
            if found is None:
                found = self._recorded(kind, carry, args, arrays, len(each), len(each[0]))
                if found is None:
                    self.singly = self.kinds[kind].failed
                    return None
            self._prepare(kind, found, arrays)
            places = [self.losses.next() for _ in each]
        except MemoryError:
            return None
        found.numbers.write([*numbers, *[address for _, address in places]])
        uninterrupted(((found.graph.launch,), (setattr, state, "now", (self.carry, before + len(each)))))
        return [value for value, _ in places]

    def _prepare(self, kind: Any, found: Recorded, arrays: list[Array]) -> None:
        """All that comes before the numbers are written."""
        if kind != self.last:
            self.kinds.move_to_end(kind)
            self.last = kind
        self._follow_stream()
        found.stage(arrays)

    def _follow_stream(self) -> None:
        """Where the caller changes the stream, wait: memory is used again in the order of one."""
        stream = cupy.cuda.get_current_stream().ptr
        if stream != self.launched:
            if self.launched is not None:
                cupy.cuda.Device().synchronize()
            self.launched = stream

    # ---- before there is a graph --------------------------------------------------------------------------------

    def _ring(self, args: Sequence[Any], count: int) -> Numbers:
        """For the numbers of `count` steps and the places of their losses."""
        letters = _letters(args) + "q" * count
        ring = self.numbers[letters] = self.numbers.get(letters) or Numbers(letters)
        return ring

    def _recorded(
        self, kind: Any, carry: Any, args: Sequence[Any], arrays: list[Array], count: int = 1, own: int = 0
    ) -> Recorded | None:
        """The graph of `count` steps with so many arguments of their own; None where there is none yet, or can't be."""
        self._follow_stream()
        self._adopt(carry)
        known = self.kinds.get(kind) or Known()
        self._remember(kind, known)
        found = known.serving(arrays)  # where only the carry came from elsewhere
        if found is not None:
            return found
        ring, staged = self._ring(args, count), known.to_stage(arrays)
        if staged is None:
            return None
        try:
            buffers = {i: cupy.empty(arrays[i].shape, arrays[i].dtype) for i in sorted(staged)}
            given = [buffers.get(i, a) for i, a in enumerate(arrays)]
            graph = self._capture(_parted(_with(args, given, ring.held), count, own), ring)
        except Exception as error:
            self._forget()
            self._remember(kind, Known(failed=True))
            self._tell(error)
            return None
        except BaseException:
            self._forget()
            raise
        recorded = Recorded(graph, ring, arrays, buffers)
        known.add(recorded)
        return recorded

    def _plain(self, state: State, args: Sequence[Any], count: int) -> Array:
        """A call without any of this, but that other kinds may have graphs."""
        try:
            return advance(self.function, state, count, state.now[0], *args)
        except BaseException:
            self._forget()
            raise

    def _one_by_one(
        self, state: State, args: Sequence[Any], count: int, arrays: list[Array], ring: Numbers, numbers: list[float]
    ) -> Array:
        """The same launches as those of a graph, at once."""
        value, address = self.losses.next()
        try:
            ring.write([*numbers, address])
            late, carry, result = apart(self.function, self.carry, *_with(args, arrays, ring.held))
        except (MemoryError, BpnetError):
            self._forget()
            raise
        except Exception as error:  # it may do with its numbers what only the host can; and that comes before an update
            self._forget()
            state.now = self.carry, state.now[1]
            done = self._plain(state, args, count)
            self.refused = True
            self._tell(error)
            return done
        except BaseException:
            self._forget()
            raise
        then = [*self._settling(carry), (setattr, state, "now", (self.carry, count))]
        late.carry_out(then) if late else uninterrupted(then)
        try:
            self._put(ring.held[-1], result)
        except TypeError as error:
            self.refused = True
            self._tell(error)
            return result
        return value

    def _put(self, held: cuda.Held, result: Array) -> None:
        """Launch what writes the loss to the place whose address is held."""
        if result.shape != () or result.dtype != self.losses.dtype:
            raise TypeError(f"the loss is {result.dtype} of the shape {result.shape}, not one {self.losses.dtype}")
        self.losses.put(held.place, result)

    def _capture(self, steps: list[list[Any]], ring: Numbers) -> Any:
        """The graph of the steps of these arguments, which does not run yet."""
        self.source.follow()
        if self.stream is None:
            self.stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(self.pool.malloc), self.stream:
            self.stream.begin_capture()
            try:
                carry = self.carry
                for args, held in zip(steps, ring.held[-len(steps) :], strict=True):
                    carry, result = self.function(carry, *args)
                    self._put(held, result)
                self._settle(carry)
            except BaseException:
                with contextlib.suppress(Exception):  # what ends a capture that has failed says so once more
                    self.stream.end_capture()
                raise
            return self.stream.end_capture()

    # ---- the carry, and what is kept ----------------------------------------------------------------------------

    def _adopt(self, carry: Any) -> None:
        """Keep the carry, or where there is one copy it there."""
        leaves = list(_leaves(carry))
        if [(a.shape, a.dtype) for a in leaves] != [(a.shape, a.dtype) for a in self.leaves]:
            self._forget()
            self.carry, self.leaves, self.losses = carry, leaves, Losses(leaves[0].dtype)
        else:
            self._settle(carry)

    def _settle(self, carry: Any) -> None:
        uninterrupted(self._settling(carry))

    def _settling(self, carry: Any) -> Calls:
        """What copies the carry to the memory of this one's."""
        pairs = zip(self.leaves, _leaves(carry), strict=True)
        return [(operator.setitem, mine, ..., given) for mine, given in pairs if given is not mine and given.size]

    def _remember(self, kind: Any, known: Known) -> None:
        self.kinds[kind] = known
        self.kinds.move_to_end(kind)
        self.last = kind
        while len(self.kinds) > MOST_KINDS:
            self.kinds.popitem(last=False)

    def _forget(self) -> None:
        """Drop all graphs: a step that was broken off may have lost memory that they use."""
        self.last = None
        _release(self.kinds, self.pool, self.source)

    def _tell(self, error: Exception) -> None:
        if not self.told:
            self.told = True
            LOG.debug("the training step runs without a CUDA graph: %s: %s", type(error).__name__, error)


def _release(kinds: OrderedDict[Any, Any], pool: Any, source: Source) -> None:
    """Drop the graphs, and give their memory back to where it came from."""
    kinds.clear()
    if source.device is not None:
        with source.device:
            pool.free_all_blocks()


def _retire(kinds: OrderedDict[Any, Any], pool: Any, source: Source, numbers: dict[str, Numbers]) -> None:
    """What is left to do when a step is gone."""
    Numbers.retired.extend(numbers.values())
    _release(kinds, pool, source)


def _sorted(args: Sequence[Any]) -> tuple[tuple[Any, ...], list[Array], list[float]]:
    """The kind of the arguments, the arrays among them, and the numbers, those in tuples too."""
    kind: list[Any] = []
    arrays: list[Array] = []
    numbers: list[float] = []
    for a in args:
        of = type(a)
        if a is None:
            kind.append(None)
        elif of is tuple:
            before = len(numbers)
            _flatten(a, numbers)
            kind.append(len(numbers) - before)
        elif of is int or of is float:
            numbers.append(a)
            kind.append(of)
        else:
            arrays.append(a)
            kind.append((a.shape, a.dtype, a.data.device_id))
    return tuple(kind), arrays, numbers


def _flatten(some: tuple[Any, ...], numbers: list[float]) -> None:
    for a in some:
        if type(a) is tuple:
            _flatten(a, numbers)
        else:
            numbers.append(a)


def _letters(args: Sequence[Any]) -> str:
    """A letter for every number: those in tuples are float64, those by themselves of their own kind."""
    text = ""
    for a in args:
        if type(a) is tuple:
            numbers: list[float] = []
            _flatten(a, numbers)
            text += "d" * len(numbers)
        elif type(a) in (int, float):
            text += "q" if type(a) is int else "d"
    return text


def _with(args: Sequence[Any], arrays: Sequence[Array], held: Sequence[cuda.Held]) -> list[Any]:
    """The arguments with other arrays, and their numbers held."""
    next_array, next_number = iter(arrays), iter(held)

    def of(a: Any) -> Any:
        if type(a) is tuple:
            return tuple([next(next_number) if type(b) is not tuple else of(b) for b in a])
        if type(a) in (int, float):
            return next(next_number)
        return a if a is None else next(next_array)

    return [of(a) for a in args]


def _parted(args: list[Any], count: int, own: int) -> list[list[Any]]:
    """The arguments of each of `count` steps: what all share, its part of the last of that, and `own` of its own."""
    if count == 1:
        return [args]
    *shared, rows = args[: -count * own]
    size, rest = rows.shape[0] // count, args[-count * own :]
    parts = [rows[i * size : (i + 1) * size] for i in range(count)]
    return [[*shared, part, *rest[i * own : (i + 1) * own]] for i, part in enumerate(parts)]


def _leaves(carry: Any) -> Iterator[Array]:
    if isinstance(carry, tuple):
        for part in carry:
            yield from _leaves(part)
    else:
        yield carry
