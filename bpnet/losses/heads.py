"""A sum of losses, each of its own columns of one output."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError, ShapeError, kind_of
from bpnet.layer import Run, Shape
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss, CrossEntropy, one_hot
from bpnet.losses.regression import MeanSquaredError
from bpnet.options import number, whole
from bpnet.registry import Registered, resolve


class _Part(Registered, kind="head"):
    """The family of what files call heads."""


@dataclass(frozen=True)
class Head(_Part):
    """One of the losses of `Heads`: of so many `outputs`, counting `weight` times."""

    loss: Loss
    outputs: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._set(loss=resolve(Loss, "the loss of a Head", self.loss), outputs=whole("outputs", self.outputs, 1))
        self._set(weight=number("weight", self.weight, 0.0, math.inf, closed="left"))

    @property
    def targets(self) -> int:
        """Columns of the target: one for the label of a class."""
        if self.loss.labels:
            self.loss.target_shape((self.outputs,))
            return 1
        return self.loss.target_shape((self.outputs,))[0]


@dataclass(frozen=True, init=False, repr=False)
class Heads(Loss):
    """l = sum over heads of weight l_head, each of its own columns of the output: Heads(Head("mse", 1), ...).

    The first head has the first columns of the output, and of y; and so on.  A loss of labels has one column of y,
    with the label as a number; any other as many as its loss takes for so many outputs.
    """

    heads: tuple[Head, ...]
    star = "heads"
    example = (Head(MeanSquaredError(), 5), Head(CrossEntropy(), 7))
    predicts = False

    def __init__(self, *heads: Head, reduction: str = "mean") -> None:
        if not heads:
            raise OptionError("Heads() has no heads; expected at least one Head(loss, outputs)")
        for i, head in enumerate(heads):
            if not isinstance(head, Head):
                raise ArgumentError(f"head {i} of Heads is {kind_of(head)}; expected a Head(loss, outputs)")
            if isinstance(head.loss, Heads):
                raise OptionError(f"the loss of head {i} is Heads itself: name its heads one after the other")
        self._set(heads=heads, reduction=reduction)
        self.__post_init__()

    def __repr__(self) -> str:
        reduction = "" if self.reduction == "mean" else f", reduction={self.reduction!r}"
        return f"Heads({', '.join(map(repr, self.heads))}{reduction})"

    @property
    def parts(self) -> list[tuple[Head, slice, slice]]:
        """Every head, with its columns of the output and of the target."""
        columns = []
        for sizes in ([head.outputs for head in self.heads], [head.targets for head in self.heads]):
            ends = list(accumulate(sizes))
            columns.append([slice(end - size, end) for size, end in zip(sizes, ends, strict=True)])
        return list(zip(self.heads, *columns, strict=True))

    def target_shape(self, out_shape: Shape) -> Shape:
        outputs = sum(head.outputs for head in self.heads)
        if out_shape != (outputs,):
            raise ShapeError(f"the heads have {outputs} outputs together, but the network gives {out_shape} per row")
        return (sum(head.targets for head in self.heads),)

    def of_heads(self, run: Run, output: Array, target: Array) -> list[tuple[Head, Array, Array]]:
        """Every head, with its part of the output, and of the target as its loss takes it."""
        found = []
        for head, mine, wanted in self.parts:
            some, y = output[:, mine], target[:, wanted]
            if isinstance(head.loss, ClassLoss) and head.loss.labels:
                y = one_hot(run, run.xp.reshape(y, (y.shape[0],)), some)
            found.append((head, some, y))
        return found

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        values, slopes = [], []
        for head, some, y in self.of_heads(run, output, target):
            value, dy = head.loss(run, some, y, weight, total)
            values.append(value * head.weight)
            slopes.append(dy * head.weight)
        return sum(values[1:], values[0]), run.xp.concat(slopes, axis=1) if len(slopes) > 1 else slopes[0]

    def average(self, b: Backend, outputs: Array) -> Array:
        return b.xp.concat([head.loss.average(b, outputs[:, :, mine]) for head, mine, _ in self.parts], axis=1)

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        found = [head.loss.rows(run, some, y) * head.weight for head, some, y in self.of_heads(run, output, target)]
        return sum(found[1:], found[0])
