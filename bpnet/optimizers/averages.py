"""What predicts with an average of the parameters that another optimizer trains."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layout import Layout
from bpnet.optimizers.around import Around
from bpnet.optimizers.base import Evaluate, State
from bpnet.options import fraction, whole


class Average(Around):
    """Base of what predicts with an average of the parameters: a <- (1 - w) a + w theta after each step.

    `predict`, `evaluate` and `parameters` of a trainer are of the average, its `theta` is what is trained; both are
    saved.  The running statistics of batch normalisation are of passes with theta, and differ a little from those of a.
    """

    own_names = ("average of the parameters",)

    def weight(self, step: int) -> float:
        """w after the step, the first being 0."""
        raise NotImplementedError

    def own_hyperparameters(self, step: int) -> tuple[Any, ...]:
        return (self.weight(step),)

    def own_init(self, backend: Backend, theta: Array) -> State:
        return (backend.copy(theta),)

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        ((w,), _) = hyperparameters
        theta, (average, *rest) = super().update(backend, layout, theta, grad, state, hyperparameters, evaluate)
        return theta, ((1.0 - w) * average + w * theta, *rest)

    def evaluation(self, backend: Backend, layout: Layout, theta: Array, state: State) -> Array:
        return state[0]

    def own_restart(self, backend: Backend, theta: Array, own: State) -> State:
        return self.own_init(backend, theta)


@dataclass(frozen=True)
class ExponentialAverage(Average):
    """The network predicts with a running mean of its parameters (Polyak and Juditsky 1992).

        a <- decay a + (1 - decay) theta after each step of `base`, a being theta after the first.

    See `Average` for what that means for a trainer.
    """

    base: Any
    decay: float = 0.999

    example = ("sgd",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(decay=fraction)

    def weight(self, step: int) -> float:
        return 1.0 - self.decay if step else 1.0


@dataclass(frozen=True)
class StochasticAverage(Average):
    """The network predicts with the mean of its parameters at several steps: SWA (Izmailov et al. 2018).

    The mean is of those after start + every, start + 2 every, ... steps of `base`, where one epoch is a good
    `every`, with a learning rate that stays high; before, it is theta.

    See `Average` for what that means for a trainer.
    """

    base: Any
    start: int
    every: int = 1

    example = ("sgd", 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(start=whole("start", self.start, 0), every=whole("every", self.every))

    def weight(self, step: int) -> float:
        count, between = divmod(step + 1 - self.start, self.every)
        if count < 1:
            return 1.0
        return 0.0 if between else 1.0 / count
