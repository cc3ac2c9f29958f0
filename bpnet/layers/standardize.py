"""Standardization by values that are known beforehand: what brings data to the scale of the weights, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ArgumentError, OptionError, ShapeError, kind_of
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.options import flag, number

Values = float | tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Standardize(Layer):
    r"""y = (x - mean) / scale, per feature of the last axis; with `invert`, y = x scale + mean.

    The derivative is dL/dx = dL/dy / scale; with `invert`, dL/dx = dL/dy scale.

    `mean` and `scale` are one number each, or one for every feature.  They are kept but not trained: given the means
    and deviations of the data, the first layer of a network takes data in their own unit, and an inverted last layer
    answers in the unit of the target.  The mean is subtracted first, so that a large one costs no digits that x has.
    """

    mean: float | Sequence[float] = 0.0
    scale: float | Sequence[float] = 1.0
    invert: bool = False

    trainable = False

    def __post_init__(self) -> None:
        mean, scale = _numbers("mean", self.mean, -math.inf), _numbers("scale", self.scale, 0.0)
        if isinstance(mean, tuple) and isinstance(scale, tuple) and len(mean) != len(scale):
            raise OptionError(f"mean has {len(mean)} values and scale {len(scale)}; expected one of each per feature")
        self._set(mean=mean, scale=scale, invert=flag("invert", self.invert))

    def __repr__(self) -> str:
        return f"Standardize(mean={shown_values(self.mean)}, scale={shown_values(self.scale)}, invert={self.invert})"

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError("Standardize needs rows of features, but x has one axis: make it (rows, features)")
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            if isinstance(values, tuple) and len(values) != in_shape[-1]:
                raise ShapeError(f"Standardize has a {name} for {len(values)} features, but rows have {in_shape[-1]}")
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        values = {"mean": self.mean, "scale": self.scale}
        return {name: Leaf(rng.given(in_shape[-1:], v), trainable=False) for name, v in values.items()}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return x * p["scale"] + p["mean"] if self.invert else (x - p["mean"]) / p["scale"], None

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        if not need_dx:
            return None, {}
        return dy * p["scale"] if self.invert else dy / p["scale"], {}


def _numbers(what: str, values: Any, above: float) -> Values:
    """One finite number above a limit, or a tuple of such."""
    if isinstance(values, str | bytes):
        raise ArgumentError(f"{what} is {kind_of(values)}; expected a number, or one for every feature")
    try:
        several = list(values)
    except TypeError:  # a number is not iterable, nor is an array without axes
        return number(what, values, above, math.inf, closed="neither")
    if not several:
        raise OptionError(f"{what} is empty; expected a number, or one for every feature")
    return tuple([number(f"{what}[{i}]", value, above, math.inf, closed="neither") for i, value in enumerate(several)])


def shown_values(values: Any) -> str:
    """Values in a few words, since there may be one for each of 100,000 columns."""
    if not isinstance(values, tuple):
        return f"{values:g}"
    shown = [f"{value:g}" for value in values[:3]]
    rest = f", ... {len(values)} values" if len(values) > 3 else "," * (len(values) == 1)
    return f"({', '.join(shown)}{rest})"
