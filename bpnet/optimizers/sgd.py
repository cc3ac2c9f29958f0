"""Gradient descent, with momentum, and by the signs of the gradient alone."""

from dataclasses import dataclass, field
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.optimizers.base import ElementwiseOptimizer
from bpnet.options import flag, fraction, not_negative
from bpnet.schedules import Schedule, or_schedule, rate


@dataclass(frozen=True)
class SGD(ElementwiseOptimizer):
    """Gradient descent, theta <- theta - lr g with the gradient g (Robbins and Monro 1951).

    With momentum (Polyak 1964) v <- momentum v + g and theta <- theta - lr v.  `nesterov` looks ahead, and steps along
    g + momentum v instead of v (Nesterov 1983, as in Sutskever et al. 2013).

    `steps_in_velocity` has steps in the velocity in the place of gradients, as Keras and scikit-learn do:
    v <- momentum v + lr g and theta <- theta - v, or with `nesterov` theta - (lr g + momentum v).  It is the same where
    lr is; after a smaller lr, v goes on with the larger steps that it had.
    """

    lr: float | Schedule = 0.01
    momentum: float | Schedule = 0.0
    nesterov: bool = False
    weight_decay: float | Schedule = 0.0
    steps_in_velocity: bool = field(default=False, kw_only=True)

    names = {"sgd": {}}

    def __post_init__(self) -> None:
        self._check(lr=rate, momentum=or_schedule(fraction), nesterov=flag, weight_decay=or_schedule(not_negative))
        self._check(steps_in_velocity=flag)
        if self.nesterov and self.momentum == 0.0:
            raise OptionError("nesterov=True needs a momentum above 0")

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("velocity v",) if self.momentum else ()

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        *velocity, grad, lr = args
        if not velocity:
            return (theta - lr * grad,)
        if self.steps_in_velocity:
            grad, lr = lr * grad, 1.0
        v = self.momentum * velocity[0] + grad
        return theta - lr * (grad + self.momentum * v if self.nesterov else v), v


@dataclass(frozen=True)
class Lion(ElementwiseOptimizer):
    """Lion (Chen et al. 2023): every parameter steps by the learning rate, in the direction of a running mean.

        theta <- theta - lr sign(beta1 m + (1 - beta1) g),
        m <- beta2 m + (1 - beta2) g.

    A step is as long in a valley's bed as on its walls, so that it comes no closer to a minimum than about `lr`: let
    that fall towards the end.  A good rate is 3 to 10 times smaller than AdamW's, with a weight decay as much larger.
    """

    lr: float | Schedule = 1e-4
    beta1: float | Schedule = 0.9
    beta2: float = 0.99
    weight_decay: float | Schedule = 0.0

    names = {"lion": {}}
    state_names = ("running mean m",)

    def __post_init__(self) -> None:
        self._check(lr=rate, beta1=or_schedule(fraction), beta2=fraction, weight_decay=or_schedule(not_negative))

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        m, grad, lr = args
        beta1: Any = self.beta1
        direction = b.xp.sign(beta1 * m + (1.0 - beta1) * grad)
        return theta - lr * direction, self.beta2 * m + (1.0 - self.beta2) * grad
