"""Masks of dropout drawn by NumPy, chunk by chunk, for libraries whose arrays NumPy can write to."""

import functools
from typing import Any

import numpy

from bpnet.backends.base import Rows
from bpnet.compiler.random import GOLDEN, TRIPLE32, threshold

CHUNK = 2**16
"""Elements at a time: all that is computed of them stays in cache."""


def mask_chunks(size: int) -> list[Rows]:
    """The chunks of so many elements."""
    return [(i, min(i + CHUNK, size)) for i in range(0, size, CHUNK)]


def draw_mask(mask: Any, chunk: Rows, start: int, keep: float) -> None:
    """A chunk of `Backend.keep_mask`, a vector; `start` is what is hashed for the first of its entries."""
    limit = threshold(keep)
    begin = numpy.uint32((chunk[0] * GOLDEN + start) & 0xFFFFFFFF)
    bits = _multiples()[: chunk[1] - chunk[0]] + begin
    shifted = numpy.empty_like(bits)
    for shift, factor in TRIPLE32:
        bits ^= numpy.right_shift(bits, shift, out=shifted)
        bits *= numpy.uint32(factor)
    bits ^= numpy.right_shift(bits, 14, out=shifted)
    numpy.multiply(bits < limit, numpy.asarray(2**32 / limit, mask.dtype), out=mask[slice(*chunk)])


@functools.cache
def _multiples() -> Any:
    return numpy.arange(CHUNK, dtype=numpy.uint32) * numpy.uint32(GOLDEN)
