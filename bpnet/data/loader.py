"""Where batches come from: arrays that lie where they are computed with, or NumPy's, which stream to a device.

Data that take a good part of a device's free memory stream through it batch by batch while it computes; smaller ones
are put there once.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from bpnet.backends import Array, Backend, get
from bpnet.backends.base import Rows
from bpnet.backends.interrupts import NoWarnings
from bpnet.data.mapped import MappedFile
from bpnet.data.memory import bytes_per_row
from bpnet.errors import DataError, OutOfMemoryError, plural
from bpnet.layer import Input, each_array, row_count
from bpnet.layout import Layout
from bpnet.options import whole

Size = int | list[Rows] | None
"""Of batches: how many rows they have at most, None for all; or which, as parts of the order that they come in."""

Batch = tuple[Input, Array | None, Array | None, Array | None]
"""x, y, weight, and the rows to take of them (None: all)."""

Selected = tuple[Sequence[Any], Any]
"""Arrays of NumPy, and some of their rows: a slice, or their numbers."""

CACHED_SHARE = 0.5
"""The part of the device's free memory that a data set may take to be kept there."""
GATHERED = 2**20
"""Bytes that a thread gathers at a time."""
TRANSFER = 2**26
"""Bytes of x that are copied to the device at a time, where the batches are not the user's."""


def parts(count: int, batch_size: Size) -> list[Rows]:
    """The batches of `count` rows."""
    if isinstance(batch_size, list):
        return batch_size
    size = count if batch_size is None else whole("batch_size", batch_size, 1)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def row_order(seed: int, epoch: int, count: int, shuffle: bool | Callable[[int], Any]) -> Any:
    """The order of the rows in an epoch, drawn on the host: the same for every library.

    Where `shuffle` is a function, what it gives for the number of the epoch; raises DataError where that is no order.
    """
    import numpy

    if callable(shuffle):
        order = numpy.asarray(shuffle(epoch))
        if order.shape != (count,) or order.dtype.kind not in "iu" or not 0 <= order.min() <= order.max() < count:
            raise DataError(
                f"shuffle gave an array of shape {order.shape}, {order.dtype}, for epoch {epoch}; expected the numbers "
                f"of {plural(count, 'row')}, each from 0 to {count - 1}"
            )
        return order
    if not shuffle:
        return numpy.arange(count)
    with NoWarnings():  # as in Rng
        return numpy.random.default_rng((seed, epoch)).permutation(count)


def counting(weight: float) -> float:
    """The weight of all rows, where only reading them told it; raises DataError where none counts."""
    if weight == 0.0:
        raise DataError("sample_weight is 0 everywhere; expected at least one row that counts")
    return weight


def take_rows(
    backend: Backend, arrays: tuple[Input | None, ...], part: Rows, rows: Array | None
) -> tuple[Input | None, ...]:
    """Rows part[0] ... part[1] - 1 of each array, or of the selection `rows` of it; the first are a network's input."""
    start, stop = part
    if rows is None:
        if start == 0 and stop == row_count(arrays[0]):
            return arrays
        return tuple([None if a is None else each_array(lambda one: one[start:stop, ...], a) for a in arrays])
    some, take = rows[start:stop], backend.xp.take
    return tuple([None if a is None else each_array(lambda one: take(one, some, axis=0), a) for a in arrays])


def taken(backend: Backend, batch: Batch) -> Batch:
    """A batch whose arrays have its rows alone."""
    x, y, weight, rows = batch
    if rows is None:
        return batch
    x, y, weight = take_rows(backend, (x, y, weight), (0, rows.shape[0]), rows)
    return x, y, weight, None


