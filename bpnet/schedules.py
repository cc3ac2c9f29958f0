"""Learning-rate schedules: the rate as a function of the step, counted from 0."""

import math
from dataclasses import dataclass
from typing import Any

from bpnet.options import not_negative, whole
from bpnet.registry import Registered, instance


class Schedule(Registered, kind="schedule"):
    """Base of the schedules."""

    needs = ("__call__",)

    def __call__(self, step: int) -> float:
        """The learning rate of the step, the first being 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """Always `lr`."""

    lr: float

    example = (0.1,)

    def __post_init__(self) -> None:
        self._check(lr=not_negative)

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Cosine(Schedule):
    """From `lr` to `final` in `steps` steps along half a cosine, then `final` (Loshchilov and Hutter 2017).

    lr(s) = final + (lr - final) (1 + cos(pi s / steps)) / 2
    """

    lr: float
    steps: int
    final: float = 0.0

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, final=not_negative, steps=whole)

    def __call__(self, step: int) -> float:
        done = min(step / self.steps, 1.0)
        return self.final + (self.lr - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Grows evenly to the rate of `lr` (a number or a schedule) in `steps` steps, then follows it (Goyal et al. 2017).

    lr(s) = (s + 1) / steps lr(0) for s < steps, then lr(s - steps)
    """

    lr: float | Schedule
    steps: int

    example = (0.1, 10)

    def __post_init__(self) -> None:
        self._check(lr=rate, steps=whole)

    def __call__(self, step: int) -> float:
        return at(self.lr, 0) * ((step + 1) / self.steps) if step < self.steps else at(self.lr, step - self.steps)


def rate(what: str, value: Any) -> float | Schedule:
    """A learning rate: a number of at least 0, or a schedule; raises OptionError or ArgumentError."""
    if isinstance(value, type) or callable(value):
        return instance(Schedule, what, value, "a number, or a bpnet schedule such as Cosine(1e-3, steps=1000)")
    return not_negative(what, value)


def at(lr: float | Schedule, step: int) -> float:
    """The learning rate of a step, `lr` being a number or a schedule."""
    return lr(step) if isinstance(lr, Schedule) else lr
