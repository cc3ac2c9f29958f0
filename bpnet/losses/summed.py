"""Losses as scikit-learn's perceptrons have them: sums over a row's outputs where bpnet's others are means."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layer import Run
from bpnet.losses.base import ElementwiseLoss, elementwise_loss, row_weights
from bpnet.losses.binary import BinaryCrossEntropyWithLogits
from bpnet.losses.likelihood import Poisson


class _Summed(ElementwiseLoss):
    """Of a sum over outputs."""

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        factor = row_weights(run, output, weight, total, 1)
        if weight is not None:
            output = run.xp.where(factor > 0.0, output, target if self.harmless is None else self.harmless)
        return elementwise_loss(run, self, output, target, factor)

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        return run.xp.sum(self.value(run.backend, output, target), axis=tuple(range(1, output.ndim)))


@dataclass(frozen=True, repr=False)
class _LabelLogLoss(_Summed, BinaryCrossEntropyWithLogits):
    """l = sum over outputs of log(1 + exp(z)) - t z, of logits z; dl/dz = sigmoid(z) - t."""


@dataclass(frozen=True, repr=False)
class _SquaredError(_Summed):
    """l = mean over outputs of e**2 / 2, with e = output - target, and for its derivative e.

    That is of the sum over outputs: scikit-learn reports one and descends along the other.  With one output they agree.
    """

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        error = output - target
        return error * error * (0.5 / output.shape[1])

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return output - target


@dataclass(frozen=True, repr=False)
class _PoissonDeviance(_Summed, Poisson):
    """l = sum over outputs of t log t - t + exp(z) - t z, half of the Poisson deviance; dl/dz = exp(z) - t."""

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        xp = b.xp
        least = float(xp.finfo(target.dtype).smallest_normal)
        return super().value(b, output, target) + target * (xp.log(xp.maximum(target, least)) - 1.0)
