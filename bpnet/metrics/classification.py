"""Metrics of classes, and of what is true or false, by what is predicted: the most probable class, the likelier side.

With `t` and `p` the rows (by weight) that are and are said to be of a class, and `tp` those that are both.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bpnet.backends.base import Array
from bpnet.errors import OptionError
from bpnet.layer import Run, Shape
from bpnet.losses.base import Loss
from bpnet.losses.binary import BinaryCrossEntropy
from bpnet.losses.classes import ClassLoss, one_hot
from bpnet.metrics.base import Metric, Statistics, kind_of_target, ratio, total, weighed
from bpnet.options import choice, positive, whole


def labels_of(run: Run, target: Array) -> Array:
    """The class of every row."""
    return target if target.ndim == 1 else run.xp.argmax(target, axis=1)


def indicators(run: Run, loss: Loss, output: Array, target: Array) -> tuple[Array, Array]:
    """What is predicted and what is true: 1 or 0 for every row and class, or output."""
    xp = run.xp
    if isinstance(loss, ClassLoss):
        return one_hot(run, xp.argmax(output, axis=1), output), one_hot(run, labels_of(run, target), output)
    said, true = xp.astype(output > loss.boundary, output.dtype), xp.astype(target > 0.5, output.dtype)
    shape = output.shape[0], -1
    return xp.reshape(said, shape), xp.reshape(true, shape)


def probabilities(run: Run, loss: Loss, output: Array, target: Array) -> tuple[Array, Array]:
    """Those that are predicted, and the target in their shape."""
    p = loss.prediction(run.backend, output)
    return p, one_hot(run, target, output) if target.ndim == 1 else target


class _OfRows(Metric):
    """The mean over rows, by weight, of a number that each has."""

    of: ClassVar[tuple[str, ...]] = ("classes", "labels")

    def of_rows(self, run: Run, loss: Loss, output: Array, target: Array) -> Array:
        """It of every row."""
        raise NotImplementedError

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        rows = self.of_rows(run, loss, output, target)
        return run.xp.sum(weighed(run, rows, weight)), run.xp.sum(weight)

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        value, count = statistics
        return float(value / count)


@dataclass(frozen=True)
class Accuracy(_OfRows):
    """The share of rows that are right: whose class is predicted, or all of whose outputs are on the right side."""

    names = {"accuracy": {}}

    def of_rows(self, run: Run, loss: Loss, output: Array, target: Array) -> Array:
        return loss.correct(run, output, target)


@dataclass(frozen=True)
class TopKAccuracy(_OfRows):
    """The share of rows whose class is among the k most probable; of equal ones the later counts as more probable.

    It is called `top_3_accuracy` and so on, with 5 by default `top_k_accuracy`.
    """

    k: int = 5

    names = {"top_k_accuracy": {}}
    of = ("classes",)

    def __post_init__(self) -> None:
        self._check(k=whole)

    @property
    def key(self) -> str:
        return super().key if self == TopKAccuracy() else f"top_{self.k}_accuracy"

    def check(self, loss: Loss, out_shape: Shape) -> None:
        super().check(loss, out_shape)
        if self.k >= out_shape[-1]:
            raise OptionError(f"{self.key} is of the {self.k} most probable classes, but there are {out_shape[-1]}")

    def of_rows(self, run: Run, loss: Loss, output: Array, target: Array) -> Array:
        xp, label = run.xp, labels_of(run, target)
        true = one_hot(run, label, output) > 0.5
        own = xp.sum(xp.where(true, output, 0.0), axis=1, keepdims=True)
        later = xp.arange(output.shape[1], dtype=label.dtype, device=run.backend.device(output))
        later = later > xp.expand_dims(label, axis=1)
        before = xp.astype((output > own) | ((output == own) & later), output.dtype)
        return xp.astype(xp.sum(before, axis=1) < float(self.k), output.dtype)


class _OfCounts(Metric):
    """Of tp, p and t of every class or output, and of all rows."""

    of = ("classes", "labels")

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        said, true = indicators(run, loss, output, target)
        return *(total(run, x, weight) for x in (said * true, said, true)), run.xp.sum(weight)


@dataclass(frozen=True)
class BalancedAccuracy(_OfCounts):
    """The mean over classes that occur of tp / t: accuracy as if all classes were as frequent (Brodersen et al. 2010).

    Of one output that is true or false, the two are the classes.
    """

    names = {"balanced_accuracy": {}}

    def check(self, loss: Loss, out_shape: Shape) -> None:
        super().check(loss, out_shape)
        if kind_of_target(loss) == "labels" and out_shape != (1,):
            raise OptionError(f"balanced_accuracy is of one output or of one of several classes, not of {out_shape}")

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        tp, p, t, n = statistics
        if not isinstance(loss, ClassLoss):
            tp, t = xp.concat([n - p - t + tp, tp]), xp.concat([n - t, t])
        occurs = xp.astype(t > 0.0, xp.float64)
        return float(xp.sum(ratio(xp, tp, t)) / xp.sum(occurs))


@dataclass(frozen=True)
class _Averaged(_OfCounts):
    """`average`: "binary" is of what is true of the one output; "macro" the mean over classes or outputs, "weighted"
    by their t, and "micro" of all counts together; None takes "binary" where there is one output, else "macro".

    As in scikit-learn, classes that neither are nor are said to be of any row don't count, and 0 / 0 is 0.
    """

    average: str | None = None

    def __post_init__(self) -> None:
        if self.average is not None:
            self._check(average=lambda what, value: choice(what, value, ("binary", "macro", "micro", "weighted")))

    def check(self, loss: Loss, out_shape: Shape) -> None:
        super().check(loss, out_shape)
        if self.average == "binary" and (kind_of_target(loss) != "labels" or out_shape != (1,)):
            raise OptionError(f"average is 'binary', which is of one output, but there are {out_shape[-1]}")

    def of_counts(self, xp: Any, tp: Array, p: Array, t: Array) -> Array:
        """The metric of every class, or of counts of all."""
        raise NotImplementedError

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        tp, p, t, _ = statistics
        if self.average == "micro":
            return float(self.of_counts(xp, xp.sum(tp), xp.sum(p), xp.sum(t)))
        each = self.of_counts(xp, tp, p, t)
        known = (p + t > 0.0) | (not isinstance(loss, ClassLoss))
        counts = t if self.average == "weighted" else xp.astype(known, xp.float64)
        return float(ratio(xp, xp.sum(each * counts), xp.sum(counts)))


@dataclass(frozen=True)
class Precision(_Averaged):
    """tp / p: what share of those that are said to be of a class are."""

    names = {"precision": {}}

    def of_counts(self, xp: Any, tp: Array, p: Array, t: Array) -> Array:
        return ratio(xp, tp, p)


@dataclass(frozen=True)
class Recall(_Averaged):
    """tp / t: what share of those that are of a class are said to be."""

    names = {"recall": {}}

    def of_counts(self, xp: Any, tp: Array, p: Array, t: Array) -> Array:
        return ratio(xp, tp, t)


@dataclass(frozen=True)
class FBeta(_Averaged):
    """(1 + beta**2) tp / (p + beta**2 t): the harmonic mean of precision and recall, of which the latter counts beta
    times as much (van Rijsbergen 1979)."""

    beta: float = 1.0

    names = {"f1": {"beta": 1.0}, "f2": {"beta": 2.0}, "f0.5": {"beta": 0.5}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(beta=positive)

    @property
    def key(self) -> str:
        return f"f{self.beta:g}"

    def of_counts(self, xp: Any, tp: Array, p: Array, t: Array) -> Array:
        square = self.beta**2
        return ratio(xp, (1.0 + square) * tp, p + square * t)


@dataclass(frozen=True)
class ConfusionMatrix(Metric):
    """How many rows (by weight) of class i, one row each, are said to be of class j: a list of lists.

    Of one output, the classes are false and true.  Weights are rounded as a trainer's `precision` rounds.
    """

    names = {"confusion_matrix": {}}
    of = ("classes", "labels")

    def check(self, loss: Loss, out_shape: Shape) -> None:
        super().check(loss, out_shape)
        if kind_of_target(loss) == "labels" and out_shape != (1,):
            raise OptionError(f"confusion_matrix is of one output or of one of several classes, not of {out_shape}")

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        said, true = indicators(run, loss, output, target)
        if not isinstance(loss, ClassLoss):
            said, true = (run.xp.concat([1.0 - x, x], axis=1) for x in (said, true))
        return (run.matmul(weighed(run, true, weight), said, transpose_a=True),)

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        return statistics[0].tolist()


class _OfProbabilities(_OfRows):
    """A mean over rows of how far probabilities are from the truth."""

    larger_is_better = False

    def check(self, loss: Loss, out_shape: Shape) -> None:
        super().check(loss, out_shape)
        if not (loss.logits or isinstance(loss, BinaryCrossEntropy)):
            raise OptionError(f"the metric {self.key} is of probabilities, but {loss} gives none")

    def of_probabilities(self, xp: Any, p: Array, target: Array, classes: bool) -> Array:
        """It of every row."""
        raise NotImplementedError

    def of_rows(self, run: Run, loss: Loss, output: Array, target: Array) -> Array:
        p, target = probabilities(run, loss, output, target)
        return self.of_probabilities(run.xp, p, target, isinstance(loss, ClassLoss))


@dataclass(frozen=True)
class LogLoss(_OfProbabilities):
    """-sum_k t_k log p_k; of outputs that are true or false the mean of -(t log p + (1 - t) log(1 - p)).

    Probabilities are kept from 0 and 1 by the rounding error of their type, as scikit-learn does, so that one that is
    certain and wrong gives a finite value.
    """

    names = {"log_loss": {}}

    def of_probabilities(self, xp: Any, p: Array, target: Array, classes: bool) -> Array:
        least = float(xp.finfo(p.dtype).eps)

        def log(share: Array) -> Array:
            return xp.log(xp.minimum(xp.maximum(share, least), 1.0 - least))

        if classes:
            return -xp.sum(target * log(p), axis=1)
        each = -(target * log(p) + (1.0 - target) * log(1.0 - p))
        return xp.mean(each, axis=tuple(range(1, each.ndim)))


@dataclass(frozen=True)
class Brier(_OfProbabilities):
    """sum_k (p_k - t_k)**2; of outputs that are true or false the mean of (p - t)**2 (Brier 1950)."""

    names = {"brier": {}}

    def of_probabilities(self, xp: Any, p: Array, target: Array, classes: bool) -> Array:
        off = (p - target) * (p - target)
        return xp.sum(off, axis=1) if classes else xp.mean(off, axis=tuple(range(1, off.ndim)))


@dataclass(frozen=True)
class CalibrationError(_OfProbabilities):
    """sum over bins of the share of rows in it |share that is right - mean probability| (Guo et al. 2017).

    `bins` of equal width are of the probability of the class that is predicted, and of an output that is true or false
    of its probability, where "right" is true.  Several such outputs are as so many rows.
    """

    bins: int = 15

    names = {"calibration_error": {}}

    def __post_init__(self) -> None:
        self._check(bins=whole)

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        xp = run.xp
        p, target = probabilities(run, loss, output, target)
        if isinstance(loss, ClassLoss):
            right = loss.correct(run, output, target)
            p, right = xp.max(p, axis=1, keepdims=True), xp.expand_dims(right, axis=1)
        else:
            columns = p.shape[0], -1
            p, right = xp.reshape(p, columns), xp.reshape(target, columns)
        ends = [i / self.bins for i in range(1, self.bins)]
        low, high = (run.backend.constants(some, p) for some in ([-1.0, *ends], [*ends, 2.0]))
        p, right = xp.expand_dims(p, axis=2), xp.expand_dims(right, axis=2)
        within = xp.astype((p > low) & (p <= high), p.dtype)
        sums = [total(run, x, weight) for x in (within, within * p, within * right)]
        return tuple(xp.sum(x, axis=0) for x in sums)

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        count, p, right = statistics
        return float(xp.sum(xp.abs(right - p)) / xp.sum(count))
