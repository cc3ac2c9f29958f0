"""Where the rows of a batch come from: arrays that lie where they are computed with, or NumPy's, brought to a device.

Data that fit comfortably on the device are put there once; others stream through it batch by batch, while it computes.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bpnet.backends import Array, Backend, get
from bpnet.backends.base import Prefetcher, Rows
from bpnet.backends.interrupts import Quiet
from bpnet.backpropagation import take_rows
from bpnet.data import check_x, is_whole
from bpnet.errors import DTypeError, OutOfMemoryError, plural
from bpnet.layer import Layer, Shape
from bpnet.layers.composition import Residual, Sequential
from bpnet.layout import Layout
from bpnet.options import whole

Batch = tuple[Array, Array | None, Array | None, Array | None]
"""x, y, weight, and the rows to take of them (None: all)."""

COMFORTABLE = 0.5
"""The part of the device's free memory that a data set may take to be put there."""
GATHERED = 2**20
"""Bytes that a thread gathers at a time."""
SENT = 2**26
"""Bytes of x that are brought to the device at a time, where the batches are not the user's."""


def parts(count: int, batch_size: int | None) -> list[Rows]:
    """The batches of `count` rows."""
    size = count if batch_size is None else whole("batch_size", batch_size, 1)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def shuffled(seed: int, epoch: int, count: int) -> Any:
    """The order of the rows in an epoch, drawn on the host: the same for every library."""
    import numpy

    with Quiet():  # as in Rng
        return numpy.random.default_rng((seed, epoch)).permutation(count)


def in_order(count: int) -> Any:
    """The order of the rows where they are not shuffled."""
    import numpy

    return numpy.arange(count)


class Data:
    """The rows of x, y and weight, arrays of one library on one device."""

    def __init__(self, backend: Backend, x: Array, y: Array | None, weight: Array | None) -> None:
        self.backend, self.x, self.y, self.weight = backend, x, y, weight
        self.count = x.shape[0]
        self.like = x
        """An array of the library, device and type that is computed with."""

    def batches(self, size: int | None, order: Any = None) -> Iterator[Batch]:
        """Batches of at most `size` rows (None: all), in their order or that of `order`, a NumPy vector."""
        if order is None:
            for part in parts(self.count, size):
                x, y, weight = take_rows(self.backend, (self.x, self.y, self.weight), part, None)
                yield x, y, weight, None
            return
        index = self.backend.xp.int64 if self.count >= 2**31 else self.backend.xp.int32
        rows = self.backend.from_host(order, index, self.backend.device(self.x))
        for start, stop in parts(self.count, size):
            yield self.x, self.y, self.weight, rows[start:stop]

    def typed(self) -> Array:
        """What has the library of x, its shape, and the type that is computed in."""
        return self.x

    def total(self) -> float:
        """The weight of all rows."""
        return float(self.count) if self.weight is None else float(self.backend.xp.sum(self.weight))

    def most(self) -> int:
        """Rows that are computed at a time where nobody said how many."""
        return int(self.count)

    def moved(self) -> "Data":
        """The same on the device."""
        return self

    def settled(self) -> "Data":
        """The same for one who goes through it again and again."""
        return self