class Loader:
    """The rows of x, y and weight, arrays of one library on one device, batch by batch."""

    streams = False
    """Whether batches are copied from the host."""
    lazy = False
    """Whether an order is drawn as batches are taken."""
    by_ranks = False
    """Whether an order that is drawn is another for another number of ranks."""
    told = True
    """Whether it is known how many rows there are in batches, and what they weigh, before they are read."""

    def __init__(
        self,
        backend: Backend,
        layout: Layout,
        x: Input,
        y: Array | None,
        weight: Array | None,
        like: Array,
        maps: Sequence[MappedFile] = (),
    ) -> None:
        self.backend, self.layout, self.x, self.y, self.weight = backend, layout, x, y, weight
        self.maps = maps
        self.count = int(row_count(x))
        self.like, self.device = like, backend.device(like)
        """An array of the library, device and type that is computed with."""

    def batches(self, size: Size, order: Any = None) -> Iterator[Batch]:
        """Batches of that size of the rows in their order, or in that of `order`, a NumPy vector or a range."""
        if order is None:
            for part in parts(self.count, size):
                self.check_maps()
                x, y, weight = take_rows(self.backend, (self.x, self.y, self.weight), part, None)
                yield x, y, weight, None
            return
        index = self.backend.xp.int64 if self.count >= 2**31 else self.backend.xp.int32
        rows = self.backend.from_host(order, index, self.device)
        for start, stop in parts(len(order), size):
            self.check_maps()
            yield self.x, self.y, self.weight, rows[start:stop]

    def order(self, seed: int, epoch: int, shuffle: bool | Callable[[int], Any], size: Any, part: Rows = (0, 1)) -> Any:
        """The order of the rows in an epoch of batches of `size`, or with such borders: see `row_order`.

        Where it is `lazy` it is that of the rows of `part`, a rank and of how many, in each of them.
        """
        return row_order(seed, epoch, self.count, shuffle)

    def sample(self, most: int) -> Iterator[Any]:
        """Arrays of the host, of x, y and the weight of at most twice so many rows, from all over the data."""
        step = max(1, self.count // most)
        x, y, weight, rows = next(self.batches(most, range(0, self.count, step)))
        for arrays in take_rows(self.backend, (x, y, weight), (0, min(most, self.count)), rows):
            for array in arrays if isinstance(arrays, tuple) else (arrays,):
                if array is not None:
                    yield self.backend.to_host(array)

    def options(self) -> dict[str, Any]:
        """What else must be the same where a training is resumed, as JSON values by name."""
        return {}

    def passed(self) -> tuple[float, float] | None:
        """How many rows the last pass over all in their order had, and their weight, where only that tells."""
        return None

    def own(self, result: Array) -> Array:
        """What was computed from a batch, when the memory of that may be another's soon."""
        return result

    def check_maps(self) -> None:
        """Raise PathError where a file that is mapped has been cut."""
        for file in self.maps:
            file.check()

    @cached_property
    def host_weight(self) -> Any:
        """The weight of each row as NumPy has it; it is copied from a device once, which waits for what that does."""
        assert self.weight is not None
        return self.backend.to_host(self.weight)

    def sizes(self, size: Size, order: Any = None) -> list[float]:
        """The weight of each batch, that of a row being 1 where none is given, added up on the host."""
        batches = parts(self.count if order is None else len(order), size)
        if self.weight is None:
            return [stop - start for start, stop in batches]
        rows = (slice(start, stop) if order is None else order[start:stop] for start, stop in batches)
        return [float(self.host_weight[some].sum(dtype="float64")) for some in rows]

    def whole_batch(self) -> Batch:
        """All rows as one batch."""
        return self.x, self.y, self.weight, None

    def rows(self, start: int, stop: int) -> Input:
        """Some rows of x, where they are computed with."""
        return next(itertools.islice(self.batches(stop - start, range(start, stop)), 1))[0]

    def total_weight(self) -> float:
        """The weight of all rows."""
        return float(self.count) if self.weight is None else float(self.backend.xp.sum(self.weight))

    def largest_batch(self) -> int:
        """Rows that are computed at a time where nobody said how many."""
        return self.count

    def cached(self) -> "Loader":
        """The same for one who goes through it again and again."""
        return self


class StreamingLoader(Loader):
    """NumPy arrays, memory-mapped files among them, of which batches are copied to the device of `like`.

    Each array of x becomes of the one of `types` there that is its own, so that whole numbers travel as small as they
    are.
    """

    streams = True

    @cached_property
    def host_weight(self) -> Any:
        return self.weight

    def __init__(
        self,
        backend: Any,
        layout: Layout,
        x: Any,
        y: Any,
        weight: Any,
        like: Array,
        types: Any,
        threads: int | None,
        maps: Sequence[MappedFile],
    ) -> None:
        super().__init__(backend, layout, x, y, weight, like, maps)
        self.host, self.types, self.threads = get("numpy"), types, threads
        self.inputs = x if isinstance(x, tuple) else (x,)

    def batches(self, size: Size, order: Any = None) -> Iterator[Batch]:
        size = self.largest_batch() if size is None else size
        count = self.count if order is None else len(order)
        cut = parts(count, size)
        own = [a for a in (*self.inputs, self.y, self.weight) if a is not None]
        specs = [(a.shape[1:], a.dtype.newbyteorder("=")) for a in own]
        prefetcher: Any = None
        try:
            for arrays, rows in self.selected(size, order):
                number = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
                try:
                    if prefetcher is None:
                        most = max(stop - start for start, stop in cut)
                        prefetcher = self.backend.prefetcher(specs, most, len(cut), self.device)
                    sent = prefetcher.send(number, partial(self._write, arrays, rows))
                    x, rest = sent[: len(self.inputs)], list(sent[len(self.inputs) :])
                    pairs, astype = zip(x, self.types, strict=True), self.backend.xp.astype
                    x = tuple([a if a.dtype == dtype else astype(a, dtype) for a, dtype in pairs])
                except self.backend.oom_errors as error:
                    text = f"a batch of {plural(number, 'row')} does not fit on the device"
                    raise OutOfMemoryError(f"{text}: take a smaller batch_size") from error
                y, weight = (None if a is None else rest.pop(0) for a in (self.y, self.weight))
                yield (x if isinstance(self.x, tuple) else x[0]), y, weight, None
        finally:
            if prefetcher is not None:
                prefetcher.close()

    def selected(self, size: Size, order: Any) -> Iterator[Selected]:
        """Of each batch the arrays of NumPy that have its rows, and which these are."""
        arrays = [a for a in (*self.inputs, self.y, self.weight) if a is not None]
        for start, stop in parts(self.count if order is None else len(order), size):
            self.check_maps()
            yield arrays, slice(start, stop) if order is None else order[start:stop]

    def _write(self, arrays: Sequence[Any], rows: Any, buffers: Sequence[Any]) -> None:
        """Rows of the arrays into staging buffers, gathered by several threads."""
        with self.host.session(self.threads):
            for array, buffer in zip(arrays, buffers, strict=True):
                step = max(1, GATHERED // max(1, buffer.nbytes // buffer.shape[0]))
                plain = array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative

                def gather(_: int, part: Rows, array: Any = array, buffer: Any = buffer, plain: bool = plain) -> None:
                    here = slice(*part)
                    if isinstance(rows, slice):
                        buffer[here] = array[rows][here]
                    elif plain:
                        array.take(rows[here], axis=0, out=buffer[here], mode="clip")  # other modes copy twice
                    else:  # of which `take` would first copy all
                        buffer[here] = array[rows[here]]

                for _ in self.host.map_blocks(gather, parts(buffer.shape[0], step)):
                    pass

    def whole_batch(self) -> Batch:
        return next(self.batches(self.count))

    def total_weight(self) -> float:
        return float(self.count) if self.weight is None else float(self.weight.sum(dtype="float64"))

    def _free(self) -> int | None:
        memory = self.backend.memory(self.like)
        return None if memory is None else memory[0]

    def largest_batch(self) -> int:
        """So many that copies and computing overlap."""
        free = self._free()
        fit = self.count if free is None else free // (2 * bytes_per_row(self.layout, int(self.like.dtype.itemsize)))
        return max(1, min(self.count, fit, self._transfer()))

    def _transfer(self) -> int:
        """Rows of x that are copied to the device at a time."""
        return max(1, TRANSFER // max(1, sum(int(a.nbytes) for a in self.inputs) // self.count))

    def cached(self) -> Loader:
        """On the device, where there is memory enough; else as it is."""
        others, free = (self.y, self.weight), self._free()
        sizes = [math.prod(a.shape) * int(t.itemsize) for a, t in zip(self.inputs, self.types, strict=True)]
        if free is None or sum(sizes) + sum(a.nbytes for a in others if a is not None) > CACHED_SHARE * free:
            return self
        there = [self._empty(a, dtype) for a, dtype in zip(self.inputs, self.types, strict=True)]
        if there[0] is None:  # arrays of this library can't be written to
            return Loader(self.backend, self.layout, *self.whole_batch()[:3], self.like)
        there += [None if a is None else self._empty(a, None) for a in others]
        size = self._transfer()
        for (start, stop), (x, y, weight, _) in zip(parts(self.count, size), self.batches(size), strict=True):
            for memory, part in zip(there, (*(x if isinstance(x, tuple) else (x,)), y, weight), strict=True):
                if memory is not None:
                    self.backend.store(memory[start:stop, ...], part)
        *inputs, y, weight = there
        x = tuple(inputs) if isinstance(self.x, tuple) else inputs[0]
        return Loader(self.backend, self.layout, x, y, weight, self.like)

    def _empty(self, a: Any, dtype: Any) -> Array | None:
        """Memory on the device for what is in `a`."""
        xp = self.backend.xp
        one = self.backend.from_host(0, dtype or getattr(xp, a.dtype.name), self.device)
        vector = self.backend.empty_vector(math.prod(a.shape), one)
        return None if vector is None else xp.reshape(vector, tuple(a.shape))
