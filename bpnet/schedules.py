"""Schedules: a learning rate, or another option, as a function of the step, counted from 0.

Those below are of `steps` steps, or where they are put into `Epochs`, of so many epochs.  Each is written for a
learning rate, `lr`; it may as well be a weight decay, `momentum` or `beta1`, `SGD(0.1, momentum=WarmUp(0.95, 500))`,
the strength of a layer's noise, `Dropout(Epochs(FlatCosine(0.3, 50)))`, or of a penalty.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

from bpnet.errors import OptionError
from bpnet.options import finite, fraction, not_negative, positive, whole
from bpnet.registry import Registered, flattened, instance, parts_of

T = TypeVar("T")


class Schedule(Registered, kind="schedule"):
    """Base of the schedules."""

    needs = ("__call__",)

    def __call__(self, step: float) -> float:
        """The learning rate of the step, the first being 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """Always `lr`."""

    lr: float

    example = (0.1,)

    def __post_init__(self) -> None:
        self._check(lr=not_negative)

    def __call__(self, step: float) -> float:
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

    def __call__(self, step: float) -> float:
        return _along_cosine(self.lr, self.final, step / self.steps)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """`Cosine` again and again, each time `growth` times as long (Loshchilov and Hutter 2017, SGDR)."""

    lr: float
    steps: int
    growth: int = 1
    final: float = 0.0

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, final=not_negative, steps=whole, growth=whole)

    def __call__(self, step: float) -> float:
        steps = self.steps
        if self.growth == 1:
            return _along_cosine(self.lr, self.final, step % steps / steps)
        while step >= steps:
            step, steps = step - steps, steps * self.growth
        return _along_cosine(self.lr, self.final, step / steps)


@dataclass(frozen=True)
class FlatCosine(Schedule):
    """`lr` for a share `flat` of `steps` steps, then along half a cosine to `final` (as in Holzmueller et al. 2024)."""

    lr: float
    steps: int
    flat: float = 0.5
    final: float = 0.0

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, final=not_negative, steps=whole, flat=fraction)

    def __call__(self, step: float) -> float:
        done = step / self.steps
        return _along_cosine(self.lr, self.final, max(0.0, (done - self.flat) / (1.0 - self.flat)))


MOST_CYCLES = 50
"""Of which the first is a step long where there are 10^15 of them."""


