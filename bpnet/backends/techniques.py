"""What a check of the techniques that a library has in the place of definitions finds."""

import math
from dataclasses import dataclass
from typing import Any

STEPS = "training steps"
"""The part that whole steps are, of what computes them."""


@dataclass(frozen=True)
class Finding:
    """A technique, or a part of it, tried on one problem, against what its definition gives.

    `error` is the largest difference relative to the largest value, which may be `tolerance`; `refused` says why there
    was nothing to compare.  `instead` is what is used where it can't be.
    """

    name: str
    part: str
    problem: str
    error: float
    tolerance: float
    instead: str = ""
    refused: str = ""
    microseconds: float | None = None

    @property
    def ok(self) -> bool:
        return not self.refused and self.error <= self.tolerance

    @property
    def wrong(self) -> bool:
        return not self.refused and not self.ok

    @property
    def whole_steps(self) -> bool:
        """Whether it is of training steps, in which several techniques take part."""
        return self.part == STEPS

    @property
    def why(self) -> str:
        """What is the matter, in words."""
        if self.refused:
            return f"refused ({self.where}: {self.refused})"
        return f"wrong by {self.error:.1g} of the largest value ({self.where})"

    @property
    def where(self) -> str:
        """Part and problem."""
        return ", ".join(filter(None, (self.part, self.problem)))


def brief(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two NumPy arrays, relative to the largest value that is expected; infinite for NaN."""
    import numpy

    found, expected = numpy.asarray(found, "float64"), numpy.asarray(expected, "float64")
    if found.shape != expected.shape:
        return math.inf
    largest = max(float(numpy.max(numpy.abs(expected), initial=0.0)), 1e-30)
    error = float(numpy.max(numpy.abs(found - expected), initial=0.0)) / largest
    return error if math.isfinite(error) else math.inf
