"""L-BFGS: steps by an estimate of the curvature, each as long as a line search finds good."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError
from bpnet.layout import Layout
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.options import number, positive, whole
from bpnet.schedules import Schedule, rate

LEAST_CURVATURE = 1e-10
"""s . y up to which a step says nothing about the curvature."""


@dataclass(frozen=True)
class LBFGS(Optimizer):
    """L-BFGS (Nocedal 1980; Liu and Nocedal 1989) with a line search for the strong Wolfe conditions.

    Of the last `history` steps s and the changes y of the gradient on them it makes d = -H g, where H is the inverse
    of the Hessian as they show it (Nocedal and Wright 2006, algorithm 7.4), and goes to theta + a d with

        L(theta + a d) <= L(theta) + c1 a g . d,        |g(theta + a d) . d| <= c2 |g . d|.

    The search (algorithms 3.5 and 3.6 there, with cubic interpolation) begins at a = `lr`, in the first step at
    min(1, 1 / |g|_1) lr, and ends after `max_evaluations` of the loss and its gradient.  It compares losses, so train
    on all rows in each batch.  Where g . d is above -`tolerance` there is no step, and the search goes no further once
    no parameter would move by `tolerance`.
    """

    lr: float | Schedule = 1.0
    history: int = 10
    c1: float = 1e-4
    c2: float = 0.9
    max_evaluations: int = 25
    tolerance: float = 1e-9

    names = {"lbfgs": {}}
    traceable = False
    state_names = ("steps s", "changes y of the gradient", "last step", "last gradient", "number of steps kept")

    def __post_init__(self) -> None:
        self._check(lr=rate, history=partial(whole, most=10_000), max_evaluations=whole, tolerance=positive)
        self._set(c1=number("c1", self.c1, 0.0, 1.0, closed="neither"))
        self._set(c2=number("c2", self.c2, self.c1, 1.0, closed="neither"))

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        xp, like = backend.xp, {"dtype": theta.dtype, "device": backend.device(theta)}
        rows = (self.history, theta.shape[0])
        none = xp.full((), -1.0, **like)  # not even one gradient is known
        return xp.zeros(rows, **like), xp.zeros(rows, **like), xp.zeros_like(theta), xp.zeros_like(theta), none

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        if evaluate is None:
            raise ArgumentError("LBFGS asks for the loss again: pass `evaluate`, as a trainer and bp.minimize do")
        xp, (lr,) = backend.xp, hyperparameters
        steps, changes, last_step, last_grad, kept = state
        if float(xp.max(xp.abs(grad))) == 0.0:
            return theta, state
        count = int(kept)
        if count < 0:
            count, trial = 0, lr / max(1.0, float(xp.sum(xp.abs(grad))))
        else:
            trial, change = lr, grad - last_grad
            if float(xp.sum(change * last_step)) > LEAST_CURVATURE:
                steps, changes = (
                    backend.concat([old[1:, :], new[None, :]]) for old, new in ((steps, last_step), (changes, change))
                )
                count = min(count + 1, self.history)
        direction = _direction(backend, grad, steps, changes, count)
        slope = float(xp.sum(grad * direction))
        if not (slope < -self.tolerance and trial > 0.0):
            return theta, (steps, changes, xp.zeros_like(theta), grad, xp.full_like(kept, float(count)))

        def along(length: float) -> Point:
            value, at = evaluate(theta + length * direction)
            return Point(length, float(value), float(xp.sum(at * direction)))

        here = Point(0.0, float(evaluate(theta)[0]), slope)
        width = float(xp.max(xp.abs(direction)))
        length = self._search(along, here, trial, self.tolerance / width)
        step = length * direction
        return theta + step, (steps, changes, step, grad, xp.full_like(kept, float(count)))

    def _search(self, along: "Callable[[float], Point]", here: "Point", length: float, least: float) -> float:
        """How far to go (algorithm 3.5): to a point that fits, or to one within an interval that has one."""
        before, found, asked = here, along(length), 1
        while True:
            # what is no number is too far
            falls = found.value <= here.value + self.c1 * found.at * here.slope
            if not falls or (asked > 2 and found.value >= before.value):
                break
            if abs(found.slope) <= -self.c2 * here.slope:
                return found.at
            if found.slope >= 0.0:
                break
            if asked > self.max_evaluations:
                before = here
                break
            bounds = found.at + 0.01 * (found.at - before.at), 10.0 * found.at
            before, found = found, along(_cubic(before, found, *bounds))
            asked += 1
        low, high = (found, before) if found.value < before.value else (before, found)
        return self._zoom(along, here, low, high, least, asked)

    def _zoom(
        self, along: "Callable[[float], Point]", here: "Point", low: "Point", high: "Point", least: float, asked: int
    ) -> float:
        """The same within an interval (algorithm 3.6), whose end `low` has the lower loss."""
        stuck = False
        while asked <= self.max_evaluations and abs(high.at - low.at) >= least:
            left, right = sorted((low.at, high.at))
            at, margin = _cubic(low, high, left, right), 0.1 * (right - left)
            if min(right - at, at - left) < margin:  # near an end twice, or on it: step away
                if stuck or at >= right or at <= left:
                    at = right - margin if abs(at - right) < abs(at - left) else left + margin
                    stuck = False
                else:
                    stuck = True
            else:
                stuck = False
            found = along(at)
            asked += 1
            falls = found.value <= here.value + self.c1 * at * here.slope
            if not falls or found.value >= low.value:
                high = found
                if low.value > high.value:
                    low, high = high, low
                continue
            if abs(found.slope) <= -self.c2 * here.slope:
                return at
            if found.slope * (high.at - low.at) >= 0.0:
                high = low
            low = found
        return low.at


class Point(NamedTuple):
    """A point on the line of a search: how far along it, the loss there, and its derivative along the line."""

    at: float
    value: float
    slope: float


def _cubic(left: Point, right: Point, low: float, high: float) -> float:
    """Where the cubic through values and slopes at two points is least, within low ... high; or their middle."""
    if left.at > right.at:
        left, right = right, left
    middle = 0.5 * (low + high)
    mean = left.slope + right.slope - 3.0 * (left.value - right.value) / (left.at - right.at)
    square = mean * mean - left.slope * right.slope
    if not 0.0 <= square < math.inf:
        return middle
    bottom = right.slope - left.slope + 2.0 * math.sqrt(square)
    if bottom == 0.0:
        return middle
    return min(max(right.at - (right.at - left.at) * ((right.slope + math.sqrt(square) - mean) / bottom), low), high)


def _direction(backend: Backend, grad: Array, steps: Array, changes: Array, count: int) -> Array:
    """-H g by the two loops of algorithm 7.4; the rows of `steps` and `changes` are the last ones last."""
    xp, q = backend.xp, -grad
    pairs = [(steps[i, :], changes[i, :]) for i in range(steps.shape[0] - count, steps.shape[0])]
    factors = []
    for s, y in reversed(pairs):
        factors.append(xp.sum(s * q) / xp.sum(y * s))
        q = q - factors[-1] * y
    if pairs:
        s, y = pairs[-1]
        q = q * (xp.sum(y * s) / xp.sum(y * y))
    for (s, y), factor in zip(pairs, reversed(factors), strict=True):
        q = q + s * (factor - xp.sum(y * q) / xp.sum(y * s))
    return q
