"""Prodigy: AdamW that finds its own learning rate."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.options import flag, fraction, not_negative, positive
from bpnet.schedules import Schedule, or_schedule, rate


@dataclass(frozen=True)
class Prodigy(Optimizer):
    """AdamW in units of d, which is found: how far, at least, theta has to go (Mishchenko and Defazio 2024).

    lr is a factor around 1, such as a schedule that falls to 0, and with a = d lr sqrt(1 - beta2**t) / (1 - beta1**t)

        m <- beta1 m + (1 - beta1) d g,                v <- beta2 v + (1 - beta2) (d g)**2,
        r <- beta3 r + d / d0 a g . (theta0 - theta),  s <- beta3 s + a d / d0 g,
        d <- max(d, growth r / |s|_1),
        theta <- theta - a m / (sqrt(v) + d epsilon) - a weight_decay theta,

    where theta0 is the start, d0 = `initial` the first d, and beta3 = sqrt(beta2).  With `safe_warm_up` s grows by
    d**2 / d0 g, so that small rates at the beginning don't make d large.

    The way theta0 - theta is added up from the steps: in float32 the difference would lose the first of them.
    """

    lr: float | Schedule = 1.0
    beta1: float | Schedule = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    initial: float = 1e-6
    growth: float = 1.0
    weight_decay: float | Schedule = 0.0
    safe_warm_up: bool = False

    names = {"prodigy": {}}
    state_names = (
        "first moment m",
        "second moment v",
        "weighted gradients s",
        "way theta0 - theta",
        "distance d",
        "numerator r",
    )

    def __post_init__(self) -> None:
        self._check(
            lr=rate, beta1=or_schedule(fraction), beta2=fraction, epsilon=positive, initial=positive, growth=positive
        )
        self._check(weight_decay=or_schedule(not_negative), safe_warm_up=flag)

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        xp, like = backend.xp, {"dtype": theta.dtype, "device": backend.device(theta)}
        zeros = [xp.zeros_like(theta) for _ in range(3)]
        return *zeros, xp.zeros_like(theta), xp.full((1,), self.initial, **like), xp.zeros((1,), **like)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """lr with Adam's correction."""
        assert not isinstance(self.beta1, Schedule)
        return (lr * (1.0 - self.beta2**step) ** 0.5 / (1.0 - self.beta1**step),)

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        xp, (m, v, s, way, d, r) = backend.xp, state
        now, (lr,) = self.at_step(hyperparameters)
        a, beta3 = d * lr, self.beta2**0.5
        scaled = d * grad
        beta1: Any = now.beta1
        m = beta1 * m + (1.0 - beta1) * scaled
        v = self.beta2 * v + (1.0 - self.beta2) * scaled * scaled
        s = beta3 * s + (d if self.safe_warm_up else a) / self.initial * scaled
        r = beta3 * r + d / self.initial * a * xp.sum(grad * way)
        length = xp.sum(xp.abs(s))
        d = xp.maximum(d, self.growth * r / xp.where(length > 0.0, length, 1.0))
        step = a * m / (xp.sqrt(v) + d * self.epsilon)
        if self.weight_decay and layout.decaying:
            n = layout.decaying
            decayed = step[:n] + a * now.weight_decay * theta[:n]
            step = backend.concat([decayed, step[n:]]) if n < layout.size else decayed
        return theta - step, (m, v, s, way + step, d, r)
