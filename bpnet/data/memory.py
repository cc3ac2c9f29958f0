"""How much memory a batch takes on a device, and what to say where it is too much."""

import math

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


def out_of_memory(
    error: Exception, backend: Backend, layout: Layout, like: Array, rows: int, training: bool = True
) -> OutOfMemoryError:
    """The error to raise where a batch of `rows` failed for want of memory, in a step of training or a forward pass.

    What the pass had made must be free again: what fits is judged by the memory that is there now.
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
    if memory is None:
        return OutOfMemoryError(f"{text}. Nothing was changed by it; try {smaller.format(_power_of_two(rows - 1))}")
    free, total = memory
    text += f"{':' if requested is None else ','} {free:,} bytes of {total:,} are free without it. "
    itemsize = int(like.dtype.itemsize)
    if training:
        # some gradients of blocks too, and what copies of the trainer take
        fits = (int(USABLE * free) - 4 * layout.size * itemsize) // bytes_per_row(layout, itemsize)
    else:  # what enters and leaves a layer, and what it may make in between
        widest = _values(layout.network, layout.in_shape)[1]
        fits = int(USABLE * free) // (itemsize * (4 * widest + math.prod(layout.out_shape)))
    fits = _power_of_two(min(fits, rows - 1)) if min(fits, rows - 1) > 0 else 0
    hint = f"{smaller.format(fits)} would fit" if fits else "even one row does not fit"
    return OutOfMemoryError(f"{text}Nothing was changed by it; {hint}")


def _power_of_two(most: int) -> int:
    """The largest of at most `most`, and 1 at least."""
    return 1 << max(most, 1).bit_length() - 1
