"""How much memory a batch takes on a device, and what to say where it is too much."""

import math
import traceback
from collections.abc import Callable
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.errors import OutOfMemoryError, plural
from bpnet.layer import Composite, InShape, Layer
from bpnet.layers.composition import Sequential
from bpnet.layout import Layout

USABLE = 0.5
"""How much of the memory that is free a batch may take: the rest is in pieces, or for what else is done."""


def bytes_per_row(layout: Layout, itemsize: int) -> int:
    """About how much memory a row takes in a training step: its values in all layers, the loss, derivatives in one."""
    values, largest = _values(layout.network, layout.in_shape)
    return itemsize * (_size(layout.in_shape) + values + 6 * math.prod(layout.out_shape) + 2 * largest)


def _values(layer: Layer, in_shape: InShape) -> tuple[int, int]:
    """How many values of a row a layer may save, and the most that enter or leave a layer in it."""
    total = largest = 0
    if isinstance(layer, Composite):
        for (_, child), shape in zip(layer.children, layer.child_shapes(in_shape), strict=True):
            values, most = _values(child, shape)
            total, largest = total + values, max(largest, most)
        if isinstance(layer, Sequential):
            return total, largest
    out = math.prod(layer.out_shape(in_shape))
    return total + 2 * out, max(largest, out, _size(in_shape))  # an output, and what it was made from or a mask


def _size(in_shape: InShape) -> int:
    """How many numbers a row has, of all arrays."""
    several = in_shape and isinstance(in_shape[0], tuple)
    return sum(math.prod(shape) for _, shape in in_shape) if several else math.prod(in_shape)


def rows_that_fit(attempt: Callable[[int], Any], most: int) -> int:
    """A quarter of the rows with which `attempt` was seen to work, of at most so many; 0 where one is too many.

    The rest is for memory that is in pieces by the time of the next call, and for what a step has besides its gradient.
    """
    while most > 0:
        try:
            attempt(most)
        except Exception as error:  # of memory that is short; what else it may be has not been an error before
            traceback.clear_frames(error.__traceback__)
            most //= 2
        else:
            return max(most // 4, 1)
    return 0


def out_of_memory(
    error: Exception,
    backend: Backend,
    layout: Layout,
    like: Array,
    rows: int,
    training: bool = True,
    attempt: Callable[[int], Any] | None = None,
) -> OutOfMemoryError:
    """The error to raise where a batch of `rows` failed for want of memory, in a step of training or a forward pass.

    What the pass had made must be free again: what fits is judged by the memory that is there now.  Where nobody can
    say how much that is, `attempt(n)` does the same on n rows at a time, and keeps nothing of it.
    """
    if isinstance(error, OutOfMemoryError):
        return error
    requested, memory = backend.bytes_requested(error), backend.memory(like)
    what = "training step on a batch" if training else "forward pass"
    text = f"a {what} of {plural(rows, 'row')} needs more memory than there is"
    if requested is not None:
        text += f": {requested:,} bytes more were requested"
    whole = layout.network.couples_rows or layout.network.updates_buffers
    smaller = ("batches of {} rows" if whole else "micro_batch={}") if training else "batch_size={}"
    most = min(fits_by_estimate(layout, like, memory[0], training), rows - 1) if memory else rows - 1
    fits = _power_of_two(most) if most > 0 else 0
    if memory is not None:
        free, total = memory
        text += f"{':' if requested is None else ','} {free:,} bytes of {total:,} are free without it"
    elif attempt is None:
        return OutOfMemoryError(f"{text}. Nothing was changed by it; try {smaller.format(max(fits, 1))}")
    else:
        if training and not whole:  # more rows than a block has are cut into blocks anyway
            start, stop = backend.blocks(rows, 6.0 * layout.size)[0]
            fits = min(fits, _power_of_two(max(stop - start - 1, 1)))
        fits = rows_that_fit(attempt, fits)
    hint = f"{smaller.format(fits)} would fit" if fits else "even one row does not fit"
    return OutOfMemoryError(f"{text}. Nothing was changed by it; {hint}")


def fits_by_estimate(layout: Layout, like: Array, free: int, training: bool) -> int:
    """About how many rows fit into so many free bytes."""
    itemsize = int(like.dtype.itemsize)
    if training:
        # some gradients of blocks too, and what copies of the trainer take
        return (int(USABLE * free) - 4 * layout.size * itemsize) // bytes_per_row(layout, itemsize)
    widest = _values(layout.network, layout.in_shape)[1]  # what enters and leaves a layer, and what it may make
    return int(USABLE * free) // (itemsize * (4 * widest + math.prod(layout.out_shape)))


def _power_of_two(most: int) -> int:
    """The largest of at most `most`."""
    return 1 << most.bit_length() - 1
