"""AdamW without a schedule: what is predicted with is an average of where the steps went."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.options import fraction, not_negative, number, positive
from bpnet.schedules import Schedule, or_schedule, rate


@dataclass(frozen=True)
class ScheduleFreeAdamW(Optimizer):
    """AdamW whose average takes the place of a falling learning rate (Defazio et al. 2024).

    z goes where AdamW without momentum would, x is the average of all z, and gradients g are those at y between them:

        y = (1 - beta1) z + beta1 x,      v <- beta2 v + (1 - beta2) g**2,
        z <- z - lr (g / (sqrt(v_hat) + epsilon) + weight_decay y),
        x <- (1 - c) x + c z,             c = lr_max**2 / (sum of lr_max**2 so far),

    with v_hat as in `Adam`, and lr_max the largest learning rate so far, so that steps of a warm-up count for little.

    A trainer's `theta` is y, at which it trains and which it saves; `predict`, `evaluate` and `parameters` are of x.
    The running statistics of batch normalisation are of passes with y, though, and differ a little from those with x.
    """

    lr: float | Schedule = 2.5e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float | Schedule = 0.0

    names = {"schedule_free_adamw": {}}
    state_names = ("steps' end z", "second moment v", "weight of the average", "largest learning rate")

    def __post_init__(self) -> None:
        self._check(lr=rate, beta2=fraction, epsilon=positive, weight_decay=or_schedule(not_negative))
        self._set(beta1=number("beta1", self.beta1, 0.0, 1.0, closed="neither"))

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        xp, like = backend.xp, {"dtype": theta.dtype, "device": backend.device(theta)}
        return backend.copy(theta), xp.zeros_like(theta), xp.zeros((1,), **like), xp.zeros((1,), **like)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """lr, and for Adam's correction the root c of 1 - beta2**t, and epsilon c."""
        c = (1.0 - self.beta2**step) ** 0.5
        return lr, c, self.epsilon * c

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        xp, (z, v, weight, lr_max) = backend.xp, state
        now, (lr, c, epsilon_hat) = self.at_step(hyperparameters)
        # the sum of lr_max**2 in units of the last lr_max**2, which counts steps where the rate is constant
        top = xp.maximum(lr_max, lr)
        unit = lr_max / xp.where(top > 0.0, top, 1.0)
        weight = weight * unit * unit + 1.0
        v = self.beta2 * v + (1.0 - self.beta2) * grad * grad
        u = c * grad / (xp.sqrt(v) + epsilon_hat)
        if self.weight_decay:
            n = layout.decaying
            decay = [now.weight_decay * theta[:n]] if n else []
            u = u + backend.concat([*decay, *([0.0 * theta[n:]] if n < layout.size else [])])
        x = self.evaluation(backend, layout, theta, state)
        z = z - lr * u
        x = x + (z - x) / weight
        return (1.0 - self.beta1) * z + self.beta1 * x, (z, v, weight, top)

    def evaluation(self, backend: Backend, layout: Layout, theta: Array, state: State) -> Array:
        """x = (y - (1 - beta1) z) / beta1"""
        return (theta - (1.0 - self.beta1) * state[0]) / self.beta1

    def restart(self, backend: Backend, layout: Layout, theta: Array, state: State) -> State:
        return (backend.copy(theta), *state[1:])
