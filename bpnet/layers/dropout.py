"""Dropout: each value is dropped with some probability while training."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Layer, Params, Run, kernel
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
        return drop(run, x, 1.0 - self.rate, None)

    def backward(
        self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Array | None, dict[str, Any]]:
        if not need_dx:
            return None, {}
        return dy if cache is None else drop(run, dy, 1.0 - self.rate, cache)[0], {}


@kernel
def drop(run: Run, x: Array, keep: float, saved: Any) -> tuple[Array, Any]:
    """x m, and what is `saved` to have m again; where that is None, m is drawn by the run's key.

    Here it is m itself.  A replacement that draws m anew each time, with the same bits, saves the key alone.
    """
    mask = run.keep_mask(x.shape, keep, like=x) if saved is None else saved
    return x * mask, mask
