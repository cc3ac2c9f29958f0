"""A rate for every parameter, from the squares of its gradients: RMSprop, Adagrad, Adadelta."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout
from bpnet.optimizers.base import ElementwiseOptimizer, State
from bpnet.options import flag, fraction, not_negative, positive
from bpnet.schedules import Schedule, or_schedule, rate


@dataclass(frozen=True)
class RMSprop(ElementwiseOptimizer):
    """RMSprop (Tieleman and Hinton 2012): the gradient over the root of a running mean of its square.

        v <- rho v + (1 - rho) g**2,       theta <- theta - lr g / (sqrt(v) + epsilon).

    `centered` (Graves 2013) has the variance v - a**2 in the place of v, where a <- rho a + (1 - rho) g.  With
    `momentum` w <- momentum w + g / (sqrt(v) + epsilon), and theta <- theta - lr w.
    """

    lr: float | Schedule = 0.01
    rho: float = 0.99
    epsilon: float = 1e-8
    momentum: float | Schedule = 0.0
    centered: bool = False
    weight_decay: float | Schedule = 0.0

    names = {"rmsprop": {}}

    def __post_init__(self) -> None:
        self._check(lr=rate, rho=fraction, epsilon=positive, momentum=or_schedule(fraction), centered=flag)
        self._check(weight_decay=or_schedule(not_negative))

    @property
    def state_names(self) -> tuple[str, ...]:
        velocity = ("velocity w",) if self.momentum else ()
        return ("mean square v", *velocity, *(("mean gradient a",) if self.centered else ()))

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        v, *state, grad, lr = args
        v = variance = self.rho * v + (1.0 - self.rho) * grad * grad
        mean: tuple[Array, ...] = ()
        if self.centered:
            *state, a = state
            a = self.rho * a + (1.0 - self.rho) * grad
            variance, mean = b.xp.maximum(v - a * a, 0.0), (a,)  # which rounding may take below 0
        step = grad / (b.xp.sqrt(variance) + self.epsilon)
        if state:
            step = self.momentum * state[0] + step
        return theta - lr * step, v, *((step,) if state else ()), *mean


@dataclass(frozen=True)
class Adagrad(ElementwiseOptimizer):
    """Adagrad (Duchi, Hazan and Singer 2011): the gradient over the root of the sum of all its squares.

        s <- s + g**2,       theta <- theta - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + epsilon),

    t being 1 in the first step, before which s is `initial_sum`.
    """

    lr: float | Schedule = 0.01
    lr_decay: float = 0.0
    initial_sum: float = 0.0
    epsilon: float = 1e-10
    weight_decay: float | Schedule = 0.0

    names = {"adagrad": {}}
    state_names = ("sum of squares s",)

    def __post_init__(self) -> None:
        self._check(lr=rate, lr_decay=not_negative, initial_sum=not_negative, epsilon=positive)
        self._check(weight_decay=or_schedule(not_negative))

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        return (backend.xp.full_like(theta, self.initial_sum),)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        return (lr / (1.0 + (step - 1) * self.lr_decay),)

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        s, grad, lr = args
        s = s + grad * grad
        return theta - lr * grad / (b.xp.sqrt(s) + self.epsilon), s


@dataclass(frozen=True)
class Adadelta(ElementwiseOptimizer):
    """Adadelta (Zeiler 2012): steps in the unit of theta, whatever the unit of the loss.

    s <- rho s + (1 - rho) g**2,       delta = sqrt(d + epsilon) / sqrt(s + epsilon) g,
    d <- rho d + (1 - rho) delta**2,   theta <- theta - lr delta.
    """

    lr: float | Schedule = 1.0
    rho: float = 0.9
    epsilon: float = 1e-6
    weight_decay: float | Schedule = 0.0

    names = {"adadelta": {}}
    state_names = ("mean square s of gradients", "mean square d of steps")

    def __post_init__(self) -> None:
        self._check(lr=rate, rho=fraction, epsilon=positive, weight_decay=or_schedule(not_negative))

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        s, d, grad, lr = args
        s = self.rho * s + (1.0 - self.rho) * grad * grad
        delta = b.xp.sqrt(d + self.epsilon) / b.xp.sqrt(s + self.epsilon) * grad
        return theta - lr * delta, s, self.rho * d + (1.0 - self.rho) * delta * delta
