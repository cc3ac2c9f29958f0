"""What an optimizer is: theta <- theta - lr dL/dtheta, and what is better.  The parameters are one vector, theta.

    init(backend, layout, theta) -> state
    update(backend, layout, theta, grad, state, hyperparameters, evaluate) -> theta, state

Most work on every element alone; such a one is written as one method of its own options: see `ElementwiseOptimizer`.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout
from bpnet.options import fraction, not_negative
from bpnet.registry import Registered
from bpnet.schedules import Schedule, at

State = tuple[Array, ...]
Evaluate = Callable[[Array], tuple[Array, Array]]
"""evaluate(theta) -> loss, gradient on the batch of this step, with the same dropout masks, whenever it is called."""

SCHEDULABLE = {"weight_decay": not_negative, "momentum": fraction, "beta1": fraction}
"""Options besides the learning rate that may be schedules, where an optimizer has them, and what their values must be.

`hyperparameters` and `elementwise` (or `update`, which begins with `at_step`) see the number of the step in its place.
"""


class Optimizer(Registered, kind="optimizer"):
    """Base of the optimizers: a frozen dataclass with the option `lr`, and `update`."""

    lr: float | Schedule
    traceable: ClassVar[bool] = True
    """False where `update` decides by values, as a line search does, or writes to arrays.

    It is then called as it stands; the gradient is compiled all the same, and so is what `evaluate` computes.
    """
    needs = ("update",)

    @property
    def state_names(self) -> tuple[str, ...]:
        """What each array of the state is called in a message; `state_names = ("velocity v",)` says so too."""
        return ()

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step, the first being 0; raises OptionError where a schedule gives none."""
        if not isinstance(self.lr, Schedule):
            return self.lr
        return not_negative("the learning rate of the schedule", self.lr(step))

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        """The state before the first step, arrays of any shape: here zeros like theta for each of `state_names`."""
        return tuple(backend.xp.zeros_like(theta) for _ in self.state_names)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """The numbers that change from step to step, the first step being 1; here the learning rate alone.

        They are computed on the host in float64, and a compiled step takes them as arguments.
        """
        return (lr,)

    def numbers(self, step: int, lr_scale: float = 1.0) -> tuple[Any, ...]:
        """What `update` is given: the hyperparameters of the step, the first being 0, then the values of schedules.

        `lr_scale` is a factor of every learning rate, from outside.
        """
        now = self._at(step)
        own = now.hyperparameters(self.learning_rate(step) * lr_scale, step + 1)
        return (*own, *(getattr(now, name) for name in self._scheduled))

    def at_step(self, hyperparameters: tuple[Any, ...]) -> tuple[Self, tuple[Any, ...]]:
        """The optimizer with the numbers of a step in the place of schedules, and the other hyperparameters."""
        names = self._scheduled
        if not names:
            return self, hyperparameters
        values = hyperparameters[-len(names) :]
        return self._with(**dict(zip(names, values, strict=True))), hyperparameters[: -len(names)]

    @property
    def _scheduled(self) -> tuple[str, ...]:
        """The options, but for the learning rate, that are schedules."""
        return tuple(name for name in SCHEDULABLE if isinstance(getattr(self, name, None), Schedule))

    def _at(self, step: int) -> Self:
        """The optimizer with the numbers of a step in the place of schedules, its learning rate apart."""
        values = {name: at(getattr(self, name), step) for name in self._scheduled}
        return self._with(**{n: SCHEDULABLE[n](f"the {n} of the schedule", v) for n, v in values.items()})

    def _with(self, **values: Any) -> Self:
        """A copy with other values, unchecked: under tracing they are symbols."""
        if not values:
            return self
        other = copy.copy(self)
        other._set(**values)
        return other

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

        `layout` says where each leaf lies in theta, of which shape, and whether it decays.  `evaluate` gives the loss
        and its gradient at any theta; each call costs what the rest of the step does.
        """
        raise NotImplementedError

    def evaluation(self, backend: Backend, layout: Layout, theta: Array, state: State) -> Array:
        """The parameters with which a trainer predicts and evaluates: theta, but for optimizers that average."""
        return theta

    def restart(self, backend: Backend, layout: Layout, theta: Array, state: State) -> State:
        """The state where theta has been set from outside: as it is, but for averages, which begin there."""
        return state


class ElementwiseOptimizer(Optimizer):
    """Base of the optimizers that move every parameter by its own gradient and state alone.

    The state is one vector like theta for each of `state_names`, zero at the start.
    """

    weight_decay: float | Schedule = 0.0
    """Where it is above 0, theta is multiplied by 1 - lr weight_decay before each step (Loshchilov and Hutter 2019):
    weights are, but not biases, scales and shifts."""
    needs = ("elementwise",)

    def elementwise(self, b: Backend, theta: Array, *args: Any, **kwargs: Any) -> tuple[Array, ...]:
        """elementwise(b, theta, *state, grad, *hyperparameters) -> theta, *state, by elementwise operations."""
        raise NotImplementedError

    @property
    def _scheduled(self) -> tuple[str, ...]:
        """But for the weight decay, which is in its factor."""
        return tuple(name for name in super()._scheduled if name != "weight_decay")

    def numbers(self, step: int, lr_scale: float = 1.0) -> tuple[Any, ...]:
        """As `Optimizer.numbers`, and last, where there is weight decay, `decay_factor`: 1 - lr weight_decay."""
        found = super().numbers(step, lr_scale)
        if not self.weight_decay:
            return found
        decay = not_negative("the weight_decay of the schedule", at(self.weight_decay, step))
        return (*found, 1.0 - self.learning_rate(step) * lr_scale * decay)

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
        theta, *moved = backend.map_vector(self.apply, 1 + len(state), (theta, *state, grad), pieces, donate)
        return theta, tuple(moved)

    def apply(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        """apply(b, theta, *state, grad, *numbers) -> theta, *state: weight decay, then `elementwise`."""
        if self.weight_decay:
            *rest, decay_factor = args
            theta, args = decay_factor * theta, tuple(rest)
        now, args = self.at_step(args)
        return now.elementwise(b, theta, *args)
