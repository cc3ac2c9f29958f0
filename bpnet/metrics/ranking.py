"""Metrics of the order in which outputs put the rows.  They keep an output and a target of every row, and sort them.

That is done where they were computed, in float64: 24 bytes a row for each output or class, and several times that while
one of them is sorted.
"""

import math
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.layer import Run
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss
from bpnet.metrics.base import Metric, Statistics, ratio
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
        scores, columns = _counted(xp, scores, weight), scores.shape[1]
        found = []
        for k in range(columns):
            is_true = true[:, k] > 0.5 if true.shape[1] == columns else true[:, 0] == k
            weights = (xp.where(which, weight, 0.0) for which in (is_true, ~is_true))
            found.append(self.of_column(xp, scores[:, k], *weights))
        return float(sum(found) / columns)

    def of_column(self, xp: Any, score: Array, true: Array, false: Array) -> Array:
        """Of scores, and the weights of rows as true and as false ones, one of which is 0: a number."""
        raise NotImplementedError


def _counted(xp: Any, x: Array, weight: Array) -> Array:
    """x without what rows of no weight have, which may be no number that can be sorted."""
    return xp.where(xp.reshape(weight, (-1, 1)) > 0.0, x, 0.0)


def _sums(xp: Any, x: Array, *weights: Array) -> list[tuple[Array, Array]]:
    """Of each of the weights, for every row: the sum over rows of smaller x, and over those whose x is no larger."""
    order = xp.argsort(x)
    ordered = xp.take(x, order)
    x = xp.asarray(x, copy=True)  # a column on its own, as PyTorch searches
    places = [xp.searchsorted(ordered, x, side=side) for side in ("left", "right")]
    found = []
    for weight in weights:
        sums = xp.cumulative_sum(xp.take(weight, order), include_initial=True)
        smaller, no_larger = (xp.take(sums, place) for place in places)
        found.append((smaller, no_larger))
    return found


@dataclass(frozen=True)
class RocAuc(_OfScores):
    """The area under the curve of true against false positives: the probability that a row that is true has a larger
    output than one that is false, and half of that of equal ones (Hanley and McNeil 1982).

    NaN where all rows are of one kind.
    """

    names = {"roc_auc": {}}

    def of_column(self, xp: Any, score: Array, true: Array, false: Array) -> Array:
        ((below, up_to),) = _sums(xp, score, false)
        return ratio(xp, xp.sum(true * 0.5 * (below + up_to)), xp.sum(true) * xp.sum(false), math.nan)


@dataclass(frozen=True)
class AveragePrecision(_OfScores):
    """The sum over thresholds, one at each output that occurs, of (recall - recall before) precision; 0 where no row is
    true."""

    names = {"average_precision": {}}

    def of_column(self, xp: Any, score: Array, true: Array, false: Array) -> Array:
        (_, hits), (_, misses) = _sums(xp, -score, true, false)
        return ratio(xp, xp.sum(true * ratio(xp, hits, hits + misses)), xp.sum(true))


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
        *pair, weight = statistics
        counts = xp.astype(weight > 0.0, weight.dtype)
        outputs, targets = (_counted(xp, x, weight) for x in pair)
        found = []
        for k in range(outputs.shape[1]):
            a, b = (_ranks(xp, x[:, k], counts) for x in (outputs, targets))
            found.append(ratio(xp, xp.sum(a * b), xp.sqrt(xp.sum(a * a) * xp.sum(b * b)), math.nan))
        return float(sum(found) / len(found))


def _ranks(xp: Any, x: Array, counts: Array) -> Array:
    """Less their mean; of equal ones the mean.  Rows for which `counts` is 0, not 1, have none, which is 0."""
    ((below, up_to),) = _sums(xp, x, counts)
    ranks = 0.5 * (below + up_to)
    return counts * (ranks - xp.sum(counts * ranks) / xp.sum(counts))
