"""scikit-learn's MLPClassifier, one ``partial_fit`` a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier

from bench.contenders.base import Contender, needs
from bench.workloads import Array, Task


class ScikitLearn(Contender):
    probabilities = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        workload, s = task.workload, task.settings
        needs(not workload.has("batchnorm"), "scikit-learn's MLP has no batch normalization")
        needs(workload.loss == "cross_entropy", "scikit-learn's MLP has no sigmoid output under a squared error")
        self.model = MLPClassifier(
            tuple(layer.units for layer in workload.dense()[:-1]),
            activation="relu",
            solver="adam",
            alpha=0.0,
            batch_size=task.batch,
            shuffle=False,
            learning_rate_init=s.lr,
            beta_1=s.beta1,
            beta_2=s.beta2,
            epsilon=s.epsilon,
        )
        # Parameters exist only after a first fit; the optimizer made there has moments that are not zero, so it goes.
        x, y = np.zeros((task.batch, workload.inputs), task.dtype), np.zeros(task.batch, np.int64)
        self.model.partial_fit(x, y, classes=np.arange(workload.outputs))
        del self.model._optimizer
        for value, start in zip(self._values(), task.start, strict=True):
            value[...] = start

    def _values(self) -> list[Any]:
        pairs = zip(self.model.coefs_, self.model.intercepts_, strict=True)
        return [value for pair in pairs for value in pair]

    def step(self, x: Any, y: Any) -> Any:
        return self.model.partial_fit(x, y)

    def predict(self, x: Any) -> Any:
        return self.model.predict_proba(x)

    def loss(self, result: Any) -> float:
        return float(result.loss_)

    def parameters(self) -> list[Array]:
        return self._values()


make = ScikitLearn
