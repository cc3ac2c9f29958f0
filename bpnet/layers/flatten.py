"""Flatten: rows of any shape become rows of features."""

import math
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Derivatives, Layer, Params, Run, Shape


@dataclass(frozen=True)
class Flatten(Layer):
    """y is x with all axes but the first joined into one; dL/dx is dL/dy in the shape of x."""

    def out_shape(self, in_shape: Shape) -> Shape:
        return (math.prod(in_shape),)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return run.xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))), x.shape

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        return (run.xp.reshape(dy, cache) if need_dx else None), {}
