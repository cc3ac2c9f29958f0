"""Metrics: how good predictions are, in numbers that people compare; computed where the data lie, batch by batch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker sees; a test holds it against `names.PUBLIC`
    from bpnet.metrics.base import Metric, Statistics, check_metrics, larger_is_better, total
    from bpnet.metrics.classification import (
        Accuracy,
        BalancedAccuracy,
        Brier,
        CalibrationError,
        ConfusionMatrix,
        FBeta,
        LogLoss,
        Precision,
        Recall,
        TopKAccuracy,
    )
    from bpnet.metrics.heads import OfHead
    from bpnet.metrics.ranking import AveragePrecision, RocAuc, Spearman
    from bpnet.metrics.regression import MAE, MAPE, R2, RMSE, Pinball
else:
    from bpnet import names

    __getattr__ = names.on_demand("bpnet.metrics")

__all__ = [
    "MAE", "MAPE", "R2", "RMSE", "Accuracy", "AveragePrecision", "BalancedAccuracy", "Brier", "CalibrationError",
    "ConfusionMatrix", "FBeta", "LogLoss", "Metric", "OfHead", "Pinball", "Precision", "Recall", "RocAuc", "Spearman",
    "Statistics", "TopKAccuracy", "check_metrics", "larger_is_better", "total",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
