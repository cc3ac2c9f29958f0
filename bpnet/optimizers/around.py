"""What is put around another optimizer, and changes the gradient that it sees: clipping, noise, sums, sharpness."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError
from bpnet.layout import Layout
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.optimizers.clipping import clip_by_global_norm, norm
from bpnet.options import flag, not_negative, positive, whole
from bpnet.registry import resolve

NOISE = 0x6E6F6973
"""In the key of the noise of gradients, so that it is none that a layer draws."""


class Around(Optimizer):
    """Base of them: all is that of `base` but what a subclass says.

    The state is the subclass's own arrays, one for each of `own_names`, then those of `base`; its hyperparameters
    are (own, those of `base`).
    """

    base: Any
    own_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self._set(base=resolve(Optimizer, "base", self.base))

    @property
    def lr(self) -> Any:  # type: ignore[override]
        return self.base.lr

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        traceable: bool = self.base.traceable
        return traceable

    @property
    def state_names(self) -> tuple[str, ...]:
        return *self.own_names, *self.base.state_names

    def state_names_of(self, layout: Layout) -> tuple[str, ...]:
        return *self.own_names, *self.base.state_names_of(layout)

    def learning_rate(self, step: int) -> float:
        rate: float = self.base.learning_rate(self.inner_step(step))
        return rate

    def inner_step(self, step: int) -> int:
        """How many steps `base` has done before."""
        return step

    def own_hyperparameters(self, step: int) -> tuple[Any, ...]:
        """The subclass's own hyperparameters of a step, the first being 0."""
        return ()

    def hyperparameters_at(self, step: int, lr_scale: float = 1.0) -> tuple[Any, ...]:
        return self.own_hyperparameters(step), self.base.hyperparameters_at(self.inner_step(step), lr_scale)

    def own_init(self, backend: Backend, theta: Array) -> State:
        """The subclass's own state."""
        return tuple(backend.xp.zeros_like(theta) for _ in self.own_names)

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        return *self.own_init(backend, theta), *self.base.init(backend, layout, theta)

    def gradient(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, own: Any, evaluate: Evaluate | None
    ) -> Array:
        """The gradient that `base` is to see in the place of `grad`, given the own hyperparameters."""
        return grad

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        own, inner = hyperparameters
        count = len(self.own_names)

        def seen(at: Array) -> tuple[Array, Array]:
            assert evaluate is not None
            value, grad = evaluate(at)
            return value, self.gradient(backend, layout, at, grad, own, evaluate)

        grad = self.gradient(backend, layout, theta, grad, own, evaluate)
        args = grad, state[count:], inner, None if evaluate is None else seen
        theta, rest = self.base.update(backend, layout, theta, *args)
        return theta, (*state[:count], *rest)

    def evaluation(self, backend: Backend, layout: Layout, theta: Array, state: State) -> Array:
        return self.base.evaluation(backend, layout, theta, state[len(self.own_names) :])

    def restart(self, backend: Backend, layout: Layout, theta: Array, state: State) -> State:
        own, inner = state[: len(self.own_names)], state[len(self.own_names) :]
        return *self.own_restart(backend, theta, own), *self.base.restart(backend, layout, theta, inner)

    def own_restart(self, backend: Backend, theta: Array, own: State) -> State:
        """The subclass's own state where theta has been set."""
        return own


