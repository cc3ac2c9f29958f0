"""A penalty on what comes out of a layer."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Derivatives, Layer, Params, Run
from bpnet.options import not_negative
from bpnet.schedules import Schedule, or_schedule


@dataclass(frozen=True)
class ActivityPenalty(Layer):
    """y = x, and l1 sum |x| + l2 / 2 sum x**2 of a row is added to its loss in training.

    So dL/dx = dL/dy + (l1 sign(x) + l2 x) weight / total, the row's weight over the batch's: a mean over rows of sums,
    as Keras's activity regularizers are.  Neither predictions nor `evaluate` know of it.  Both may be schedules.
    """

    l1: float | Schedule = 0.0
    l2: float | Schedule = 0.0

    schedulable = {"l1": not_negative, "l2": not_negative}

    def __post_init__(self) -> None:
        self._check(l1=or_schedule(not_negative), l2=or_schedule(not_negative))

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if run.terms is not None:
            value = run.value(self.l1) * run.xp.abs(x) + 0.5 * run.value(self.l2) * x * x
            run.terms.append(run.xp.sum(run.shared(value)))
        return x, x

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        if not need_dx or run.terms is None:
            return (dy if need_dx else None), {}
        return dy + run.shared(run.value(self.l1) * run.xp.sign(cache) + run.value(self.l2) * cache), {}
