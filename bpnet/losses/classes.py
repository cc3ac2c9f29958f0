"""Losses of logits z, one per class, of which softmax makes probabilities p."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import ShapeError
from bpnet.layer import Run, Shape, kernel
from bpnet.layers.activation import softmax
from bpnet.losses.base import Loss, RowLoss, log_mean_exp, row_weights
from bpnet.options import fraction, not_negative, numbers, whole


class ClassLoss(Loss):
    """Base of the losses of one class among several, by a logit for each."""

    labels = True
    probabilities = True
    distributions = True
    logits = True

    def target_shape(self, out_shape: Shape) -> Shape:
        if len(out_shape) != 1 or out_shape[0] < 2:
            name = next(iter(self.names), type(self).__name__)
            raise ShapeError(
                f"{name} needs one output per class, two or more, but the network gives {out_shape} per row: "
                "end it with Dense(classes), after Flatten() where rows have several axes; or use "
                "binary_cross_entropy_with_logits for one output"
            )
        return out_shape

    def correct(self, run: Run, output: Array, target: Array) -> Array | None:
        xp = run.xp
        label = target if target.ndim == 1 else xp.argmax(target, axis=1)
        guess = xp.argmax(output, axis=1)
        return xp.astype(guess == xp.astype(label, guess.dtype), output.dtype)

    def prediction(self, b: Backend, output: Array) -> Array:
        return softmax(b, output)

    def average(self, b: Backend, outputs: Array) -> Array:
        """The logarithm of the mean of the probabilities."""
        xp = b.xp
        z = outputs - xp.max(outputs, axis=2, keepdims=True)
        return log_mean_exp(b, z - xp.log(xp.sum(xp.exp(z), axis=2, keepdims=True)))


@dataclass(frozen=True, repr=False)
class CrossEntropy(ClassLoss):
    """l = log sum_k exp(z_k) - sum_k t_k z_k, of logits z; dl/dz = softmax(z) - t (Bridle 1990).

    `t` is one-hot (rows, classes), or any probabilities that add up to 1; or whole numbers (rows,) that name the class.
    A logit of -inf switches its class off: where t is 0, it adds nothing.

    label_smoothing : s takes (1 - s) t + s / classes for t (Szegedy et al. 2016)
    class_weight : a number c for every class: l = -sum_k c_k t_k log p_k.  The mean is over rows as they are; PyTorch's
        divides by the weights of their classes, which is the same where these are 1 on average
    ignore_index : a label whose rows count as rows of weight 0, nowhere
    class_prior, tau : the share of every class in the data: trains z_k + tau log prior_k in the place of z_k, so that
        the largest z_k names the class that is rightest on average over classes, however rare (Menon et al. 2021).
        Predictions and accuracy are of z itself
    """

    label_smoothing: float = 0.0
    class_weight: Sequence[float] | None = None
    ignore_index: int | None = None
    class_prior: Sequence[float] | None = None
    tau: float = 1.0

    names = {"cross_entropy": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(label_smoothing=fraction, tau=not_negative)
        for name, closed in (("class_weight", "left"), ("class_prior", "neither")):
            if getattr(self, name) is not None:
                self._set(**{name: numbers(name, getattr(self, name), 0.0, math.inf, closed)})
        if self.ignore_index is not None:
            self._set(ignore_index=whole("ignore_index", self.ignore_index, -(2**31), 2**31 - 1))

    def target_shape(self, out_shape: Shape) -> Shape:
        shape = super().target_shape(out_shape)
        for name in ("class_weight", "class_prior"):
            values = getattr(self, name)
            if values is not None and len(values) != shape[0]:
                raise ShapeError(f"{name} is of {len(values)} classes, but the network has {shape[0]} outputs")
        return shape

    def _terms(self, run: Run, z: Array, target: Array) -> tuple[Array, Array]:
        """The logits and targets of the plain cross-entropy that it is."""
        b, s = run.backend, self.label_smoothing
        if self.class_prior is not None:
            largest = max(self.class_prior)
            z = z - run.xp.max(z, axis=1, keepdims=True)  # beside large logits the logarithms would be lost
            z = z + b.constants([self.tau * math.log(share / largest) for share in self.class_prior], z)
        if target.ndim == 1 and (s or self.class_weight is not None or self.ignore_index is not None):
            target = one_hot(run, target, z)  # of zeros, where a label names no class
        if s:
            smooth = s / z.shape[1]
            if self.ignore_index is not None:
                smooth = smooth * run.xp.sum(target, axis=1, keepdims=True)
            target = target * (1.0 - s) + smooth
        return z, target if self.class_weight is None else target * b.constants(self.class_weight, z)

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        return softmax_cross_entropy(run, *self._terms(run, output, target), weight, total)

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        return run.xp.reshape(row_cross_entropy(run, *self._terms(run, output, target)), (output.shape[0],))


def one_hot(run: Run, labels: Array, like: Array) -> Array:
    """Rows that are 1 where the label is, of the type and with the columns of `like`."""
    classes = run.xp.arange(like.shape[1], dtype=labels.dtype, device=run.backend.device(like))
    return run.xp.astype(run.xp.expand_dims(labels, axis=1) == classes, like.dtype)


def row_cross_entropy(run: Run, z: Array, target: Array) -> Array:
    """The cross-entropy of every row, of the shape (rows, 1)."""
    xp = run.xp
    target = one_hot(run, target, z) if target.ndim == 1 else target
    shifted = z - xp.max(z, axis=1, keepdims=True)
    along = target * shifted
    along = xp.where(along <= 0.0, along, 0.0)  # 0 times -inf is of a class that is switched off
    mass, norm = (xp.sum(x, axis=1, keepdims=True) for x in (target, xp.exp(shifted)))
    return mass * xp.log(norm) - xp.sum(along, axis=1, keepdims=True)


@kernel
def softmax_cross_entropy(run: Run, z: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
    """Value and derivative of the cross-entropy of softmax(z), the largest logit of every row subtracted first."""
    xp = run.xp
    if target.ndim == 1:
        target = one_hot(run, target, z)
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


@dataclass(frozen=True, repr=False)
class KLDivergence(RowLoss, ClassLoss):
    """l = sum_k t_k (log t_k - log p_k) with p = softmax(z), of probabilities t; dl/dz = p - t.

    The cross-entropy less the entropy of the target, so that it is 0 where the two agree (Kullback and Leibler 1951).
    """

    names = {"kl_divergence": {}}
    labels = False

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        xp = run.xp
        least = float(xp.finfo(output.dtype).smallest_normal)
        entropy = xp.sum(target * xp.log(xp.maximum(target, least)), axis=1, keepdims=True)
        mass = xp.sum(target, axis=1, keepdims=True)
        return row_cross_entropy(run, output, target) + entropy, softmax(run.backend, output) * mass - target


@dataclass(frozen=True, repr=False)
class Focal(RowLoss, ClassLoss):
    """l = -sum_k t_k (1 - p_k)**gamma log p_k with p = softmax(z) (Lin et al. 2017).

    What is right already counts less than in cross-entropy, which has gamma = 0.  With
    h_k = t_k (gamma p_k (1 - p_k)**(gamma - 1) log p_k - (1 - p_k)**gamma), dl/dz_j = h_j - p_j sum_k h_k.
    `t` is labels, one-hot rows or probabilities as of `CrossEntropy`.
    """

    gamma: float = 2.0

    names = {"focal": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(gamma=not_negative)

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        xp, gamma = run.xp, self.gamma
        t = one_hot(run, target, output) if target.ndim == 1 else target
        shifted = output - xp.max(output, axis=1, keepdims=True)
        e = xp.exp(shifted)
        norm = xp.sum(e, axis=1, keepdims=True)
        log_p, p = shifted - xp.log(norm), e / norm
        log_q = xp.log(xp.maximum(-xp.expm1(log_p), float(xp.finfo(output.dtype).smallest_normal)))
        power = xp.exp(gamma * log_q)
        value = xp.where(t > 0.0, t * power * log_p, 0.0)  # 0 times -inf is of a class that is switched off
        rising = xp.where(p > 0.0, p * log_p, 0.0) * (gamma * xp.exp((gamma - 1.0) * log_q))
        h = t * (rising - power)
        return -xp.sum(value, axis=1, keepdims=True), h - p * xp.sum(h, axis=1, keepdims=True)
