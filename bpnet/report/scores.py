"""What a model says of rows, as probabilities or quantities whatever its loss is, and metrics of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpnet.backends import Array, get
from bpnet.collected import Collected
from bpnet.layer import Run
from bpnet.losses.base import Loss
from bpnet.losses.binary import BinaryCrossEntropy, Hinge
from bpnet.losses.classes import CrossEntropy
from bpnet.losses.regression import MeanSquaredError
from bpnet.metrics.base import check_metrics, larger_is_better
from bpnet.metrics.classification import CalibrationError
from bpnet.report.classes import BINS

ROWS = 8192
"""Rows that are measured at a time."""


@dataclass(frozen=True)
class Statement:
    """What a model says of rows: probabilities of `names`, a column each, or quantities, a column each.

    `kind` is "class", "multilabel" or "number".  Where a loss gives no probabilities, as hinge, `probabilities` is
    False and the columns are margins.  `quantiles` are predicted quantiles, each of the shape of `values`.
    """

    kind: str
    names: tuple[str, ...]
    values: Array
    probabilities: bool = True
    quantiles: Mapping[float, Array] = field(default_factory=dict)

    def for_metrics(self) -> tuple[Loss, Array]:
        """A loss, and outputs that mean the same under it."""
        if self.kind == "number":
            return MeanSquaredError(), self.values
        if self.kind == "multilabel":
            return (BinaryCrossEntropy() if self.probabilities else Hinge()), self.values
        values = np.asarray(self.values, np.float64)
        return CrossEntropy(), np.log(np.maximum(values, 1e-300)) if self.probabilities else values

    def scores(self) -> list[Any]:
        """The metrics that a report begins with."""
        of_probabilities = ["log_loss", CalibrationError(bins=BINS)] if self.probabilities else []
        if self.kind == "class":
            of_two = ["roc_auc"] if len(self.names) == 2 else []
            return ["accuracy", "balanced_accuracy", *of_two, *of_probabilities]
        return ["r2", "mae", "rmse"] if self.kind == "number" else ["accuracy", "f1", *of_probabilities]


def measure(statement: Statement, target: Array, names: Sequence[Any]) -> dict[str, Any]:
    """Metrics by name: of codes of classes as the target, or of a column for every label or quantity."""
    backend, (loss, output) = get("numpy"), statement.for_metrics()
    metrics = check_metrics(list(names), loss, output.shape[1:])
    collected, run = Collected(backend, metrics, None), Run(backend)
    with backend.session(), np.errstate(divide="ignore", invalid="ignore"):
        for begin in range(0, len(output), ROWS):
            some, true = output[begin : begin + ROWS], target[begin : begin + ROWS]
            weight = np.ones(len(some), output.dtype)
            collected.add(tuple(metric.statistics(run, loss, some, true, weight) for metric in metrics))
        return collected.results(loss)


def worse_by(name: str, before: float, after: float) -> float:
    """How much worse a score has become."""
    return before - after if larger_is_better(name) else after - before