@dataclass(frozen=True)
class Clip(Around):
    """The gradient bounded: each entry to +-`value`, each leaf to a norm of `leaf_norm`, all of it to one of `norm`.

        bp.Clip(bp.Adam(), norm=1.0)

    Bounds are applied in that order; None is none.  A gradient that is too long keeps its direction (Pascanu, Mikolov
    and Bengio 2013), but one whose entries are bounded does not.  `Trainer(clip_norm=...)` is `norm` for any optimizer.
    """

    base: Any
    value: float | None = None
    leaf_norm: float | None = None
    norm: float | None = None

    example = ("sgd", 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {name: getattr(self, name) for name in ("value", "leaf_norm", "norm")}
        if all(limit is None for limit in limits.values()):
            raise OptionError("Clip bounds nothing: give it value=, leaf_norm= or norm=")
        self._check(**{name: positive for name, limit in limits.items() if limit is not None})

    def gradient(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, own: Any, evaluate: Evaluate | None
    ) -> Array:
        if self.value is not None:
            grad = backend.xp.minimum(backend.xp.maximum(grad, -self.value), self.value)
        if self.leaf_norm is not None:
            limit = self.leaf_norm
            grad = backend.concat([clip_by_global_norm(backend, grad[s.part], limit) for s in layout.parameters])
        return grad if self.norm is None else clip_by_global_norm(backend, grad, self.norm)

    def by_rows(self, layout: Layout, state: State, tables: Collection[str]) -> tuple[Layout | None, ...]:
        return self.base.by_rows(layout, state, tables)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Accumulate(Around):
    """A step of `base` after every `steps` batches, along the mean of their gradients, and none in between.

    Schedules of `base` count its own steps.  Buffers, such as running statistics, are updated by every batch.
    Where a large batch merely does not fit in memory, `Trainer(micro_batch=...)` is simpler.
    """

    base: Any
    steps: int

    example = ("sgd", 2)
    own_names = ("mean gradient",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(steps=whole)

    def inner_step(self, step: int) -> int:
        return step // self.steps

    def own_hyperparameters(self, step: int) -> tuple[Any, ...]:
        """1.0 where the optimizer is to do a step, else 0.0."""
        return (float((step + 1) % self.steps == 0),)

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        xp, ((due,), _) = backend.xp, hyperparameters
        mean = state[0] + grad / self.steps
        if type(due) is float and not due:  # else only values tell, and the step is computed in any case
            return theta, (mean, *state[1:])
        moved, (_, *rest) = super().update(backend, layout, theta, mean, state, hyperparameters, evaluate)
        is_due = xp.zeros_like(theta[:1]) + due > 0.5

        def chosen(new: Array, old: Array) -> Array:
            return xp.reshape(xp.where(is_due, new, old), old.shape)

        kept = [chosen(new, old) for new, old in zip(rest, state[1:], strict=True)]
        return chosen(moved, theta), (chosen(xp.zeros_like(mean), mean), *kept)


@dataclass(frozen=True)
class GradientNoise(Around):
    """Normal noise on the gradient, which fades (Neelakantan et al. 2015): it helps deep networks out of bad starts.

        g <- g + sqrt(eta / (1 + t)**gamma) n,       n drawn anew in each step,

    t being 0 in the first step.  The same `seed` draws the same noise on every library, compiled or not.
    """

    base: Any
    eta: float = 0.3
    gamma: float = 0.55
    seed: int = 0

    example = ("sgd",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(eta=positive, gamma=not_negative)
        self._set(seed=whole("seed", self.seed, 0))

    def own_hyperparameters(self, step: int) -> tuple[Any, ...]:
        """The deviation, and the step, of which the noise is drawn."""
        return (self.eta / (1.0 + step) ** self.gamma) ** 0.5, step

    def gradient(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, own: Any, evaluate: Evaluate | None
    ) -> Array:
        deviation, step = own
        noise = backend.normal((self.seed, step, NOISE), grad.shape, grad.dtype, backend.device(grad))
        return grad + deviation * noise


@dataclass(frozen=True)
class SAM(Around):
    """Sharpness-aware minimisation (Foret et al. 2021): the gradient is that uphill of theta, at a distance of `rho`.

        g <- gradient at theta + rho g / |g|,       then a step of `base` from theta along that.

    With `adaptive` (Kwon et al. 2021) the distance is in units of theta: theta + rho theta**2 g / |theta g|.  A step
    costs two passes through the network.
    """

    base: Any = "sgd"
    rho: float = 0.05
    adaptive: bool = False

    names = {"sam": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(rho=positive, adaptive=flag)

    def gradient(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, own: Any, evaluate: Evaluate | None
    ) -> Array:
        if evaluate is None:
            raise ArgumentError("SAM asks for the gradient again: pass `evaluate`, as a trainer and bp.minimize do")
        uphill = theta * grad if self.adaptive else grad
        length = norm(backend, uphill)
        step = self.rho / backend.xp.where(length > 0.0, length, 1.0) * (theta * uphill if self.adaptive else uphill)
        return evaluate(theta + step)[1]

    def by_rows(self, layout: Layout, state: State, tables: Collection[str]) -> tuple[Layout | None, ...]:
        return self.base.by_rows(layout, state, tables)  # type: ignore[no-any-return]
