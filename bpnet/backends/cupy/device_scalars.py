"""What enters and leaves a captured step besides arrays: device scalars by a ring buffer, and losses."""

import struct
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import cupy
import cupyx
import numpy

from bpnet.backends.base import Array

RING = 64
"""How many launches the host may be ahead of the device before it waits."""
PAGE = 4096
"""Losses in one piece of memory."""


class DeviceScalars:
    """Numbers in device memory that the host writes by one small copy, from the next part of a pinned ring buffer."""

    retired: ClassVar[list[tuple[Any, Any]]] = []
    """Devices and ring buffers of those that are gone, from which copies may still be under way."""

    def __init__(self, letters: str) -> None:
        """A letter for each number: d for a float64, q for a whole one."""
        for device in {device.id: device for device, _ in self.retired}.values():
            device.synchronize()
        self.retired.clear()
        self.size = 8 * len(letters)
        self.pack = struct.Struct(f"={letters}").pack_into
        self.pinned = cupyx.empty_pinned(RING * len(letters), numpy.int64)
        self.start = self.pinned.ctypes.data
        self.memory = cupy.empty(len(letters), numpy.int64)
        self.copied = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]  # all of each half
        self.next = 0
        weakref.finalize(self, self.retired.append, (cupy.cuda.Device(), self.pinned)).atexit = False

    def write(self, values: Sequence[float]) -> None:
        """Have the device hold `values` for what is launched next.

        Raises struct.error, and writes nothing, where they are not of the kinds that the letters say.
        """
        part = self.next
        half, number = divmod(part, RING // 2)
        if number == 0:
            self.copied[half].synchronize()  # at once, unless the host is a whole ring ahead
        self.pack(self.pinned, part * self.size, *values)
        self.memory.data.copy_from_host_async(self.start + part * self.size, self.size)
        if number == RING // 2 - 1:
            self.copied[half].record()
        self.next = (part + 1) % RING


class Losses:
    """0-d arrays for results: each is handed out once, so that none is overwritten while somebody may read it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.used = dtype, PAGE

    def next(self) -> Array:
        """A 0-d array that nobody else has."""
        if self.used == PAGE:
            self.page, self.used = cupy.empty(PAGE, self.dtype), 0
        self.used += 1
        return self.page[self.used - 1]


def fetch(scalars: Sequence[Array]) -> list[float]:
    """The values of 0-d arrays; losses of one page come by one copy."""
    pages = {id(s.base): s.base for s in scalars if _in_page(s)}
    copies = {key: cupy.asnumpy(page) for key, page in pages.items()}
    others = [s for s in scalars if not _in_page(s)]
    rest = iter(cupy.asnumpy(cupy.stack(others)) if others else ())

    def value(s: Array) -> Any:
        return copies[id(s.base)][(s.data.ptr - s.base.data.ptr) // s.dtype.itemsize] if _in_page(s) else next(rest)

    return [float(value(s)) for s in scalars]


def _in_page(scalar: Array) -> bool:
    base = scalar.base
    return base is not None and base.shape == (PAGE,) and base.dtype == scalar.dtype
