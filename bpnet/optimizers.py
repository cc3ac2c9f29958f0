"""Optimizers: theta <- theta - lr dL/dtheta, and what is better.  The parameters of a network are one vector, theta.

    init(backend, theta) -> state
    update(backend, layout, theta, grad, state, hyperparameters, evaluate) -> theta, state

Most work on every element alone; such a one is written as one method of its own options: see `ElementwiseOptimizer`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.layout import Layout
from bpnet.options import flag, fraction, not_negative, positive
from bpnet.registry import Registered
from bpnet.schedules import Schedule, rate

State = tuple[Array, ...]
Evaluate = Callable[[Array], tuple[Array, Array]]
"""evaluate(theta) -> loss, gradient on the batch of this step, with the same dropout masks, whenever it is called."""


class Optimizer(Registered, kind="optimizer"):
    """Base of the optimizers: a frozen dataclass with the option `lr`, and `update`."""

    lr: float | Schedule
    state_names: ClassVar[tuple[str, ...]] = ()
    """What each array of the state is called in a message."""
    traceable: ClassVar[bool] = True
    """False where `update` decides by values, as a line search does, or writes to arrays.

    It is then called as it stands; the gradient is compiled all the same, and so is what `evaluate` computes.
    """
    needs = ("update",)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step, the first being 0; raises OptionError where a schedule gives none."""
        if not isinstance(self.lr, Schedule):
            return self.lr
        return not_negative("the learning rate of the schedule", self.lr(step))

    def init(self, backend: Backend, theta: Array) -> State:
        """The state before the first step, arrays of any shape: here zeros like theta for each of `state_names`."""
        return tuple(backend.xp.zeros_like(theta) for _ in self.state_names)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """The numbers that change from step to step, the first step being 1; here the learning rate alone.

        They are computed on the host in float64, and a compiled step takes them as arguments.
        """
        return (lr,)

    def update(
        self,
        backend: Backend,
        layout: Layout,
        theta: Array,
        grad: Array,
        state: State,
        hyperparameters: tuple[Any, ...],
        evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:
        """theta and state after a step from theta, where the gradient is `grad`: new arrays, of the shapes of the old.

        `evaluate` gives the loss and its gradient at any theta; each call costs what the rest of the step does.
        """
        raise NotImplementedError


class ElementwiseOptimizer(Optimizer):
    """Base of the optimizers that move every parameter by its own gradient and state alone.

    The state is one vector like theta for each of `state_names`, zero at the start.
    """

    weight_decay: float = 0.0
    """Where it is above 0, the last hyperparameter is the `decay_factor`: 1 for parameters that don't decay."""
    needs = ("elementwise",)

    def elementwise(self, b: Backend, theta: Array, *args: Any, **kwargs: Any) -> tuple[Array, ...]:
        """elementwise(b, theta, *state, grad, *hyperparameters) -> theta, *state, by elementwise operations."""
        raise NotImplementedError

    def update(
        self,
        backend: Backend,
        layout: Layout,
        theta: Array,
        grad: Array,
        state: State,
        hyperparameters: tuple[Any, ...],
        evaluate: Evaluate | None = None,
        donate: bool = False,
    ) -> tuple[Array, State]:
        """As `Optimizer.update`; `donate` gives `theta` and `state` up, and lends `grad` only until they are replaced.

        A trainer donates to this very method.  One that overrides it gets arrays that it may compute with, and keep.
        """
        size, decaying = layout.size, layout.decaying
        pieces = [(0, size, hyperparameters)]
        if self.weight_decay:
            pieces = [(0, decaying, hyperparameters), (decaying, size, (*hyperparameters[:-1], 1.0))]
            pieces = [piece for piece in pieces if piece[0] < piece[1]]
        theta, *moved = backend.map_vector(self.elementwise, 1 + len(state), (theta, *state, grad), pieces, donate)
        return theta, tuple(moved)


@dataclass(frozen=True)
class SGD(ElementwiseOptimizer):
    """Gradient descent, theta <- theta - lr g with the gradient g.

    With momentum (Polyak 1964) v <- momentum v + g and theta <- theta - lr v.  `nesterov` looks ahead, and steps along
    g + momentum v instead of v (Nesterov 1983, as in Sutskever et al. 2013).
    """

    lr: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    names = {"sgd": {}}
    state_names = ("velocity v",)

    def __post_init__(self) -> None:
        self._check(lr=rate, momentum=fraction, nesterov=flag)
        if self.nesterov and self.momentum == 0.0:
            raise OptionError("nesterov=True needs a momentum above 0")

    def init(self, backend: Backend, theta: Array) -> State:
        return super().init(backend, theta) if self.momentum else ()

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        if not self.momentum:
            grad, lr = args
            return (theta - lr * grad,)
        v, grad, lr = args
        v = self.momentum * v + grad
        return theta - lr * (grad + self.momentum * v if self.nesterov else v), v


@dataclass(frozen=True)
class Adam(ElementwiseOptimizer):
    """Adam (Kingma and Ba 2015): along m, a running mean of the gradient g, over the root of v, a running mean of g**2.

    Both start at 0, and so are too small after t steps by the factors that m_hat and v_hat divide by:

        m <- beta1 m + (1 - beta1) g,          m_hat = m / (1 - beta1**t),
        v <- beta2 v + (1 - beta2) g**2,       v_hat = v / (1 - beta2**t),
        theta <- theta - lr m_hat / (sqrt(v_hat) + epsilon).

    It is computed as at the end of the paper's section 2: with c = sqrt(1 - beta2**t) the last line is

        theta <- theta - alpha m / (sqrt(v) + epsilon_hat),   alpha = lr c / (1 - beta1**t),   epsilon_hat = epsilon c.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    names = {"adam": {}}
    state_names = ("first moment m", "second moment v")

    def __post_init__(self) -> None:
        self._check(lr=rate, beta1=fraction, beta2=fraction, epsilon=positive)

    def check_type(self, dtype: str, smallest: float, largest: float) -> None:
        """As `Registered.check_type`, and raises OptionError where epsilon is below sqrt(smallest / (1 - beta2)).

        The squares of smaller gradients g are 0, so that a step is lr g / epsilon, which must not be longer than lr.
        """
        least = (smallest / (1.0 - self.beta2)) ** 0.5
        if self.epsilon < least:
            raise OptionError(
                f"epsilon of {self} is {self.epsilon!r}; with {dtype} parameters expected at least {least:.2g}, since "
                "the squares of smaller gradients are 0"
            )
        super().check_type(dtype, smallest, largest)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """alpha and epsilon_hat."""
        c = (1.0 - self.beta2**step) ** 0.5
        return lr * c / (1.0 - self.beta1**step), self.epsilon * c

    def elementwise(
        self, b: Backend, theta: Array, m: Array, v: Array, grad: Array, alpha: Any, epsilon_hat: Any
    ) -> tuple[Array, ...]:
        m = self.beta1 * m + (1.0 - self.beta1) * grad
        v = self.beta2 * v + (1.0 - self.beta2) * grad * grad  # from the left, so that the square overflows last
        return theta - alpha * m / (b.xp.sqrt(v) + epsilon_hat), m, v


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), theta <- theta - lr weight_decay theta.

    So before Adam's step theta is multiplied by decay_factor = 1 - lr weight_decay: the weights are, but not biases,
    scales and shifts.
    """

    weight_decay: float = 0.01

    names = {"adamw": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(weight_decay=not_negative)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """alpha, epsilon_hat and decay_factor."""
        return (*super().hyperparameters(lr, step), 1.0 - lr * self.weight_decay)

    def elementwise(
        self, b: Backend, theta: Array, m: Array, v: Array, grad: Array, alpha: Any, epsilon_hat: Any,
        decay_factor: Any = 1.0,
    ) -> tuple[Array, ...]:  # fmt: skip
        return super().elementwise(b, decay_factor * theta, m, v, grad, alpha, epsilon_hat)


def clip_by_global_norm(backend: Backend, grad: Array, limit: float) -> Array:
    """`grad` scaled down, where needed, to a Euclidean norm of at most `limit` (Pascanu, Mikolov and Bengio 2013).

    It is divided by its largest entry first (or by a number that has an inverse), so that no square overflows, nor
    limit / norm underflows.  A limit beyond the numbers of its type is none.
    """
    xp, info = backend.xp, backend.xp.finfo(grad.dtype)
    if limit > float(info.max):
        return grad
    smallest = float(info.smallest_normal)
    largest = xp.minimum(xp.maximum(xp.max(xp.abs(grad)), smallest), 0.5 / smallest)
    part = grad / largest
    root = xp.sqrt(xp.sum(part * part))
    clips = largest * root > limit
    down, up = xp.where(clips, largest, 1.0), limit / xp.where(clips, root, limit)
    return backend.fuse(_rescaled)(backend, grad, down, up)


def _rescaled(b: Backend, grad: Array, down: Any, up: Any) -> Array:
    return grad / down * up
