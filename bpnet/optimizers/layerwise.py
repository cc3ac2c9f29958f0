"""Steps in proportion to the size of each leaf, for large batches: LARS and LAMB."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout
from bpnet.optimizers.adam import _Moments
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.optimizers.clipping import norm
from bpnet.options import flag, fraction, not_negative, positive
from bpnet.schedules import Schedule, or_schedule, rate


def _trust_ratio(backend: Backend, leaf: Array, step: Array, factor: float = 1.0, epsilon: float = 0.0) -> Array:
    """factor |leaf| / (|step| + epsilon), and 1 where one of the norms is 0."""
    xp = backend.xp
    size, length = norm(backend, leaf), norm(backend, step)
    nothing = (size == 0.0) | (length == 0.0)
    return xp.where(nothing, 1.0, factor * size / xp.where(nothing, 1.0, length + epsilon))


@dataclass(frozen=True)
class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017): momentum along steps as long as weights are.

        u = g + weight_decay theta,      r = trust |theta| / (|u| + epsilon),
        v <- momentum v + lr r u,        theta <- theta - v,

    with norms of each leaf of weights by itself.  Biases, scales and shifts, which don't decay, have r = 1: they may be
    0, of which no step is a part.  `nesterov` steps along lr r u + momentum v.
    """

    lr: float | Schedule = 1.0
    momentum: float | Schedule = 0.9
    weight_decay: float | Schedule = 0.0
    trust: float = 1e-3
    epsilon: float = 0.0
    nesterov: bool = False

    names = {"lars": {}}
    state_names = ("velocity v",)

    def __post_init__(self) -> None:
        self._check(lr=rate, momentum=or_schedule(fraction), weight_decay=or_schedule(not_negative), trust=positive)
        self._check(epsilon=not_negative, nesterov=flag)

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        now, (lr,) = self.at_step(hyperparameters)
        momentum: Any = now.momentum
        steps = []
        for slot in layout.parameters:
            leaf, u = theta[slot.part], grad[slot.part]
            if slot.decay:
                u = u + now.weight_decay * leaf if self.weight_decay else u
                u = _trust_ratio(backend, leaf, u, self.trust, self.epsilon) * u
            steps.append(lr * u)
        step = backend.concat(steps)
        v = momentum * state[0] + step
        return theta - (momentum * v + step if self.nesterov else v), (v,)


@dataclass(frozen=True)
class LAMB(_Moments):
    """Adam with steps in proportion to the size of each leaf (You et al. 2020), for batches of many thousand rows.

        u = m_hat / (sqrt(v_hat) + epsilon) + weight_decay theta,
        theta <- theta - lr |theta| / |u| u,

    with m_hat and v_hat as in `Adam`, and norms of each leaf by itself; the ratio is 1 where one of them is 0.
    """

    epsilon: float = 1e-6
    weight_decay: float | Schedule = 0.0

    names = {"lamb": {}}

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        return (lr, *self.corrections(step))

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        now, (lr, first, second) = self.at_step(hyperparameters)
        m, v = state
        m, v = now.moments(m, v, grad)
        direction = m / first / (backend.xp.sqrt(v / second) + self.epsilon)
        moved = []
        for slot in layout.parameters:
            leaf, u = theta[slot.part], direction[slot.part]
            if slot.decay and self.weight_decay:
                u = u + now.weight_decay * leaf
            moved.append(leaf - lr * _trust_ratio(backend, leaf, u) * u)
        return backend.concat(moved), (m, v)