class HostData(Data):
    """NumPy arrays, memory-mapped files among them, of which batches are brought to the device of `like`.

    Whole numbers in x become the type of `like` there, so that they travel as small as they are.
    """

    a_row = 1
    """How many bytes a row takes while it is computed with."""

    def __init__(self, backend: Backend, x: Any, like: Array, threads: int | None) -> None:
        super().__init__(backend, x, None, None)
        self.host = get("numpy")
        self.like, self.threads = like, threads

    def batches(self, size: int | None, order: Any = None) -> Iterator[Batch]:
        arrays = [a for a in (self.x, self.y, self.weight) if a is not None]
        cut = parts(self.count, self.most() if size is None else size)
        prefetcher: Prefetcher | None = None
        try:
            for start, stop in cut:
                rows = slice(start, stop) if order is None else order[start:stop]
                try:
                    prefetcher = prefetcher or self._prefetcher(arrays, cut[0][1], len(cut))
                    batch = self._taken(prefetcher.send(stop - start, partial(self._write, arrays, rows)))
                except self.backend.oom_errors as error:
                    text = f"a batch of {plural(stop - start, 'row')} does not fit on the device: lower batch_size"
                    raise OutOfMemoryError(text) from error
                yield batch
        finally:
            if prefetcher is not None:
                prefetcher.close()

    def _prefetcher(self, arrays: Sequence[Any], rows: int, batches: int) -> Prefetcher:
        specs = [(a.shape[1:], a.dtype.newbyteorder("=")) for a in arrays]
        return self.backend.prefetcher(specs, rows, batches, self.backend.device(self.like))

    def _taken(self, sent: Sequence[Array]) -> Batch:
        xp, rest = self.backend.xp, iter(sent)
        x = next(rest)
        y, weight = (None if a is None else next(rest) for a in (self.y, self.weight))
        return x if x.dtype == self.like.dtype else xp.astype(x, self.like.dtype), y, weight, None

    def _write(self, arrays: Sequence[Any], rows: Any, buffers: Sequence[Any]) -> None:
        """Rows of the arrays into the buffers, gathered by several threads."""
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

    def typed(self) -> Any:
        """One number, shown as often as x has entries, so that whole numbers stay as they are."""
        xp = self.host.xp
        dtype = xp.float32 if self.like.dtype == self.backend.xp.float32 else xp.float64
        return xp.broadcast_to(xp.zeros((1,) * self.x.ndim, dtype=dtype), self.x.shape)

    def total(self) -> float:
        return float(self.count) if self.weight is None else float(self.weight.sum(dtype="float64"))

    def _free(self) -> int | None:
        memory = self.backend.memory(self.like)
        return None if memory is None else memory[0]

    def most(self) -> int:
        """So many that copies and computing overlap."""
        free = self._free()
        room = self.count if free is None else free // (2 * self.a_row)
        return max(1, min(int(self.count), room, self._sent()))

    def _sent(self) -> int:
        """Rows of x that are brought to the device at a time."""
        a_row = int(self.x.nbytes) // int(self.count)
        return max(1, SENT // max(1, a_row))

    def moved(self) -> Data:
        xp = self.backend.xp
        dtypes = [None if a is None else getattr(xp, a.dtype.name) for a in (self.x, self.y, self.weight)]
        dtypes[0] = self.like.dtype
        places = [
            None if a is None else self._room(a.shape, dtype)
            for a, dtype in zip((self.x, self.y, self.weight), dtypes, strict=True)
        ]
        if places[0] is None:  # arrays that can't be written to
            x, y, weight, _ = next(self.batches(self.count))
            return Data(self.backend, x, y, weight)
        cut = parts(self.count, self._sent())
        for (start, stop), batch in zip(cut, self.batches(self._sent()), strict=True):
            for place, part in zip(places, batch[:3], strict=True):
                if place is not None:
                    self.backend.store(place[start:stop, ...], part)
        return Data(self.backend, *places)

    def _room(self, shape: tuple[int, ...], dtype: Any) -> Array | None:
        one = self.backend.from_host(0, dtype, self.backend.device(self.like))
        memory = self.backend.empty_vector(math.prod(shape), one)
        return None if memory is None else self.backend.xp.reshape(memory, tuple(shape))

    def settled(self) -> Data:
        """On the device, where there is room enough; else as it is."""
        free = self._free()
        size = math.prod(self.x.shape) * int(self.like.dtype.itemsize)
        size += sum(a.nbytes for a in (self.y, self.weight) if a is not None)
        return self if free is None or size > COMFORTABLE * free else self.moved()


def host_data(
    backend: Backend, x: Any, name: str, values: bool, like: Array | None, threads: int | None, device: Any = None
) -> HostData:
    """`x`, an array of NumPy, as data for `backend`, checked by itself and against the type of `like`.

    Without `like` it is for `device` (None: the current one).  Of whole numbers nothing is converted yet: they become
    float32, or the type of `like`.
    """
    whole_numbers = x.ndim > 1 and x.shape[0] > 0 and is_whole(get("numpy"), x)
    host, one = check_x(x[:1] if whole_numbers else x, name, values)
    dtype = backend.xp.float32 if one.dtype == host.xp.float32 else backend.xp.float64
    if like is None:
        like = backend.from_host(0.0, dtype, device)
    elif like.dtype != dtype and not whole_numbers:
        own = str(like.dtype).rpartition(".")[2]
        raise DTypeError(f"{name} holds {x.dtype} values, but the parameters {own}: convert {name}")
    return HostData(backend, x, like, threads)


def bytes_a_row(layout: Layout, itemsize: int) -> int:
    """About how much memory a row takes in a training step: its values in all layers, the loss, derivatives in one."""
    values, largest = _values(layout.network, layout.in_shape)
    return itemsize * (math.prod(layout.in_shape) + values + 6 * math.prod(layout.out_shape) + 2 * largest)


def _values(layer: Layer, in_shape: Shape) -> tuple[int, int]:
    """How many values of a row a layer may keep, and the most that enter or leave a layer in it."""
    total = largest = 0
    if isinstance(layer, Sequential):
        for _, child in layer.children:
            values, most = _values(child, in_shape)
            total, largest = total + values, max(largest, most)
            in_shape = child.out_shape(in_shape)
        return total, largest
    if isinstance(layer, Residual):
        total, largest = _values(layer.inner, in_shape)
    out = math.prod(layer.out_shape(in_shape))
    return total + 2 * out, max(largest, out, math.prod(in_shape))  # an output, and what it was made from or a mask


def out_of_memory(
    error: Exception, backend: Backend, layout: Layout, like: Array, rows: int, training: bool = True
) -> OutOfMemoryError:
    """The error to raise where a batch of `rows` failed for want of memory, in a step of training or a forward pass.

    What the pass had made must be free again: what fits is told by the memory that is there now.
    """
    wanted, memory = backend.bytes_requested(error), backend.memory(like)
    what = "training step on a batch" if training else "forward pass"
    text = f"a {what} of {plural(rows, 'row')} needs more memory than there is"
    if wanted is not None:
        text += f": {wanted:,} bytes more were wanted"
    network = layout.network
    smaller = "batches of {} rows" if network.couples_rows or network.updates_buffers else "micro_batch={}"
    smaller = smaller if training else "batch_size={}"
    if memory is None:
        return OutOfMemoryError(f"{text}. Nothing was changed by it; try {smaller.format(_half(rows))}")
    free, total = memory
    text += f"{',' if wanted is not None else ':'} {free:,} bytes of {total:,} are free without it. "
    itemsize = int(like.dtype.itemsize)
    if training:
        fits = (int(0.8 * free) - layout.size * itemsize) // bytes_a_row(layout, itemsize)  # and one gradient
    else:  # what enters and leaves a layer, and what it may make in between
        widest = _values(layout.network, layout.in_shape)[1]
        fits = int(0.8 * free) // (itemsize * (4 * widest + math.prod(layout.out_shape)))
    fits = min(_half(rows), 1 << max(fits, 1).bit_length() - 1)
    hint = f"{smaller.format(fits)} would fit" if fits < rows else "even one row does not fit"
    return OutOfMemoryError(f"{text}Nothing was changed by it; {hint}")


def _half(rows: int) -> int:
    """The largest power of two below `rows`, 1 at least."""
    return 1 << max(rows - 1, 1).bit_length() - 1
