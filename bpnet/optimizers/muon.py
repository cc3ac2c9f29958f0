"""Muon: hidden matrices step by what is orthogonal of their momentum, the rest by AdamW."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError, kind_of
from bpnet.layout import Layout, Slot
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.optimizers.clipping import norm
from bpnet.optimizers.groups import Part, part_of, together
from bpnet.options import few, flag, fraction, not_negative, positive, whole
from bpnet.registry import resolve
from bpnet.schedules import Schedule, or_schedule, rate

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the polynomial a s + b s**3 + c s**5 that takes singular values of 0 to 1, five times over, to about 1."""


@dataclass(frozen=True)
class Muon(Optimizer):
    """Momentum, orthogonalised by Newton-Schulz iterations, for matrices between hidden layers (Jordan et al. 2024).

        m <- momentum m + (1 - momentum) g,           u = (1 - momentum) g + momentum m, or m without `nesterov`,
        W <- (1 - lr weight_decay) W - lr sqrt(max(1, columns / rows)) U V^T,

    where U S V^T is u, nearly: of X = u / max(|u|, epsilon) it is found by `iterations` times

        A = X X^T,       X <- a X + (b A + c A A) X       with (a, b, c) = (3.4445, -4.775, 2.0315),

    which leaves singular values between about 0.7 and 1.2.  `match_rms` has the factor 0.2 sqrt(max(rows, columns)) in
    the place of the first root, with which AdamW's learning rates and decay fit (Liu et al. 2025).

    All other parameters are updated by `rest`, to which `lr` does not apply.  The matrices are those of all weights but
    the first and the last, in the order of the network, or where `hidden` has patterns (as of `Grouped`), all that fit
    one; OptionError where none does.
    """

    lr: float | Schedule = 0.02
    momentum: float | Schedule = 0.95
    nesterov: bool = True
    weight_decay: float | Schedule = 0.0
    iterations: int = 5
    epsilon: float = 1e-7
    match_rms: bool = False
    rest: Any = "adamw"
    hidden: tuple[str, ...] | None = None

    names = {"muon": {}}

    def __post_init__(self) -> None:
        self._check(lr=rate, momentum=or_schedule(fraction), nesterov=flag, weight_decay=or_schedule(not_negative))
        self._check(iterations=whole, epsilon=positive, match_rms=flag)
        self._set(rest=resolve(Optimizer, "rest", self.rest))
        if self.hidden is not None:
            if not isinstance(self.hidden, tuple | list) or not all(isinstance(text, str) for text in self.hidden):
                raise ArgumentError(f"hidden is {kind_of(self.hidden)}; expected patterns of names: ('1.weight',)")
            self._set(hidden=tuple(few("hidden", self.hidden)))

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        traceable: bool = self.rest.traceable
        return traceable

    @property
    def state_names(self) -> tuple[str, ...]:
        return "momentum m", *self.rest.state_names

    def state_names_of(self, layout: Layout) -> tuple[str, ...]:
        matrices, rest = self.parts(layout)
        names = () if rest is None else self.rest.state_names_of(rest.layout)
        return names if matrices is None else ("momentum m", *names)

    def hyperparameters_at(self, step: int, lr_scale: float = 1.0) -> tuple[Any, ...]:
        return super().hyperparameters_at(step, lr_scale), self.rest.hyperparameters_at(step, lr_scale)

    def parts(self, layout: Layout) -> tuple[Part | None, Part | None]:
        """The hidden matrices, and the rest; found once for a layout."""
        key = "Muon", self.hidden
        found = layout.parted.get(key)
        if found is None:
            found = layout.parted.setdefault(key, self._parts(layout))
        matrices, rest = found
        return matrices, rest

    def _parts(self, layout: Layout) -> list[Part | None]:
        weights = [slot for slot in layout.parameters if slot.decay and len(slot.shape) == 2]
        chosen = weights[1:-1]
        if self.hidden is not None:
            chosen = [s for s in layout.parameters if any(fnmatchcase(s.name, pattern) for pattern in self.hidden)]
            if not chosen:
                known = ", ".join(slot.name for slot in layout.parameters)
                raise OptionError(f"no parameter is called like hidden, {self.hidden}; there are {known}")
            for slot in chosen:
                if len(slot.shape) != 2:
                    raise OptionError(f"hidden has {slot.name}, which is no matrix, but of the shape {slot.shape}")
        names = {slot.name for slot in chosen}
        return [part_of(layout, chosen), part_of(layout, [s for s in layout.parameters if s.name not in names])]

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        matrices, rest = self.parts(layout)
        state: State = ()
        if matrices is not None:
            state += (backend.xp.zeros_like(matrices.of(backend, theta)),)
        if rest is not None:
            state += self.rest.init(backend, rest.layout, backend.copy(rest.of(backend, theta)))
        return state

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        matrices, rest = self.parts(layout)
        own, others = hyperparameters
        parts, moved, kept = [], [], []
        if matrices is not None:
            now, (lr,) = self.at_step(own)
            momentum: Any = now.momentum
            g, before = matrices.of(backend, grad), matrices.of(backend, theta)
            m = momentum * state[0] + (1.0 - momentum) * g
            u = (1.0 - momentum) * g + momentum * m if self.nesterov else m
            steps = [self._step(backend, slot, u[slot.part]) for slot in matrices.layout.parameters]
            decayed = (1.0 - lr * now.weight_decay) * before if self.weight_decay else before
            parts.append(matrices)
            moved.append(decayed - lr * (steps[0] if len(steps) == 1 else backend.concat(steps)))
            kept.append(m)
            state = state[1:]
        if rest is not None:
            args = rest.of(backend, theta), rest.of(backend, grad), state, others
            theta, state = self.rest.update(backend, rest.layout, *args)
            parts.append(rest)
            moved.append(theta)
            kept += state
        return together(backend, parts, moved), tuple(kept)

    def by_rows(self, layout: Layout, state: State, tables: Collection[str]) -> tuple[Layout | None, ...]:
        matrices, rest = self.parts(layout)
        if rest is None or not set(tables) <= {slot.name for slot in rest.layout.parameters}:
            return super().by_rows(layout, state, tables)
        own: tuple[None, ...] = () if matrices is None else (None,)
        return *own, *self.rest.by_rows(rest.layout, state[len(own) :], tables)

    def _step(self, backend: Backend, slot: Slot, u: Array) -> Array:
        """What is orthogonal of u, scaled, as a vector."""
        rows, columns = slot.shape
        factor = 0.2 * math.sqrt(max(rows, columns)) if self.match_rms else math.sqrt(max(1.0, columns / rows))
        matrix = backend.xp.reshape(u, slot.shape)
        return factor * backend.xp.reshape(orthogonalised(backend, matrix, self.iterations, self.epsilon), (-1,))


def orthogonalised(backend: Backend, x: Array, iterations: int, epsilon: float) -> Array:
    """About U V^T of a matrix x = U S V^T, as `Muon` says; its smaller side is that of the products X X^T."""
    xp, (a, b, c) = backend.xp, COEFFICIENTS
    x = x / xp.maximum(norm(backend, x), epsilon)
    tall = x.shape[0] > x.shape[1]
    x = xp.matrix_transpose(x) if tall else x
    for _ in range(iterations):
        square = xp.matmul(x, xp.matrix_transpose(x))
        x = a * x + xp.matmul(b * square + c * xp.matmul(square, square), x)
    return xp.matrix_transpose(x) if tall else x
