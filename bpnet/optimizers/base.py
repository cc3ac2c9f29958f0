"""What an optimizer is: theta <- theta - lr dL/dtheta, and what is better.  The parameters are one vector, theta.

    init(backend, layout, theta) -> state
    update(backend, layout, theta, grad, state, hyperparameters, evaluate) -> theta, state

Most work on every element alone; such a one is written as one method of its own options: see `ElementwiseOptimizer`.
"""

import copy
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, ClassVar, Self

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.layout import Layout
from bpnet.options import fraction, not_negative
from bpnet.registry import Registered
from bpnet.schedules import Schedule, at

State = tuple[Array, ...]
Evaluate = Callable[[Array], tuple[Array, Array]]
"""evaluate(theta) -> loss, gradient on the batch of this step, with the same dropout masks, whenever it is called."""

SCHEDULABLE = {"momentum": fraction, "beta1": fraction, "weight_decay": not_negative}
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

    def state_names_of(self, layout: Layout) -> tuple[str, ...]:
        """The names of the arrays that the state has for these leaves: not all where it treats some as others."""
        return self.state_names

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

    def hyperparameters_at(self, step: int, lr_scale: float = 1.0) -> tuple[Any, ...]:
        """What `update` is given: the hyperparameters of the step, the first being 0, then the values of schedules.

        `lr_scale` is a factor of every learning rate, from outside.
        """
        lr = self.lr * lr_scale if isinstance(self.lr, float) else self.learning_rate(step) * lr_scale
        if not self._scheduled:
            return self.hyperparameters(lr, step + 1)
        now = self._at(step)
        return (*now.hyperparameters(lr, step + 1), *(now._value(name, lr) for name in self._scheduled))

    def at_step(self, hyperparameters: tuple[Any, ...]) -> tuple[Self, tuple[Any, ...]]:
        """The optimizer with the numbers of a step in the place of schedules, and the other hyperparameters."""
        names = self._scheduled
        if not names:
            return self, hyperparameters
        values = hyperparameters[-len(names) :]
        return self._with(**dict(zip(names, values, strict=True))), hyperparameters[: -len(names)]

    @cached_property
    def _scheduled(self) -> tuple[str, ...]:
        """The options, besides the learning rate, of which `update` is given the number of the step."""
        return tuple(name for name in SCHEDULABLE if isinstance(getattr(self, name, None), Schedule))

    def _value(self, name: str, lr: float) -> float:
        """That number, the optimizer being that of the step."""
        value: float = getattr(self, name)
        return value

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

    def by_rows(self, layout: Layout, state: State, tables: Collection[str]) -> tuple[Layout | None, ...]:
        """The layout of each array of the state; or None, where nothing in it belongs to one of the `tables`.

        Raises OptionError where rows of these that have no gradient may not be left out of a step.
        """
        raise OptionError(
            f"{self} moves rows of {', '.join(tables)} that a batch does not have, or looks at all of them, which "
            "Embedding(sparse=True) spares: take one that moves each element by its own gradient and state, as bp.Adam "
            'does, for the tables alone by bp.Grouped(..., groups={"*.table": bp.Adam()}), or leave sparse out'
        )

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

    @cached_property
    def _scheduled(self) -> tuple[str, ...]:
        """As of `Optimizer`, and last the weight decay, where there is any: its number is `decay_factor`."""
        names = tuple(name for name in ("momentum", "beta1") if isinstance(getattr(self, name, None), Schedule))
        return (*names, "weight_decay") if self.weight_decay else names

    def _value(self, name: str, lr: float) -> float:
        """decay_factor is 1 - lr weight_decay."""
        value = super()._value(name, lr)
        return 1.0 - lr * value if name == "weight_decay" else value

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
        rule = self.elementwise_step if self._scheduled else self.elementwise
        theta, *moved = backend.map_vector(rule, 1 + len(state), (theta, *state, grad), pieces, donate)
        return theta, tuple(moved)

    def by_rows(self, layout: Layout, state: State, tables: Collection[str]) -> tuple[Layout | None, ...]:
        own = type(self).update is not ElementwiseOptimizer.update or not self.traceable
        return super().by_rows(layout, state, tables) if own else (layout,) * len(state)

    def elementwise_step(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        """elementwise_step(b, theta, *state, grad, *numbers) -> theta, *state: weight decay, then `elementwise`."""
        now, args = self.at_step(args)
        if self.weight_decay:
            decay_factor: Any = now.weight_decay
            theta = decay_factor * theta
        return now.elementwise(b, theta, *args)
