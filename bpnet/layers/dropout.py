"""Noise while training: values are dropped with some probability, or moved."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Derivatives, Layer, Params, Run
from bpnet.options import fraction, not_negative
from bpnet.schedules import Schedule, or_schedule


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x m while training, y = x otherwise; m is 0 with probability `rate`, else 1 / (1 - rate).

    The derivative is dL/dx = dL/dy m (Srivastava et al. 2014).  Scaled while training, prediction needs nothing.  The
    rate may be a schedule, such as Epochs(FlatCosine(0.3, 50)).
    """

    rate: float | Schedule = 0.5

    stochastic = True
    schedulable = {"rate": fraction}

    def __post_init__(self) -> None:
        self._check(rate=or_schedule(fraction))

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if not run.training or self.rate == 0.0:
            return x, None
        mask = keep_mask(run, self.rate, x)
        return x * mask, mask

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        if not need_dx:
            return None, {}
        return dy if cache is None else dy * cache, {}


def keep_mask(run: Run, rate: float | Schedule, x: Array) -> Array:
    """0 with probability `rate`, else 1 / (1 - rate), for each entry of x."""
    keep = 1.0 - run.value(rate)
    if isinstance(rate, Schedule):  # so that a step is compiled once, whatever the rate
        return run.xp.astype(run.uniform(x.shape, like=x) < keep, x.dtype) * (1.0 / keep)
    return run.keep_mask(x.shape, keep, like=x)


@dataclass(frozen=True)
class AlphaDropout(Dropout):
    r"""y = a (x kept + s (1 - kept)) + b while training, y = x otherwise (Klambauer et al. 2017).

    kept is 0 with probability r, the `rate`, else 1.  What is dropped becomes s = -1.0507 1.6733, to which SELU goes
    far below 0; a = 1 / sqrt((1 - r) (1 + r s**2)) and b = -a r s then leave the mean 0 and the variance 1 that
    activations by SELU have.  The derivative is dL/dx = dL/dy a kept.  The rate may be a schedule.
    """

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if not run.training or self.rate == 0.0:
            return x, None
        rate = run.value(self.rate)
        a = ((1.0 - rate) * (1.0 + rate * (LOWEST * LOWEST))) ** -0.5
        kept = keep_mask(run, self.rate, x) * (1.0 - rate)
        return a * (x * kept + LOWEST * (1.0 - kept)) - a * rate * LOWEST, a * kept


LOWEST = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717
"""What SELU goes to far below 0."""


@dataclass(frozen=True)
class GaussianNoise(Layer):
    """y = x + d n while training, y = x otherwise, with d the `deviation` and n drawn from the normal distribution.

    The derivative is dL/dx = dL/dy.  A penalty on the size of dy/dx is what it comes to (Bishop 1995).  The deviation
    may be a schedule.
    """

    deviation: float | Schedule = 0.1

    stochastic = True
    schedulable = {"deviation": not_negative}

    def __post_init__(self) -> None:
        self._check(deviation=or_schedule(not_negative))

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if not run.training or self.deviation == 0.0:
            return x, None
        return x + run.value(self.deviation) * run.normal(x.shape, like=x), None

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        return (dy if need_dx else None), {}
