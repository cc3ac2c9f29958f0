"""Thinc: a chain of its layers, ``begin_update`` and ``finish_update``."""

from __future__ import annotations

from typing import Any

import numpy as np
import thinc.api as thinc

from bench.contenders.base import Contender, needs
from bench.workloads import Array, Task


class Thinc(Contender):
    probabilities = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        workload, s = task.workload, task.settings
        needs(not workload.has("batchnorm"), "Thinc has no batch normalization")
        needs(task.dtype == "float32", "Thinc's layers are float32 only")
        dense, kinds = workload.dense(), [layer.kind for layer in workload.layers if layer.kind != "dense"]
        makers = {"relu": thinc.Relu, "sigmoid": thinc.Sigmoid}
        layers = [makers[kind](layer.units, layer.inputs) for layer, kind in zip(dense, kinds, strict=False)]
        if workload.loss == "cross_entropy":  # a dense layer with softmax, whose gradient is that of the logits
            layers.append(thinc.Softmax(dense[-1].units, dense[-1].inputs))
        self.model = thinc.chain(*layers)
        self.model.initialize()
        for place, layer in enumerate(layers):
            layer.set_param("W", task.start[2 * place].T.copy())
            layer.set_param("b", task.start[2 * place + 1].copy())
        self.layers = layers
        if workload.optimizer == "sgd":
            self.optimizer = thinc.Optimizer(s.lr, beta1=0.0, beta2=0.0, grad_clip=0.0, L2=0.0, use_averages=False)
        else:
            self.optimizer = thinc.Adam(
                s.lr, beta1=s.beta1, beta2=s.beta2, eps=s.epsilon, grad_clip=0.0, L2=0.0, use_averages=False
            )
        self.criterion = thinc.CategoricalCrossentropy()

    def step(self, x: Any, y: Any) -> Any:
        outputs, backward = self.model.begin_update(x)
        if self.task.workload.loss == "mse":
            error = outputs - y
            backward(error * np.float32(2 / error.size))
        else:
            backward(self.criterion.get_grad(outputs, y))
        self.model.finish_update(self.optimizer)
        return outputs, y

    def predict(self, x: Any) -> Any:
        return self.model.predict(x)

    def loss(self, result: Any) -> float:
        outputs, y = result
        if self.task.workload.loss == "mse":
            return float(np.mean((outputs - y) ** 2))
        return float(-np.log(outputs[np.arange(len(y)), y]).mean())

    def parameters(self) -> list[Array]:
        return [
            value
            for layer in self.layers
            for value in (np.asarray(layer.get_param("W")).T, np.asarray(layer.get_param("b")))
        ]


make = Thinc
