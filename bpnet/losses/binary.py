"""Losses of outputs that are each true or false: one, or one for each label that a row may have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bpnet.backends.base import Array, Backend
from bpnet.errors import ShapeError
from bpnet.layer import Shape
from bpnet.layers.activation import sigmoid
from bpnet.losses.base import ElementwiseLoss, log_mean_exp
from bpnet.options import fraction, not_negative, number, number_or_numbers


@dataclass(frozen=True, repr=False)
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


def logit_of_mean(b: Backend, z: Array) -> Array:
    """log p / (1 - p) of the mean p of sigmoid(z) over the axis 1."""
    soft = b.xp.log1p(b.xp.exp(-b.xp.abs(z)))
    true, false = b.xp.minimum(z, 0.0) - soft, b.xp.minimum(-z, 0.0) - soft
    return log_mean_exp(b, true) - log_mean_exp(b, false)


@dataclass(frozen=True, repr=False)
class BinaryCrossEntropyWithLogits(ElementwiseLoss):
    """l = mean over outputs of log(1 + exp(z)) - t z, of logits z; dl/dz = sigmoid(z) - t (Cox 1958).

    The same as binary_cross_entropy of sigmoid(z), exact for logits of any size: with |z| put outside the logarithm it
    is log(1 + exp(-|z|)) + |z| (1 - t where z > 0, else t).

    `pos_weight` c, a number or one for every output, counts what is true so much more: with it
    l = c t log(1 + exp(-z)) + (1 - t) log(1 + exp(z)), dl/dz = (1 - t) sigmoid(z) - c t sigmoid(-z).
    `label_smoothing` s takes (1 - s) t + s / 2 for t (Szegedy et al. 2016).
    """

    pos_weight: float | Sequence[float] = 1.0
    label_smoothing: float = 0.0

    names = {"binary_cross_entropy_with_logits": {}}
    probabilities = True
    boundary = 0.0
    logits = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(label_smoothing=fraction)
        self._set(pos_weight=number_or_numbers("pos_weight", self.pos_weight, 0.0, math.inf, closed="neither"))

    def target_shape(self, out_shape: Shape) -> Shape:
        if isinstance(self.pos_weight, tuple) and len(self.pos_weight) != out_shape[-1]:
            raise ShapeError(
                f"pos_weight has {len(self.pos_weight)} numbers, but the network gives {out_shape} per row: expected "
                "one for every output, or one number"
            )
        return out_shape

    def _smoothed(self, target: Array) -> Array:
        s = self.label_smoothing
        return target if s == 0.0 else target * (1.0 - s) + 0.5 * s

    def _positive(self, b: Backend, target: Array) -> Array:
        """c t."""
        weight = self.pos_weight
        return target * (b.constants(weight, target) if isinstance(weight, tuple) else weight)

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        xp, size, target = b.xp, b.xp.abs(output), self._smoothed(target)
        soft = xp.log1p(xp.exp(-size))
        if self.pos_weight == 1.0:
            beyond = xp.abs(xp.astype(output > 0.0, target.dtype) - target) * size
            return soft + xp.where(beyond >= 0.0, beyond, 0.0)  # 0 times infinity is of a logit that is right
        positive, negative = self._positive(b, target), 1.0 - target
        beyond = xp.where(output > 0.0, negative, positive) * size
        return (positive + negative) * soft + xp.where(beyond >= 0.0, beyond, 0.0)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        target = self._smoothed(target)
        if self.pos_weight == 1.0:
            return sigmoid(b, output) - target
        return (1.0 - target) * sigmoid(b, output) - self._positive(b, target) * sigmoid(b, -output)

    def prediction(self, b: Backend, output: Array) -> Array:
        return sigmoid(b, output)

    def average(self, b: Backend, outputs: Array) -> Array:
        return logit_of_mean(b, outputs)


@dataclass(frozen=True, repr=False)
class BinaryFocal(ElementwiseLoss):
    """l = -mean over outputs of a q**gamma log(1 - q), q being how far sigmoid(z) is from t (Lin et al. 2017).

    q = |sigmoid(z) - t| where t is 0 or 1; so what is right already counts less than in cross-entropy, which has
    gamma = 0.  a = 2 alpha where t is 1, 2 (1 - alpha) where it is 0; with the default of 1/2 it is 1.  Between them,
    q = t (1 - p) + (1 - t) p and the cross-entropy is that of t, as torchvision has it.  With c that cross-entropy,
    dl/dz = a q**gamma ((p - t) + gamma c (1 - 2 t) p (1 - p) / q), over the number of outputs.
    """

    gamma: float = 2.0
    alpha: float = 0.5

    names = {"binary_focal": {}}
    probabilities = True
    boundary = 0.0
    logits = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(gamma=not_negative)
        self._set(alpha=number("alpha", self.alpha, 0.0, 1.0, closed="neither"))

    def _off(self, b: Backend, output: Array, target: Array) -> tuple[Array, Array, Array]:
        """p, q, and a q**gamma."""
        p, a = sigmoid(b, output), 2.0 - 2.0 * self.alpha + target * (4.0 * self.alpha - 2.0)
        q = target * sigmoid(b, -output) + (1.0 - target) * p
        q = b.xp.maximum(q, float(b.xp.finfo(output.dtype).smallest_normal))
        return p, q, a * b.xp.exp(self.gamma * b.xp.log(q))

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        entropy = _PLAIN.value(b, output, target)
        value = self._off(b, output, target)[2] * entropy
        return b.xp.where(entropy > 0.0, value, entropy)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        (p, q, factor), xp = self._off(b, output, target), b.xp
        turn = self.gamma * (1.0 - 2.0 * target) * p * sigmoid(b, -output) / q
        inner = xp.where(turn == 0.0, 0.0, turn * _PLAIN.value(b, output, target))
        return factor * (p - target + inner)

    def prediction(self, b: Backend, output: Array) -> Array:
        return sigmoid(b, output)

    def average(self, b: Backend, outputs: Array) -> Array:
        return logit_of_mean(b, outputs)


_PLAIN = BinaryCrossEntropyWithLogits()


class _Margin(ElementwiseLoss):
    """Of a margin m = (2 t - 1) z of targets 0 and 1: how far z is on the right side of 0."""

    probabilities = True
    boundary = 0.0


@dataclass(frozen=True, repr=False)
class Hinge(_Margin):
    """l = mean over outputs of max(0, 1 - y z), with y = 2 t - 1 for targets t of 0 and 1 (Cortes and Vapnik 1995).

    dl/dz = -y where y z < 1, else 0, over the number of outputs.
    """

    names = {"hinge": {}}

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        return b.xp.maximum(1.0 - (2.0 * target - 1.0) * output, 0.0)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        y = 2.0 * target - 1.0
        return -y * b.xp.astype(y * output < 1.0, output.dtype)


@dataclass(frozen=True, repr=False)
class SquaredHinge(_Margin):
    """l = mean over outputs of max(0, 1 - y z)**2, with y = 2 t - 1 for targets t of 0 and 1 (Tang 2013).

    dl/dz = -2 y max(0, 1 - y z), over the number of outputs.
    """

    names = {"squared_hinge": {}}

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        short = b.xp.maximum(1.0 - (2.0 * target - 1.0) * output, 0.0)
        return short * short

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        y = 2.0 * target - 1.0
        return -2.0 * y * b.xp.maximum(1.0 - y * output, 0.0)
