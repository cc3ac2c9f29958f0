"""Dropout: each value is dropped with some probability while training."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Derivatives, Layer, Params, Run
from bpnet.options import fraction


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x m while training, y = x otherwise; m is 0 with probability `rate`, else 1 / (1 - rate).

    The derivative is dL/dx = dL/dy m.  Srivastava et al. (2014); scaled while training, prediction needs nothing.
    """

    rate: float = 0.5

    stochastic = True

    def __post_init__(self) -> None:
        self._check(rate=fraction)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if not run.training or self.rate == 0.0:
            return x, None
        mask = run.keep_mask(x.shape, 1.0 - self.rate, like=x)
        return x * mask, mask

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        if not need_dx:
            return None, {}
        return dy if cache is None else dy * cache, {}
