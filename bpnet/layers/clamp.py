"""Predictions kept within a range."""

from collections.abc import Sequence
from dataclasses import dataclass

from bpnet.layer import Layer


@dataclass(frozen=True, repr=False)
class Clamp(Layer):
    """y = min(max(x, low), high), entry by entry, while predicting; y = x while training."""

    low: float | Sequence[float]
    high: float | Sequence[float]

    example = (-1.0, 1.0)
