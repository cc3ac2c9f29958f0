r"""What all losses share: a sum over rows, divided by the whole batch's weight, so that blocks of rows add up.

    loss(run, output, target, weight, total) -> value, d_output

`weight` has one entry a row (None: all 1) and `total` is their sum over the batch, of which these rows may be a part.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from bpnet.backends.base import Array, Backend
from bpnet.layer import Run, Shape, kernel
from bpnet.options import choice
from bpnet.registry import Registered


@dataclass(frozen=True, repr=False)
class Loss(Registered, kind="loss"):
    """Base of the losses.

    `reduction` is what becomes of the rows of a batch: their "mean", by weight, or their "sum".  A row's own loss is
    the mean over its outputs in both, as in Keras.  `bp.row_losses` gives one number a row (elsewhere "none").
    """

    reduction: str = field(default="mean", kw_only=True, repr=False)

    needs: ClassVar[tuple[str, ...]] = ("__call__",)

    labels: ClassVar[bool] = False
    """Whether targets may be whole numbers that name classes."""
    probabilities: ClassVar[bool] = False
    """Whether targets must lie in 0 ... 1."""
    distributions: ClassVar[bool] = False
    """Whether the targets of a row must add up to 1."""
    least: ClassVar[float] = -math.inf
    """The smallest target; with `positive`, targets are above it."""
    positive: ClassVar[bool] = False
    logits: ClassVar[bool] = False
    """Whether outputs are logits, of which the loss makes probabilities itself."""
    predicts: ClassVar[bool] = True
    """Whether an output says what the target is, so that the two can be compared: see `prediction`."""
    boundary: ClassVar[float | None] = None
    """The output above which the prediction is a target above 1/2; a row is right where all its outputs are."""

    def __post_init__(self) -> None:
        self._check(reduction=lambda what, value: choice(what, value, ("mean", "sum")))

    def __repr__(self) -> str:
        """The options that are not as they are without a word."""
        shown = [f"{f.name}={value!r}" for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        """sum over rows of weight l(output, target) / total, and its derivative with respect to `output`.

        A row of weight 0 costs nothing and has the derivative 0, whatever its output, even one that is infinite.
        """
        raise NotImplementedError

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        """l(output, target) of every row, a vector."""
        parts = [(output[i : i + 1, ...], target[i : i + 1, ...]) for i in range(output.shape[0])]
        return run.xp.stack([self(run, some, wanted, None, 1.0)[0] for some, wanted in parts])

    def total(self, weight: Any) -> Any:
        """What the sum over a batch whose weights add up to `weight` is divided by."""
        return 1.0 if self.reduction == "sum" else weight

    def target_shape(self, out_shape: Shape) -> Shape:
        """Shape of one row's target for one row's output of `out_shape`; raises ShapeError where that does not fit."""
        return out_shape

    @property
    def single(self) -> "Loss":
        """The loss of one network: itself, or that of each member where it is of several side by side (`Members`)."""
        return self

    def pooled(self, b: Backend, output: Array) -> Array:
        """The output as one of `single`: what several networks side by side say on average."""
        return output

    def prediction(self, b: Backend, output: Array) -> Array:
        """What an output says of the target, in the target's own unit: probabilities of classes, the mean of a count.

        That is what metrics compare with the target.
        """
        return output

    def average(self, b: Backend, outputs: Array) -> Array:
        """Of outputs (rows, k, ...) of k networks that output whose prediction is the mean of theirs, (rows, ...)."""
        return b.xp.mean(outputs, axis=1)

    def correct(self, run: Run, output: Array, target: Array) -> Array | None:
        """For every row whether the prediction is right, 0 or 1 of the output's type; None where meaningless."""
        if self.boundary is None:
            return None
        same = (output > self.boundary) == (target > 0.5)
        return run.xp.astype(run.xp.all(same, axis=tuple(range(1, output.ndim))), output.dtype)


def log_mean_exp(b: Backend, x: Array) -> Array:
    """log of the mean of exp(x) over the axis 1, the largest x subtracted first."""
    xp = b.xp
    top = xp.maximum(xp.max(x, axis=1, keepdims=True), float(xp.finfo(x.dtype).min))
    return xp.squeeze(top, axis=1) + xp.log(xp.mean(xp.exp(x - top), axis=1))


def row_weights(run: Run, like: Array, weight: Array | None, total: Any, outputs: int) -> Any:
    """The factor of every entry of a loss that averages over `outputs` values: weight / (total outputs)."""
    scale = 1.0 / (total * outputs)
    if weight is None:
        return scale
    return run.xp.reshape(weight, (weight.shape[0],) + (1,) * (like.ndim - 1)) * scale


class ElementwiseLoss(Loss):
    """Base of the losses that are a mean over outputs, each with a target of its own: `value` and `derivative` of one.

    Weights, and the division by their sum and by the number of outputs, are put around them here.
    """

    needs = ("value", "derivative")
    harmless: ClassVar[float | None] = None
    """An output at which all is finite, whatever the target; None where an output that equals the target is one."""

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        """l(output, target) of every element, by elementwise operations."""
        raise NotImplementedError

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        """dl/doutput of every element."""
        raise NotImplementedError

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        factor = row_weights(run, output, weight, total, math.prod(output.shape[1:]))
        if weight is not None:  # of a row that doesn't count, any output is as good as one that is not finite
            output = run.xp.where(factor > 0.0, output, target if self.harmless is None else self.harmless)
        return elementwise_loss(run, self, output, target, factor)

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        return run.xp.mean(self.value(run.backend, output, target), axis=tuple(range(1, output.ndim)))


@kernel
def elementwise_loss(run: Run, f: ElementwiseLoss, output: Array, target: Array, factor: Any) -> tuple[Array, Array]:
    """The sum of factor l(output, target), and factor dl/doutput.

    `factor` is a number, or an array (rows, 1, ...) with one for every row.
    """
    values, dy = f.value(run.backend, output, target), f.derivative(run.backend, output, target)
    return run.xp.sum(values * factor), dy * factor


class RowLoss(Loss):
    """Base of the losses that look at a row's outputs together: `row_values`.  Weights are put around it here."""

    needs = ("row_values",)

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        """Numbers, of the shape (rows, ..., 1), that add up to l(output, target) of every row; and dl/doutput.

        The derivative has the entries of `output` in their order, in its shape or another of as many axes as the
        numbers have: so both come of one fused kernel where a loss sees its outputs in groups.
        """
        raise NotImplementedError

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        xp, (values, dy) = run.xp, self.row_values(run, output, target)
        factor = row_weights(run, values, weight, total, 1)  # before the sum, which may be too large
        values, dy = values * factor, dy * factor
        if weight is not None:  # 0 times what is not finite is of a row that doesn't count
            values, dy = xp.where(factor > 0.0, values, 0.0), xp.where(factor > 0.0, dy, 0.0)
        return xp.sum(values), xp.reshape(dy, output.shape)

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        values = run.xp.reshape(self.row_values(run, output, target)[0], (output.shape[0], -1))
        return run.xp.sum(values, axis=1)
