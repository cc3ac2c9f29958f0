"""Adafactor: of the squares of a matrix's gradients no more than sums over rows and over columns."""

import math
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout, Slot
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.optimizers.clipping import norm
from bpnet.options import not_negative, number, positive
from bpnet.schedules import Schedule, or_schedule, rate


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018): Adam's root of v from means of rows and columns, and steps relative to theta.

    Of a leaf of two axes or more, matrices along the last two, with the mean of g**2 over columns, then over rows,

        r <- r + (mean_j g**2 - r) / t**decay,       c <- c + (mean_i g**2 - c) / t**decay,       v = r c^T / mean r,

    of others v <- v + (g**2 - v) / t**decay.  Then with rms(x) the root of the mean of x**2 over the leaf

        u = g / sqrt(v),       a = max(least_scale, rms(theta)) min(lr, 1 / sqrt(t)),
        theta <- theta - a u / max(1, rms(u) / clip).

    `epsilon` bounds mean r, and its square v, from below; None is that of the type, the distance from 1 to the next
    number.  The state of n x m weights are n + m numbers.
    """

    lr: float | Schedule = 0.01
    decay: float = 0.8
    epsilon: float | None = None
    least_scale: float = 1e-3
    clip: float = 1.0
    weight_decay: float | Schedule = 0.0

    names = {"adafactor": {}}
    state_names = ("means of squares",)

    def __post_init__(self) -> None:
        self._check(lr=rate, least_scale=positive, clip=positive, weight_decay=or_schedule(not_negative))
        self._set(decay=number("decay", self.decay, 0.0, 1.0, closed="neither"))
        if self.epsilon is not None:
            self._check(epsilon=positive)

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        size = sum(sum(_sizes(slot)) for slot in layout.parameters)
        return (backend.xp.zeros((size,), dtype=theta.dtype, device=backend.device(theta)),)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """lr, the length of a step relative to theta, and the weight of the new gradient."""
        return lr, min(lr, step**-0.5), step**-self.decay

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        now, (lr, length, weight) = self.at_step(hyperparameters)
        epsilon = float(backend.xp.finfo(theta.dtype).eps) if self.epsilon is None else self.epsilon
        moved, kept, offset = [], [], 0
        for slot in layout.parameters:
            xp, leaf, g = backend.xp, theta[slot.part], grad[slot.part]
            means = []
            for size in _sizes(slot):
                means.append(state[0][offset : offset + size])
                offset += size
            means, v = _estimated(backend, slot, means, xp.reshape(g, slot.shape), weight, epsilon)
            kept += means
            root = slot.size**0.5
            u = g / xp.sqrt(xp.maximum(xp.reshape(v, (-1,)), epsilon * epsilon))
            u = u / xp.maximum(norm(backend, u) / (root * self.clip), 1.0)
            scale = xp.maximum(norm(backend, leaf) / root, self.least_scale) * length
            if slot.decay and self.weight_decay:
                leaf = (1.0 - lr * now.weight_decay) * leaf
            moved.append(leaf - scale * u)
        return backend.concat(moved), (backend.concat(kept),)


def _sizes(slot: Slot) -> tuple[int, ...]:
    """How many means there are of rows and of columns; or of an entry each."""
    if len(slot.shape) < 2:
        return (slot.size,)
    *stack, rows, columns = slot.shape
    return math.prod(stack) * rows, math.prod(stack) * columns


def _estimated(
    backend: Backend, slot: Slot, means: list[Array], g: Array, weight: Any, epsilon: float
) -> tuple[list[Array], Array]:
    """The means anew, and v of them."""
    xp, square = backend.xp, g * g
    if len(means) == 1:
        v = means[0] + weight * (xp.reshape(square, (-1,)) - means[0])
        return [v], v
    *stack, rows, columns = slot.shape
    r, c = (
        mean + weight * (xp.reshape(xp.mean(square, axis=axis), (-1,)) - mean)
        for mean, axis in zip(means, (-1, -2), strict=True)
    )
    by_row, by_column = xp.reshape(r, (*stack, rows, 1)), xp.reshape(c, (*stack, 1, columns))
    total = xp.maximum(xp.mean(by_row, axis=-2, keepdims=True), epsilon)
    return [r, c], by_row * by_column / total
