"""Learning-rate schedules: the rate as a function of the step, counted from 0."""

import math
from dataclasses import dataclass

from bpnet.errors import OptionError
from bpnet.layer import check_range
from bpnet.registry import Registered


class Schedule(Registered, kind="schedule"):
    """Base of the schedules."""

    def __call__(self, step: int) -> float:
        """The learning rate of the step, the first being 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """Always `lr`."""

    lr: float

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0.0, math.inf, closed="left")

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

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0.0, math.inf, closed="left")
        check_range("final", self.final, 0.0, math.inf, closed="left")
        _check_steps(self.steps)

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

    def __post_init__(self) -> None:
        as_schedule(self.lr)
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        after = as_schedule(self.lr)
        return after(0) * (step + 1) / self.steps if step < self.steps else after(step - self.steps)


def as_schedule(lr: float | Schedule) -> Schedule:
    """`lr` as a schedule, a number as a constant one."""
    return lr if isinstance(lr, Schedule) else Constant(lr)


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"steps is {steps!r}; expected a whole number of at least 1")
