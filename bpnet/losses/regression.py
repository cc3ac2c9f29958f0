"""Losses of numbers, by how far the output is off: squared, absolute, in between, and to one side.

e = output - target throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError, ShapeError
from bpnet.layer import Run, Shape
from bpnet.losses.base import ElementwiseLoss, RowLoss
from bpnet.options import number_or_numbers, numbers, positive


@dataclass(frozen=True, repr=False)
class MeanSquaredError(ElementwiseLoss):
    """l = mean over outputs of (e / scale)**2; dl/doutput = 2 e / scale**2 / outputs.

    `scale` is a number, or one for every output, such as the targets' deviations: then outputs count alike however
    large their targets are, and the loss is a share of the variance.
    """

    scale: float | Sequence[float] = 1.0

    names = {"mean_squared_error": {}, "mse": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(scale=number_or_numbers("scale", self.scale, 0.0, math.inf, closed="neither"))

    def target_shape(self, out_shape: Shape) -> Shape:
        if isinstance(self.scale, tuple) and len(self.scale) != out_shape[-1]:
            raise ShapeError(
                f"scale has {len(self.scale)} numbers, but the network gives {out_shape} per row: expected one for "
                "every output, or one number"
            )
        return out_shape

    def _scaled(self, b: Backend, error: Array) -> Array:
        scale: Any = self.scale
        if scale == 1.0:
            return error
        return error / (b.constants(scale, error) if isinstance(scale, tuple) else scale)

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        error = self._scaled(b, output - target)
        return error * error

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return 2.0 * self._scaled(b, self._scaled(b, output - target))


@dataclass(frozen=True, repr=False)
class MeanAbsoluteError(ElementwiseLoss):
    """l = mean over outputs of |e|; dl/doutput = sign(e) / outputs, 0 where e is.

    It is least where the output is the median of the targets.
    """

    names = {"mean_absolute_error": {}, "mae": {}}

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        return b.xp.abs(output - target)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return b.xp.sign(output - target)


@dataclass(frozen=True, repr=False)
class Huber(ElementwiseLoss):
    """l = mean over outputs of e**2 / 2 where |e| <= delta, else delta (|e| - delta / 2) (Huber 1964).

    dl/doutput = e, but between -delta and delta, over the number of outputs.
    """

    delta: float = 1.0

    names = {"huber": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(delta=positive)

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        size = b.xp.abs(output - target)
        near = b.xp.minimum(size, self.delta)
        return near * (size - 0.5 * near)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return b.xp.minimum(b.xp.maximum(output - target, -self.delta), self.delta)


@dataclass(frozen=True, repr=False)
class LogCosh(ElementwiseLoss):
    """l = mean over outputs of log cosh e; dl/doutput = tanh(e) / outputs.

    About e**2 / 2 of small errors and |e| - log 2 of large ones.  Of small a = |e| it is written with
    cosh a - 1 = exp(a) (1 - exp(-a))**2 / 2, which loses no digits.
    """

    names = {"log_cosh": {}}

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        xp, a = b.xp, b.xp.abs(output - target)
        m = xp.expm1(-a)
        near = xp.log1p(0.5 * m * m * xp.exp(xp.minimum(a, 1.0)))
        return xp.where(a < 1.0, near, a + (xp.log1p(xp.exp(-2.0 * a)) - math.log(2.0)))

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return b.xp.tanh(output - target)


@dataclass(frozen=True, repr=False)
class Quantile(RowLoss):
    """l = mean over targets and quantiles q of q (t - y) where t > y, else (1 - q) (y - t) (Koenker and Bassett 1978).

    dl/dy = -q where t > y, 1 - q where t < y, 0 where equal, over the number of outputs.  It is least where y is the
    q-quantile of the targets.  Several quantiles are learnt at once: a row has an output for each of them, for each of
    its targets in turn: (t_0 q_0, t_0 q_1, ..., t_1 q_0, ...).
    """

    quantiles: Sequence[float] = (0.5,)

    names = {"quantile": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(quantiles=numbers("quantiles", self.quantiles, 0.0, 1.0, closed="neither"))
        if tuple(sorted(set(self.quantiles))) != self.quantiles:
            raise OptionError(f"quantiles is {self.quantiles}; expected different ones, the smallest first")

    def target_shape(self, out_shape: Shape) -> Shape:
        count = len(self.quantiles)
        if len(out_shape) != 1 or out_shape[0] % count:
            raise ShapeError(
                f"{self} needs {count} outputs for each target, but the network gives {out_shape} per row: end it "
                f"with Dense({count}) for one target"
            )
        return (out_shape[0] // count,)

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        xp, (rows, width) = run.xp, output.shape
        q = run.backend.constants(self.quantiles, output)
        shape = rows, width // len(self.quantiles), len(self.quantiles)
        error = xp.expand_dims(target, axis=2) - xp.reshape(output, shape)
        above = xp.astype(error > 0.0, output.dtype)
        slope = above * (-q) + xp.astype(error < 0.0, output.dtype) * (1.0 - q)
        value = xp.sum(xp.maximum(q * error, (q - 1.0) * error), axis=2, keepdims=True)
        return value * (1.0 / width), slope * (1.0 / width)

    def prediction(self, b: Backend, output: Array) -> Array:
        """The quantile that is nearest to the median, for each target."""
        return self.quantile(b, output, min(self.quantiles, key=lambda q: abs(q - 0.5)))

    def quantile(self, b: Backend, output: Array, q: float) -> Array:
        """The outputs for the quantile q, one for each target."""
        count = len(self.quantiles)
        each = b.xp.reshape(output, (output.shape[0], output.shape[1] // count, count))
        return each[:, :, self.quantiles.index(q)]
