"""Terms that a training adds to the loss: of parameters alone, each with its derivative beside it.

They belong to the step, whatever is in the batch: `Trainer(..., penalties=[bp.L2(1e-4)])`.  The loss of a step has them
in it, that of `evaluate` has not.  What is asked of a layer's output is a layer: `bp.ActivityPenalty`.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, ClassVar, Self

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError, kind_of, shown
from bpnet.layout import Layout, Slot
from bpnet.options import few, flag, not_negative
from bpnet.registry import Registered, instance
from bpnet.schedules import Schedule, or_schedule


@dataclass(frozen=True)
class Penalty(Registered, kind="penalty"):
    """Base of the penalties: `value` of one parameter array, and its `derivative`.

    `of` says which parameters they are of: a pattern of their names in the layout, as "0.*" or "*.weight"; without it,
    those to which weight decay applies: weights, but not biases and scales.  The strength may be a schedule, in whose
    place `value` and `derivative` see the number of the step.

    `per_row` divides it by the number of rows in the batch, or by the sum of their weights: over an epoch the penalty
    then counts as much as one row, whatever the size of the batches, as `alpha` does in scikit-learn.
    """

    strength: float | Schedule
    of: str | None = None
    per_row: bool = field(default=False, kw_only=True)

    needs: ClassVar[tuple[str, ...]] = ("value", "derivative")
    entrywise: ClassVar[bool] = False
    """Whether it is a sum over entries, so that several parameters are as good as one vector of them all."""
    schedulable: ClassVar[Mapping[str, Callable[[str, Any], float]]] = {"strength": not_negative}

    def __post_init__(self) -> None:
        self._check(strength=or_schedule(not_negative), per_row=flag)
        if self.of is not None and not isinstance(self.of, str):
            raise OptionError(f"of is {shown(self.of)}; expected a pattern of parameter names, such as '*.weight'")

    def slots(self, layout: Layout) -> list[Slot]:
        """The parameters that it is of; raises OptionError where there are none."""
        if self.of is None:
            found = [slot for slot in layout.parameters if slot.decay]
        else:
            fits = re.compile(translate(self.of)).match
            found = [slot for slot in layout.parameters if fits(slot.name)]
        if not found:
            names = ", ".join(slot.name for slot in layout.parameters)
            raise OptionError(f"{self} is of no parameter: they are {names}")
        return found

    def at(self, value: Callable[[Any], Any]) -> Self:
        """The penalty with value(strength) for its strength, which under tracing is a symbol."""
        strength = value(self.strength)
        if strength is self.strength:
            return self
        other = copy.copy(self)
        other._set(strength=strength)
        return other

    def value(self, b: Backend, w: Array) -> Array:
        """The penalty of a parameter array, a number."""
        raise NotImplementedError

    def derivative(self, b: Backend, w: Array) -> Array:
        """Its derivative with respect to each entry."""
        raise NotImplementedError


@dataclass(frozen=True)
class L1(Penalty):
    """strength sum |w|; its derivative is strength sign(w).  It drives weights to 0 (Tibshirani 1996)."""

    example = (0.01,)
    entrywise = True

    def value(self, b: Backend, w: Array) -> Array:
        return self.strength * b.xp.sum(b.xp.abs(w))

    def derivative(self, b: Backend, w: Array) -> Array:
        return self.strength * b.xp.sign(w)


@dataclass(frozen=True)
class L2(Penalty):
    """strength / 2 sum w**2; its derivative is strength w, which for SGD is weight decay (Krogh and Hertz 1992)."""

    example = (0.01,)
    entrywise = True

    def value(self, b: Backend, w: Array) -> Array:
        return self.strength * b.xp.sum(w * w) * 0.5

    def derivative(self, b: Backend, w: Array) -> Array:
        return self.strength * w


@dataclass(frozen=True)
class Orthogonality(Penalty):
    """strength / 4 |W^T W - 1|**2, the sum of squares, of a matrix; its derivative is strength W (W^T W - 1).

    Columns become orthogonal and of length 1; of a matrix with more columns than rows, the rows do, with W W^T (Bansal
    et al. 2018).  Of the parameters that are meant, only those of two axes count.
    """

    example = (0.01,)

    def slots(self, layout: Layout) -> list[Slot]:
        found = [slot for slot in super().slots(layout) if len(slot.shape) == 2]
        if not found:
            raise OptionError(f"{self} is of no matrix: of the parameters that it is of, none has two axes")
        return found

    def _off(self, b: Backend, w: Array) -> tuple[Array, bool]:
        """How far the products of columns, or of rows, are from 0 and 1, and whether they are of columns."""
        xp, tall = b.xp, w.shape[0] >= w.shape[1]
        turned = xp.matrix_transpose(w)
        products = xp.matmul(turned, w) if tall else xp.matmul(w, turned)
        index = xp.arange(products.shape[0], dtype=w.dtype, device=b.device(w))
        return products - xp.astype(xp.expand_dims(index, axis=1) == index, w.dtype), tall

    def value(self, b: Backend, w: Array) -> Array:
        off, _ = self._off(b, w)
        return self.strength * b.xp.sum(off * off) * 0.25

    def derivative(self, b: Backend, w: Array) -> Array:
        off, tall = self._off(b, w)
        return self.strength * (b.xp.matmul(w, off) if tall else b.xp.matmul(off, w))


def check_penalties(penalties: Any) -> tuple[Penalty, ...]:
    """The penalties as a tuple; raises ArgumentError where they are none."""
    if not isinstance(penalties, list | tuple):
        raise ArgumentError(f"penalties is {kind_of(penalties)}; expected a list of penalties, such as [bp.L2(1e-4)]")
    penalties = few("penalties", penalties)
    return tuple(instance(Penalty, f"penalties[{i}]", p, "a bpnet penalty") for i, p in enumerate(penalties))


def with_penalties(
    backend: Backend,
    layout: Layout,
    penalties: Sequence[Penalty],
    theta: Array,
    value: Array,
    grad: Array,
    of_step: Callable[[Any], Any],
    rows: Any = 1.0,
) -> tuple[Array, Array]:
    """A loss and its gradient with the penalties on `theta` and theirs; `of_step` gives the numbers of schedules.

    `rows` is the number of rows in the batch, or the sum of their weights.
    """
    for penalty in penalties:
        now, parts, end = penalty.at(of_step), [], 0
        if penalty.per_row:
            now = now.at(lambda strength: strength / rows)
        for part, shape in _places(penalty, penalty.slots(layout)):
            w = theta[part] if len(shape) == 1 else backend.xp.reshape(theta[part], shape)
            value, slope = value + now.value(backend, w), now.derivative(backend, w)
            slope = slope if len(shape) == 1 else backend.xp.reshape(slope, (-1,))
            parts += [grad[end : part.start], grad[part] + slope]
            end = part.stop
        if parts:
            grad = backend.concat([part for part in (*parts, grad[end:]) if part.shape[0]])
    return value, grad


def _places(penalty: Penalty, slots: Sequence[Slot]) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Where in theta the arrays lie that the penalty is to be asked of, and their shapes."""
    if not penalty.entrywise:
        yield from ((slot.part, slot.shape) for slot in slots)
        return
    start = end = slots[0].offset
    for slot in slots:
        if slot.offset != end:
            yield slice(start, end), (end - start,)
            start = slot.offset
        end = slot.part.stop
    yield slice(start, end), (end - start,)
