r"""Loss functions: each one's value, and its derivative with respect to the network's output.

A loss is a sum over rows divided by the whole batch's weight, so that blocks of rows add up:

    loss(run, output, target, weight, total) -> value, d_output

`weight` has one entry a row (None: all 1) and `total` is their sum over the batch, of which these rows may be a part.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from bpnet.backends.base import Array, Backend
from bpnet.errors import ShapeError
from bpnet.layer import Run, Shape, kernel
from bpnet.layers.activation import sigmoid
from bpnet.registry import Registered


class Loss(Registered, kind="loss"):
    """Base of the losses."""

    needs: ClassVar[tuple[str, ...]] = ("__call__",)

    labels: ClassVar[bool] = False
    """Whether targets may be whole numbers that name classes."""
    probabilities: ClassVar[bool] = False
    """Whether targets must lie in 0 ... 1."""
    logits: ClassVar[bool] = False
    """Whether outputs are logits, of which the loss makes probabilities itself."""

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        """sum over rows of weight l(output, target) / total, and its derivative with respect to `output`.

        A row of weight 0 costs nothing and has the derivative 0, whatever its output, even one that is infinite.
        """
        raise NotImplementedError

    def target_shape(self, out_shape: Shape) -> Shape:
        """Shape of one row's target for one row's output of `out_shape`."""
        return out_shape

    def correct(self, run: Run, output: Array, target: Array) -> Array | None:
        """For every row whether the prediction is right, 0 or 1 of the output's type; None where meaningless."""
        return None


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
    boundary: ClassVar[float | None] = None
    """The output above which the prediction is a target above 1/2; a row is right where all its outputs are."""

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        """l(output, target) of every element, by elementwise operations."""
        raise NotImplementedError

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        """dl/doutput of every element."""
        raise NotImplementedError

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        factor = row_weights(run, output, weight, total, math.prod(output.shape[1:]))
        if weight is not None:  # of a row that doesn't count, the target is as good as an output that is not finite
            output = run.xp.where(factor > 0.0, output, target)
        return elementwise_loss(run, self, output, target, factor)

    def correct(self, run: Run, output: Array, target: Array) -> Array | None:
        if self.boundary is None:
            return None
        same = (output > self.boundary) == (target > 0.5)
        return run.xp.astype(run.xp.all(same, axis=tuple(range(1, output.ndim))), output.dtype)


@kernel
def elementwise_loss(run: Run, f: ElementwiseLoss, output: Array, target: Array, factor: Any) -> tuple[Array, Array]:
    """The sum of factor l(output, target), and factor dl/doutput.

    `factor` is a number, or an array (rows, 1, ...) with one for every row.
    """
    values, dy = f.value(run.backend, output, target), f.derivative(run.backend, output, target)
    return run.xp.sum(values * factor), dy * factor


@dataclass(frozen=True)
class MeanSquaredError(ElementwiseLoss):
    """l = mean over outputs of (output - target)**2; dl/doutput = 2 (output - target) / outputs."""

    names = {"mean_squared_error": {}, "mse": {}}

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        error = output - target
        return error * error

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return 2.0 * (output - target)


@dataclass(frozen=True)
class BinaryCrossEntropy(ElementwiseLoss):
    """l = -mean over outputs of t log p + (1 - t) log(1 - p), of probabilities p; dl/dp = (p - t) / (p (1 - p)).

    Logarithms are kept above -100, and p (1 - p) above 1e-12, so that a certain and wrong p gives a finite loss.
    From logits, `binary_cross_entropy_with_logits` is exact everywhere.
    """

    names = {"binary_cross_entropy": {}}
    probabilities = True
    boundary = 0.5

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        xp = b.xp
        log_p, log_q = xp.maximum(xp.log(output), -100.0), xp.maximum(xp.log1p(-output), -100.0)
        return (target - 1.0) * log_q - target * log_p

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return (output - target) / b.xp.maximum(output * (1.0 - output), 1e-12)


@dataclass(frozen=True)
class BinaryCrossEntropyWithLogits(ElementwiseLoss):
    """l = mean over outputs of log(1 + exp(z)) - t z, of logits z; dl/dz = sigmoid(z) - t.

    The same as binary_cross_entropy of sigmoid(z), exact for logits of any size: with |z| put outside the logarithm it
    is log(1 + exp(-|z|)) + |z| (1 - t where z > 0, else t).
    """

    names = {"binary_cross_entropy_with_logits": {}}
    probabilities = True
    boundary = 0.0
    logits = True

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        xp, size = b.xp, b.xp.abs(output)
        beyond = xp.abs(xp.astype(output > 0.0, target.dtype) - target) * size
        beyond = xp.where(beyond >= 0.0, beyond, 0.0)  # 0 times infinity is of a logit that is right
        return xp.log1p(xp.exp(-size)) + beyond

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return sigmoid(b, output) - target


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """l = log sum_k exp(z_k) - sum_k t_k z_k, of logits z; dl/dz = softmax(z) - t.

    `t` is one-hot (rows, classes), or any probabilities that add up to 1; or whole numbers (rows,) that name the class.
    A logit of -inf switches its class off: where t is 0, it adds nothing.
    """

    names = {"cross_entropy": {}}
    labels = True
    probabilities = True
    logits = True

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        return softmax_cross_entropy(run, output, target, weight, total)

    def target_shape(self, out_shape: Shape) -> Shape:
        if len(out_shape) != 1 or out_shape[0] < 2:
            raise ShapeError(
                f"cross_entropy needs one output per class, two or more, but the network gives {out_shape} per row: "
                "end it with Dense(classes), after Flatten() where rows have several axes; or use "
                "binary_cross_entropy_with_logits for one output"
            )
        return out_shape

    def correct(self, run: Run, output: Array, target: Array) -> Array | None:
        xp = run.xp
        label = target if target.ndim == 1 else xp.argmax(target, axis=1)
        guess = xp.argmax(output, axis=1)
        return xp.astype(guess == xp.astype(label, guess.dtype), output.dtype)


@kernel
def softmax_cross_entropy(run: Run, z: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
    """Value and derivative of the cross-entropy of softmax(z), the largest logit of every row subtracted first."""
    xp = run.xp
    if target.ndim == 1:
        classes = xp.arange(z.shape[1], dtype=target.dtype, device=run.backend.device(z))
        target = xp.astype(xp.expand_dims(target, axis=1) == classes, z.dtype)
    shifted = z - xp.max(z, axis=1, keepdims=True)
    along = target * shifted
    along = xp.where(along <= 0.0, along, 0.0)  # 0 times -inf is of a class that is switched off
    e = xp.exp(shifted)
    norm = xp.sum(e, axis=1, keepdims=True)
    mass = xp.sum(target, axis=1, keepdims=True)
    loss = mass * xp.log(norm) - xp.sum(along, axis=1, keepdims=True)
    factor = row_weights(run, z, weight, total, 1)
    value, dz = loss * factor, (e * (mass / norm) - target) * factor
    if weight is not None:  # 0 times what is not finite is of a row that doesn't count
        value, dz = xp.where(factor > 0.0, value, 0.0), xp.where(factor > 0.0, dz, 0.0)
    return xp.sum(value), dz
