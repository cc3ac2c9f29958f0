"""Axes: where a value lies on one, and which round numbers stand at it; in any picture, of text too."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bpnet.backends import Array

WIDE = 8.0
"""An axis of positive numbers is logarithmic from this ratio of the largest to the smallest on."""
FAR = 50.0
"""One of numbers of both signs is from this ratio on: the largest size to the median."""


@dataclass(frozen=True)
class Scale:
    """An axis: "linear", "log", or "symlog", which is linear within -unit ... unit and logarithmic beyond."""

    kind: Literal["linear", "log", "symlog"] = "linear"
    unit: float = 1.0

    def place(self, values: Array) -> Array:
        """Where values lie on the axis; NaN where one is not finite, or can't be on it."""
        values = np.asarray(values, np.float64)
        found = np.where(np.isfinite(values), values, np.nan)
        if self.kind == "log":
            return np.log10(found, out=np.full(found.shape, np.nan), where=found > 0)
        if self.kind == "symlog":
            size = np.abs(found) / self.unit
            beyond = 1.0 + np.log10(np.maximum(size, 1.0))
            return np.sign(found) * np.where(size <= 1.0, size, beyond)
        return found

    def ticks(self, low: float, high: float, count: int = 5) -> list[float]:
        """Some round numbers from `low` to `high`."""
        if self.kind == "log":
            return log_ticks(low, high, count)
        if self.kind == "symlog":
            return symlog_ticks(low, high, self.unit, count)
        return ticks(low, high, count)


def scale_for(values: Iterable[float], logarithmic: bool = True) -> Scale:
    """The scale on which most is seen: logarithmic where values differ by orders of magnitude, if it may be.

    Of values that are not all positive a logarithmic axis has none: where a few are far from the others, as the first
    losses of a log-likelihood, the axis is linear around zero.
    """
    found = np.asarray([v for v in values if math.isfinite(v)], np.float64)
    if not len(found):
        return Scale()
    low, high = float(found.min()), float(found.max())
    if low > 0:
        return Scale("log") if logarithmic and high > WIDE * low else Scale()
    typical = float(np.median(np.abs(found)))
    if typical > 0 and max(high, -low) > FAR * typical:
        return Scale("symlog", 10.0 ** math.ceil(math.log10(typical)))
    return Scale()


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Some round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of 10."""
    rough = high / count - low / count
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999), 0.0)
    if not step > abs(high) * 1e-14:  # the numbers would be the same
        return [low]
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Powers of 10 from `low` to `high`; where there are few, also twice and five times as much."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = sum(low <= 10.0**p <= high for p in powers) <= 2
    every = 1 if few else max(1, math.ceil(len(powers) / count))
    marks = [10.0**p * k for p in powers if p % every == 0 for k in ((1, 2, 5) if few else (1,))]
    return [mark for mark in marks if low <= mark <= high]


def symlog_ticks(low: float, high: float, unit: float, count: int = 5) -> list[float]:
    """0, and powers of 10 times the unit on both sides of it."""
    most = max(abs(low), abs(high), unit)
    powers = range(math.ceil(math.log10(most / unit) - 1e-9) + 1)
    every = max(1, math.ceil(len(powers) * ((low < 0) + (high > 0)) / count))
    marks = [unit * 10.0**p for p in powers if p % every == 0]
    return [mark for mark in (*(-m for m in reversed(marks)), 0.0, *marks) if low <= mark <= high]


def tick(value: float, percent: bool = False) -> str:
    """A number at an axis."""
    if percent:
        return f"{value:.0%}"
    value = float(f"{value:.6g}")
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:g}"


def spread(low: float, high: float, share: float = 0.0) -> tuple[float, float]:
    """Ends of an axis that are not the same, with a `share` of its length added at each."""
    if high > low:
        room = share * (high - low)
        return low - room, high + room
    half = abs(low) / 2 or 0.5
    return low - half, high + half