@dataclass(frozen=True)
class CosLog(Schedule):
    """From 0 to `lr` and back `cycles` times, each cycle twice as long as the one before, then 0.

    lr(s) = lr (1 - cos(2 pi log2(1 + (2**cycles - 1) s / steps))) / 2

    With 4 cycles it is coslog4, the schedule of RealMLP (Holzmueller, Grinsztajn and Steinwart 2024).
    """

    lr: float
    steps: int
    cycles: int = 4

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, steps=whole, cycles=partial(whole, most=MOST_CYCLES))

    def __call__(self, step: float) -> float:
        done = min(step / self.steps, 1.0)
        return self.lr * 0.5 * (1.0 - math.cos(2.0 * math.pi * math.log2(1.0 + (2**self.cycles - 1) * done)))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From `start` up to `lr` in a share `warm_up` of `steps` steps, then down to `final`, along cosines (Smith 2018).

    `start` is lr / 25, and `final` start / 10,000, where they are None.  For a momentum that falls meanwhile and comes
    back: OneCycle(0.85, steps, start=0.95, final=0.95).
    """

    lr: float
    steps: int
    warm_up: float = 0.3
    start: float | None = None
    final: float | None = None

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, steps=whole, warm_up=fraction)
        self._check(**{name: not_negative for name in ("start", "final") if getattr(self, name) is not None})

    def __call__(self, step: float) -> float:
        start = self.lr / 25.0 if self.start is None else self.start
        final = start / 1e4 if self.final is None else self.final
        top, last = self.warm_up * self.steps - 1.0, self.steps - 1.0  # at the last step it is `final`
        if step < top:
            return _along_cosine(start, self.lr, step / top)
        return _along_cosine(self.lr, final, (step - top) / (last - top) if last > top else 1.0)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """`lr` times `factor` after every `steps` steps, or where `steps` is a tuple, at each of these.

    lr(s) = lr factor**(how many such steps are at most s)
    """

    lr: float
    steps: Any
    factor: float = 0.1

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, factor=positive)
        if not isinstance(self.steps, tuple | list):
            self._check(steps=whole)
            return
        steps = tuple(whole("steps", step, 1) for step in self.steps)
        if list(steps) != sorted(set(steps)):
            raise OptionError(f"steps is {steps}; expected each to be larger than the one before")
        self._set(steps=steps)

    def __call__(self, step: float) -> float:
        times = bisect_right(self.steps, step) if isinstance(self.steps, tuple) else step // self.steps
        value: float = self.lr * self.factor**times
        return value


@dataclass(frozen=True)
class Exponential(Schedule):
    """From `lr` on, `factor` times as large every `steps` steps, evenly, and never below `final`.

    lr(s) = max(final, lr factor**(s / steps))
    """

    lr: float
    factor: float
    steps: int = 1
    final: float = 0.0

    example = (0.1, 0.5)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, factor=positive, steps=whole, final=not_negative)

    def __call__(self, step: float) -> float:
        try:
            value: float = self.lr * self.factor ** (step / self.steps)
        except OverflowError:
            value = math.inf if self.lr else 0.0
        return max(self.final, value)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """From `lr` to `final` in `steps` steps, then `final`; evenly where `power` is 1.

    lr(s) = final + (lr - final) (1 - s / steps)**power
    """

    lr: float
    steps: int
    power: float = 1.0
    final: float = 0.0

    example = (0.1, 100)

    def __post_init__(self) -> None:
        self._check(lr=not_negative, steps=whole, power=positive, final=not_negative)

    def __call__(self, step: float) -> float:
        left: float = (1.0 - min(step / self.steps, 1.0)) ** self.power
        return self.final + (self.lr - self.final) * left


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

    def __call__(self, step: float) -> float:
        return (
            at(self.lr, 0) * min((step + 1) / self.steps, 1.0) if step < self.steps else at(self.lr, step - self.steps)
        )


@dataclass(frozen=True)
class Epochs(Schedule):
    """A schedule whose steps are epochs: Epochs(Cosine(1e-3, 20)) ends after 20.

    In the middle of the third epoch it is asked for step 2.5.  `length` is the number of a trainer's steps in an epoch;
    where it is None, it is that of the `fit` at work, or of the last one.
    """

    lr: Schedule
    length: int | None = None

    example = (Cosine(0.1, 3),)

    def __post_init__(self) -> None:
        self._set(lr=instance(Schedule, "lr", self.lr, "a bpnet schedule such as Cosine(1e-3, 20)"))
        if self.length is not None:
            self._check(length=whole)

    def __call__(self, step: float) -> float:
        if self.length is None:
            raise OptionError(
                f"{self} counts epochs, and how long they are only fit knows: call fit, or give it length="
            )
        return self.lr(step / self.length)


def in_epochs(value: T, length: int) -> T:
    """An optimizer with that length in every `Epochs` that has none; itself where there is no such."""
    if isinstance(value, Epochs) and value.length is None:
        return replace(value, length=length)
    if isinstance(value, tuple):
        parts = tuple(in_epochs(part, length) for part in value)
        return value if all(a is b for a, b in zip(value, parts, strict=True)) else parts  # type: ignore[return-value]
    if not isinstance(value, Registered):
        return value
    options = {f.name: getattr(value, f.name) for f in fields(value) if f.init}  # type: ignore[arg-type]
    made = {name: in_epochs(option, length) for name, option in options.items()}
    changed = {name: option for name, option in made.items() if option is not options[name]}
    return replace(value, **changed) if changed else value  # type: ignore[type-var]


def or_schedule(check: Callable[[str, Any], float]) -> Callable[[str, Any], float | Schedule]:
    """The check of an option that may be a schedule, else a number that `check` takes.

    Raises OptionError or ArgumentError.
    """

    def checked(what: str, value: Any) -> float | Schedule:
        if isinstance(value, type) or callable(value):
            made = instance(Schedule, what, value, "a number, or a bpnet schedule such as Cosine(1e-3, steps=1000)")
            if isinstance(made, Constant):  # what others give is known when they are asked
                check(what, made.lr)
            return made
        return check(what, value)

    return checked


def schedules_of(value: Any) -> dict[Schedule, Callable[[float], float]]:
    """The schedules in the options of `value` and of all in it, layers and penalties, each with the check of what it
    gives for a step, which raises OptionError: see `Layer.schedulable`."""
    found: dict[Schedule, list[tuple[str, Callable[[str, Any], float]]]] = {}
    for part in parts_of(value, Registered):
        checks = getattr(part, "schedulable", {})
        for option in () if isinstance(part, Schedule) else fields(part):  # type: ignore[arg-type]
            for schedule in flattened(getattr(part, option.name)):
                if isinstance(schedule, Schedule):
                    found.setdefault(schedule, []).append((option.name, checks.get(option.name, finite)))
    return {schedule: partial(_check_all, checks) for schedule, checks in found.items()}


def _check_all(checks: Sequence[tuple[str, Callable[[str, Any], float]]], value: Any) -> float:
    """A schedule's value as a plain number."""
    for name, check in checks:
        value = check(f"the {name} of the schedule", value)
    plain: float = value
    return plain


rate = or_schedule(not_negative)
"""A learning rate: a number of at least 0, or a schedule; raises OptionError or ArgumentError."""


def at(lr: float | Schedule, step: float) -> float:
    """The learning rate of a step, `lr` being a number or a schedule."""
    return lr(step) if isinstance(lr, Schedule) else lr


def _along_cosine(begin: float, end: float, done: float) -> float:
    """Along half a cosine from one value to another, of which a share is `done`; the other where that is 1 or more."""
    return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
