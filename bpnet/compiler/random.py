"""Random numbers as values: a key gives the same ones whenever it is asked, whatever computes them."""

from typing import Any

TRIPLE32 = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
"""Shifts and factors of a 32-bit integer hash of very low bias: C. Wellons, hash-prospector (2018)."""

GOLDEN = 0x9E3779B9
"""2**32 over the golden ratio, which parts neighbouring numbers before they are hashed."""


def threshold(keep: float) -> int:
    """Below which of 2**32 values, all as likely, a random number lies with probability `keep`, as near as can be.

    1 at least and 2**32 - 1 at most, so that some are kept and some are not.
    """
    return min(max(round(keep * 2**32), 1), 2**32 - 1)


def fold(key: tuple[Any, ...]) -> int:
    """One 32-bit number out of a key's parts, each mixed in by the triple32 hash."""
    state = 0
    for part in key:
        state = _mix((state ^ part & 0xFFFFFFFF) + GOLDEN)
    return state


def start_of(key: tuple[Any, ...], before: int) -> int:
    """What is hashed for the first entry of an array of random numbers, where so many of its stream come `before` it.

    For those that follow it is GOLDEN more each.
    """
    return (fold(key) + before * GOLDEN) & 0xFFFFFFFF


def _mix(x: int) -> int:
    x &= 0xFFFFFFFF
    for shift, factor in TRIPLE32:
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 14)
