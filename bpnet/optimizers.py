"""Optimizers: each is `init` and `update`, one elementwise rule mapped over the whole parameter vector.

    init(backend, theta) -> state
    update(backend, layout, theta, grad, state, lr, step) -> theta, state

`state` is a tuple of vectors like theta; `step` counts from 1.  Inputs are not modified, unless `donate` gives them up.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.layer import Run, kernel
from bpnet.layout import Layout
from bpnet.options import flag, number
from bpnet.registry import Registered
from bpnet.schedules import Schedule, rate

State = tuple[Array, ...]


class Optimizer(Registered, kind="optimizer"):
    """Base of the optimizers: a subclass names its rule, how many vectors its state has, and the rule's scalars."""

    lr: float | Schedule
    vectors: ClassVar[int] = 0
    """Number of vectors of state, each zero at the start."""
    state_names: ClassVar[tuple[str, ...]] = ()
    """What each vector of state is called in a message."""
    decay: float = 0.0
    """Decoupled weight decay, for the parameters that the layout says decay."""

    def schedule(self, step: int) -> float:
        """The learning rate of the step, the first being 0."""
        if not isinstance(self.lr, Schedule):
            return self.lr
        return number("the learning rate of the schedule", self.lr(step), 0.0, math.inf, closed="left")

    @staticmethod
    def rule(b: Backend, theta: Array, *rest: Any) -> tuple[Array, ...]:
        """rule(b, theta, *state, grad, *scalars) -> theta, *state; where there is decay, one more scalar: `shrink`."""
        raise NotImplementedError

    def scalars(self, lr: Any, step: Any) -> tuple[Any, ...]:
        """The rule's scalars for this step."""
        raise NotImplementedError

    def init(self, backend: Backend, theta: Array) -> State:
        """The state before the first step."""
        return tuple(backend.xp.zeros_like(theta) for _ in range(self.vectors))

    def check_type(self, dtype: str, smallest: float) -> None:
        """Raise OptionError where an option can't be used with parameters of the type called `dtype`.

        `smallest` is the least positive normal number of that type.
        """

    def numbers(self, lr: float, step: int) -> tuple[tuple[float, ...], float]:
        """What changes from step to step: the rule's scalars, and the factor of weight decay (1: none).

        Computed on the host in float64; a compiled step takes them as arguments.
        """
        return self.scalars(lr, step), 1.0 - lr * self.decay

    def update(
        self,
        backend: Backend,
        layout: Layout,
        theta: Array,
        grad: Array,
        state: State,
        lr: Any,
        step: Any,
        donate: bool = False,
    ) -> tuple[Array, State]:
        """theta and state after one step along `grad` at learning rate `lr`, the first step being 1."""
        return self.apply(backend, layout, theta, grad, state, self.numbers(lr, step), donate)

    def apply(
        self,
        backend: Backend,
        layout: Layout,
        theta: Array,
        grad: Array,
        state: State,
        numbers: tuple[tuple[Any, ...], Any],
        donate: bool = False,
    ) -> tuple[Array, State]:
        """theta and state after one step whose `numbers` are known; with `donate`, `grad` too is only lent.

        A trainer donates to this very method.  One that overrides it gets new vectors, and may compute with them, write
        to them and keep them.
        """
        scalars, shrink = numbers
        size, decaying = layout.size, layout.decaying
        pieces = [(0, size, scalars)]
        if self.decay:
            pieces = [(0, decaying, (*scalars, shrink)), (decaying, size, (*scalars, 1.0))]
            pieces = [piece for piece in pieces if piece[0] < piece[1]]
        theta, *moved = backend.map_vector(type(self).rule, 1 + len(state), (theta, *state, grad), pieces, donate)
        return theta, tuple(moved)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, theta <- theta - lr grad.

    With momentum (Polyak 1964) v <- momentum v + grad and theta <- theta - lr v.
    `nesterov` steps along grad + momentum v instead of v (Nesterov 1983, as in Sutskever et al. 2013).
    """

    lr: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    names = {"sgd": {}}
    state_names = ("velocity v",)

    def __post_init__(self) -> None:
        self._set(lr=rate("lr", self.lr))
        self._set(momentum=number("momentum", self.momentum, 0.0, 1.0, closed="left"))
        self._set(nesterov=flag("nesterov", self.nesterov))
        if self.nesterov and self.momentum == 0.0:
            raise OptionError("nesterov=True needs a momentum above 0")

    def init(self, backend: Backend, theta: Array) -> State:
        return (backend.xp.zeros_like(theta),) if self.momentum else ()

    def scalars(self, lr: Any, step: Any) -> tuple[Any, ...]:
        if not self.momentum:
            return (lr,)
        # theta - lr (along_grad grad + along_v v) covers both kinds of momentum
        return (lr, self.momentum, 1.0, self.momentum) if self.nesterov else (lr, self.momentum, 0.0, 1.0)

    @staticmethod
    def rule(b: Backend, theta: Array, *rest: Any) -> tuple[Array, ...]:
        if len(rest) == 2:
            grad, lr = rest
            return (theta - lr * grad,)
        v, grad, lr, momentum, along_grad, along_v = rest
        v = momentum * v + grad
        return theta - lr * (along_grad * grad + along_v * v), v


def adam_rule(
    b: Backend,
    theta: Array,
    m: Array,
    v: Array,
    grad: Array,
    rate: Any,
    beta1: float,
    new1: float,
    beta2: float,
    new2: float,
    epsilon: Any,
    shrink: Any = None,
) -> tuple[Array, ...]:
    """Adam on one element; new1 and new2 are 1 - beta1 and 1 - beta2."""
    m = beta1 * m + new1 * grad
    v = beta2 * v + (new2 * grad) * grad  # in this order, in which the square overflows last
    kept = theta if shrink is None else shrink * theta
    return kept - rate * m / (b.xp.sqrt(v) + epsilon), m, v


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015): along a running mean of the gradient g, over the root of one of its square.

    Both start at 0, and what that takes from their means after t steps is given back:

        m <- beta1 m + (1 - beta1) g,       M = 1 - beta1**t,
        v <- beta2 v + (1 - beta2) g**2,    V = 1 - beta2**t,
        theta <- theta - lr (m / M) / (sqrt(v / V) + epsilon).
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    names = {"adam": {}}
    vectors = 2
    state_names = ("first moment m", "second moment v")
    rule = staticmethod(adam_rule)

    def __post_init__(self) -> None:
        self._set(lr=rate("lr", self.lr))
        self._set(beta1=number("beta1", self.beta1, 0.0, 1.0, closed="left"))
        self._set(beta2=number("beta2", self.beta2, 0.0, 1.0, closed="left"))
        self._set(epsilon=number("epsilon", self.epsilon, 0.0, math.inf, closed="neither"))

    def check_type(self, dtype: str, smallest: float) -> None:
        """The squares of gradients under sqrt(smallest / (1 - beta2)) are 0, so a step along such a gradient g would be
        lr g / epsilon: no longer than lr only for an epsilon that is not smaller still."""
        least = (smallest / (1.0 - self.beta2)) ** 0.5
        if self.epsilon < least:
            raise OptionError(
                f"epsilon of {self} is {self.epsilon!r}; with {dtype} parameters expected at least {least:.2g}, since "
                "the squares of smaller gradients are 0"
            )

    def scalars(self, lr: Any, step: Any) -> tuple[Any, ...]:
        root = (1.0 - self.beta2**step) ** 0.5
        scaled = lr * root / (1.0 - self.beta1**step), self.epsilon * root  # with sqrt(v / V) = sqrt(v) / root
        return scaled[0], self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, scaled[1]


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): theta <- theta - lr weight_decay theta.

    Weights decay; biases, scales and shifts don't.
    """

    weight_decay: float = 0.01

    names = {"adamw": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(weight_decay=number("weight_decay", self.weight_decay, 0.0, math.inf, closed="left"))

    @property
    def decay(self) -> float:  # type: ignore[override]
        return self.weight_decay


@kernel
def clip_by_global_norm(run: Run, grad: Array, limit: float) -> Array:
    """`grad` scaled down, where needed, to a Euclidean norm of at most `limit` (Pascanu, Mikolov and Bengio 2013).

    It is divided by its largest entry first (or by a number that has an inverse), so that no square overflows, nor
    limit / norm underflows.
    """
    xp, smallest = run.xp, float(run.xp.finfo(grad.dtype).smallest_normal)
    largest = xp.minimum(xp.maximum(xp.max(xp.abs(grad)), smallest), 0.5 / smallest)
    part = grad / largest
    root = xp.sqrt(xp.sum(part * part))
    clips = largest * root > limit
    down, up = xp.where(clips, largest, 1.0), limit / xp.where(clips, root, limit)
    return run.backend.fuse(_rescaled)(run.backend, grad, down, up)


def _rescaled(b: Backend, grad: Array, down: Any, up: Any) -> Array:
    return grad / down * up
