"""Keras with JAX beneath: ``train_on_batch`` and ``predict_on_batch``."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np

from bench.contenders.base import Absent, Contender
from bench.workloads import Array, Layer, Task


def layer_for(layer: Layer, task: Task) -> Any:
    settings = task.settings
    if layer.kind == "dense":
        return keras.layers.Dense(layer.units, use_bias=layer.bias)
    if layer.kind == "batchnorm":
        return keras.layers.BatchNormalization(momentum=settings.momentum, epsilon=settings.norm_epsilon)
    if layer.kind == "dropout":
        return keras.layers.Dropout(layer.rate if settings.dropout else 0.0)
    return keras.layers.Activation(layer.kind)


class Keras(Contender):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        jax.config.update("jax_enable_x64", task.dtype == "float64")
        jax.config.update("jax_default_matmul_precision", "highest")
        if task.device == "cuda" and jax.default_backend() != "gpu":
            raise Absent("JAX finds no GPU")
        keras.config.set_floatx(task.dtype)
        workload, s = task.workload, task.settings
        self.model = keras.Sequential([keras.Input((workload.inputs,))])
        for layer in workload.layers:
            self.model.add(layer_for(layer, task))
        for variable, value in zip(self.model.trainable_variables, task.start, strict=True):
            variable.assign(value)
        adam = {"learning_rate": s.lr, "beta_1": s.beta1, "beta_2": s.beta2, "epsilon": s.epsilon}
        if workload.optimizer == "sgd":
            optimizer: Any = keras.optimizers.SGD(s.lr)
        elif workload.optimizer == "adam":
            optimizer = keras.optimizers.Adam(**adam)
        else:
            optimizer = keras.optimizers.AdamW(**adam, weight_decay=s.weight_decay)
            optimizer.exclude_from_weight_decay([v for v in self.model.trainable_variables if v.ndim <= 1])
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        loss = "mean_squared_error" if workload.loss == "mse" else entropy
        self.model.compile(optimizer=optimizer, loss=loss, jit_compile=True)

    def put(self, array: Array) -> Any:
        return jax.device_put(array)

    def step(self, x: Any, y: Any) -> Any:
        return self.model.train_on_batch(x, y)

    def predict(self, x: Any) -> Any:
        return self.model.predict_on_batch(x)

    def parameters(self) -> list[Array]:
        return [np.array(variable) for variable in self.model.trainable_variables]


make = Keras
