"""Predictions kept within a range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.options import number_or_numbers


@dataclass(frozen=True)
class Clamp(Layer):
    r"""y = min(max(x, low), high) of each feature while predicting, y = x while training.

    dL/dx = dL/dy, but 0 where x is beyond the range while predicting.  `low` and `high` are a number each, or one for
    every feature of the last axis: as a network's last layer, the least and the largest target seen keep predictions of
    strange rows from being absurd (RealMLP: Holzmueller et al. 2024).
    """

    low: float | Sequence[float]
    high: float | Sequence[float]

    example = (-0.5, 0.5)
    trainable = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            self._set(**{name: number_or_numbers(name, getattr(self, name), -math.inf, math.inf, closed="neither")})
        low, high = (v if isinstance(v, tuple) else (v,) for v in (self.low, self.high))
        if len(low) != len(high) and 1 not in (len(low), len(high)):
            raise OptionError(f"low has {len(low)} values and high {len(high)}; expected one of each per feature")
        most = max(len(low), len(high))
        if any(a > b for a, b in zip(low * (most // len(low)), high * (most // len(high)), strict=True)):
            raise OptionError(f"low is {self.low} and high {self.high}; expected low to be no larger")

    def out_shape(self, in_shape: Shape) -> Shape:
        for name, values in (("low", self.low), ("high", self.high)):
            if isinstance(values, tuple) and len(values) != in_shape[-1]:
                raise ShapeError(f"Clamp has a {name} for {len(values)} features, but rows have {in_shape[-1]}")
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        values = {"low": self.low, "high": self.high}
        return {name: Leaf(rng.given(in_shape[-1:], v), trainable=False) for name, v in values.items()}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if run.training:
            return x, None
        return run.xp.minimum(run.xp.maximum(x, p["low"]), p["high"]), x

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        if cache is None or not need_dx:
            return (dy if need_dx else None), {}
        return run.xp.where((cache >= p["low"]) & (cache <= p["high"]), dy, 0.0), {}
