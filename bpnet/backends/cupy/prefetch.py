"""Batches from the host to the device through pinned memory, while the device computes with the batch before."""

from collections.abc import Callable, Sequence
from typing import Any

import cupy
import cupyx

from bpnet.backends.base import Array, Prefetcher, Specs


class StagingBuffer:
    """Memory for a batch on the host and on the device, and when each may be written to again."""

    def __init__(self, specs: Specs, rows: int) -> None:
        self.pinned = [cupyx.empty_pinned((rows, *shape), dtype) for shape, dtype in specs]
        self.arrays = [cupy.empty((rows, *shape), dtype) for shape, dtype in specs]
        self.copied, self.used = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        self.used.record()  # the memory of the new arrays may be in use by what was launched before


class PinnedPrefetcher(Prefetcher):
    """Two staging buffers by turns, and a stream for copies alone.

    The host fills pinned memory once it has been copied, the copy begins once the device is done with the batch before
    the last, and the device computes once the copy is done; nobody waits for more than that.
    """

    def __init__(self, specs: Specs, rows: int, batches: int) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.buffers = [StagingBuffer(specs, rows) for _ in range(min(batches, 2))]
        self.sent = 0
        self.close = self.stream.synchronize  # type: ignore[method-assign] # itself, since an interrupt may come before the first line of a method

    def send(self, rows: int, write: Callable[[Sequence[Any]], None]) -> tuple[Array, ...]:
        if self.sent:
            self.buffers[1 - self.sent % 2].used.record()  # all work with the last batch has been launched
        buffer = self.buffers[self.sent % 2]
        self.sent += 1
        buffer.copied.synchronize()
        write([pinned[:rows] for pinned in buffer.pinned])
        self.stream.wait_event(buffer.used)
        arrays = tuple(array[:rows] for array in buffer.arrays)
        for array, pinned in zip(arrays, buffer.pinned, strict=True):
            array.data.copy_from_host_async(pinned.ctypes.data, array.nbytes, self.stream)
        buffer.copied.record(self.stream)
        cupy.cuda.get_current_stream().wait_event(buffer.copied)
        return arrays
