"""Metrics of the order in which outputs put the rows.  They keep an output and a target of every row, and sort them.

Rows come to the host batch by batch while the device computes, and are sorted there in float64: 16 bytes or more a row.
"""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Run
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss
from bpnet.metrics.base import Metric, Statistics
from bpnet.metrics.classification import labels_of


class _OfScores(Metric):
    """The mean over classes, or outputs, of a metric of one of them against the rest; of two classes of the second."""

    of = ("classes", "labels")
    keeps_rows = True

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        """Scores, true classes or outputs, and weights, a row each."""
        xp, rows = run.xp, output.shape[0]
        if not isinstance(loss, ClassLoss):
            return xp.reshape(output, (rows, -1)), xp.reshape(target, (rows, -1)), weight
        label = xp.reshape(xp.astype(labels_of(run, target), output.dtype), (rows, 1))
        if output.shape[1] == 2:
            return output[:, 1:] - output[:, :1], label, weight
        return loss.prediction(run.backend, output), label, weight

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        scores, true, weight = statistics
        counted = xp.nonzero(weight > 0.0)[0]
        scores, true, weight = (xp.take(x, counted, axis=0) for x in (scores, true, weight))
        columns = scores.shape[1]
        if true.shape[1] < columns:
            true = xp.astype(true == xp.arange(columns, dtype=true.dtype), true.dtype)
        each = [self.of_column(xp, scores[:, k], xp.astype(true[:, k] > 0.5, xp.bool), weight) for k in range(columns)]
        return sum(each) / columns

    def of_column(self, xp: Any, score: Array, true: Array, weight: Array) -> float:
        """Of scores, whether rows are true, and weights."""
        raise NotImplementedError


def _sums(xp: Any, score: Array, true: Array, weight: Array) -> tuple[Array, Array]:
    """For every score that occurs, the largest first: weights of rows that are true, and of those that are false, with
    at least this score."""
    order = xp.argsort(-score)
    score, true, weight = (xp.take(x, order) for x in (score, true, weight))
    last = xp.nonzero(xp.concat([score[1:] != score[:-1], xp.ones(1, dtype=xp.bool)]))[0]
    sums = [xp.take(xp.cumulative_sum(xp.where(which, weight, 0.0)), last) for which in (true, ~true)]
    return sums[0], sums[1]


@dataclass(frozen=True)
class RocAuc(_OfScores):
    """The area under the curve of true against false positives: the probability that a row that is true has a larger
    output than one that is false, and half of that of equal ones (Hanley and McNeil 1982).

    NaN where all rows are of one kind.
    """

    names = {"roc_auc": {}}

    def of_column(self, xp: Any, score: Array, true: Array, weight: Array) -> float:
        hits, misses = _sums(xp, score, true, weight)
        if not hits[-1] * misses[-1]:
            return float("nan")
        before = xp.concat([xp.zeros(1, dtype=hits.dtype), hits[:-1]])
        steps = misses - xp.concat([xp.zeros(1, dtype=hits.dtype), misses[:-1]])
        return float(xp.sum(0.5 * (hits + before) * steps) / (hits[-1] * misses[-1]))


@dataclass(frozen=True)
class AveragePrecision(_OfScores):
    """The sum over thresholds, one at each output that occurs, of (recall - recall before) precision; 0 where no row is
    true."""

    names = {"average_precision": {}}

    def of_column(self, xp: Any, score: Array, true: Array, weight: Array) -> float:
        hits, misses = _sums(xp, score, true, weight)
        if not hits[-1]:
            return 0.0
        steps = hits - xp.concat([xp.zeros(1, dtype=hits.dtype), hits[:-1]])
        return float(xp.sum(steps * hits / (hits + misses)) / hits[-1])


@dataclass(frozen=True)
class Spearman(Metric):
    """The correlation of the ranks of outputs and targets, equal ones having the mean of theirs; the mean over outputs.

    It has no weights (Spearman 1904): rows of weight 0 don't count, and all others alike.
    """

    names = {"spearman": {}}
    of = ("numbers",)
    keeps_rows = True

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        prediction, rows = loss.prediction(run.backend, output), output.shape[0]
        return run.xp.reshape(prediction, (rows, -1)), run.xp.reshape(target, (rows, -1)), weight

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        outputs, targets, weight = statistics
        counted = xp.nonzero(weight > 0.0)[0]
        outputs, targets = (xp.take(x, counted, axis=0) for x in (outputs, targets))
        found = []
        for k in range(outputs.shape[1]):
            a, b = (_ranks(xp, x[:, k]) for x in (outputs, targets))
            a, b = a - xp.mean(a), b - xp.mean(b)
            norm = float(xp.sqrt(xp.sum(a * a) * xp.sum(b * b)))
            found.append(float(xp.sum(a * b)) / norm if norm else float("nan"))
        return sum(found) / len(found)


def _ranks(xp: Any, x: Array) -> Array:
    """From 1 on; of equal ones the mean."""
    ordered = xp.sort(x)
    return 0.5 * (xp.searchsorted(ordered, x, side="left") + xp.searchsorted(ordered, x, side="right") + 1)
