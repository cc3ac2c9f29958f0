"""A straightforward NumPy training step written by hand: the reference that everybody's results are compared with.

It is what one writes after reading about backpropagation: whole batches, one array a parameter, textbook formulas, the
first layer's input gradient left out because nobody uses it. It is tidy, and it is not tuned.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from bench.contenders.base import Absent, Contender
from bench.contenders.seed_script import SeedScript
from bench.workloads import Array, Layer, Task


class PlainNumPy(Contender):
    def __init__(self, task: Task, xp: Any) -> None:
        super().__init__(task)
        self.xp = xp
        self.layers: list[tuple[Layer, list[Any]]] = [
            (layer, [xp.array(value) for value in values]) for layer, values in task.layers_with_values()
        ]
        self.running = {
            place: (xp.zeros(layer.units, task.dtype), xp.ones(layer.units, task.dtype))
            for place, (layer, _) in enumerate(self.layers)
            if layer.kind == "batchnorm"
        }
        self.m = [xp.zeros_like(value) for value in self._flat()]
        self.v = [xp.zeros_like(value) for value in self._flat()]
        self.steps = 0
        self.rng = xp.random.default_rng(0)

    def _flat(self) -> list[Any]:
        return [value for _, values in self.layers for value in values]

    def put(self, array: Array) -> Any:
        return self.xp.asarray(array)

    def step(self, x: Any, y: Any) -> Any:
        xp, settings = self.xp, self.task.settings
        caches = []
        for place, (layer, values) in enumerate(self.layers):
            cache: Any = None
            if layer.kind == "dense":
                cache, x = x, x @ values[0]
                if layer.bias:
                    x = x + values[1]
            elif layer.kind == "relu":
                x = cache = xp.maximum(x, 0)
            elif layer.kind == "sigmoid":
                x = cache = 1 / (1 + xp.exp(-x))
            elif layer.kind == "dropout" and settings.dropout:
                cache = (self.rng.random(x.shape, x.dtype) >= layer.rate) / x.dtype.type(1 - layer.rate)
                x = x * cache
            elif layer.kind == "batchnorm":
                mean, variance = x.mean(axis=0), x.var(axis=0)
                scale = 1 / xp.sqrt(variance + settings.norm_epsilon)
                normal = (x - mean) * scale
                cache = normal, scale
                x = normal * values[0] + values[1]
                old_mean, old_variance = self.running[place]
                kept = settings.momentum
                self.running[place] = (
                    kept * old_mean + (1 - kept) * mean,
                    kept * old_variance + (1 - kept) * variance,
                )
            caches.append(cache)

        loss, d = self._loss(x, y)
        gradients: list[Any] = []
        for place in reversed(range(len(self.layers))):
            (layer, values), cache = self.layers[place], caches[place]
            if layer.kind == "dense":
                if layer.bias:
                    gradients.append(d.sum(axis=0))
                gradients.append(cache.T @ d)
                if place > 0:
                    d = d @ values[0].T
            elif layer.kind == "relu":
                d = d * (cache > 0)
            elif layer.kind == "sigmoid":
                d = d * cache * (1 - cache)
            elif layer.kind == "dropout" and settings.dropout:
                d = d * cache
            elif layer.kind == "batchnorm":
                normal, scale = cache
                shift_gradient, scale_gradient = d.sum(axis=0), (d * normal).sum(axis=0)
                gradients += [shift_gradient, scale_gradient]
                d = d * values[0]
                d = scale * (d - d.mean(axis=0) - normal * (d * normal).mean(axis=0))
        gradients.reverse()
        self._update(gradients)
        return loss

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        xp, rows = self.xp, len(x)
        if self.task.workload.loss == "mse":
            error = x - y
            return (error**2).mean(), 2 * error / error.size
        shifted = x - x.max(axis=1, keepdims=True)
        exponential = xp.exp(shifted)
        total = exponential.sum(axis=1, keepdims=True)
        here = xp.arange(rows), y
        loss = (xp.log(total[:, 0]) - shifted[here]).mean()
        d = exponential / total
        d[here] -= 1
        return loss, d / rows

    def _update(self, gradients: list[Any]) -> None:
        s, workload = self.task.settings, self.task.workload
        self.steps += 1
        for place, (value, gradient) in enumerate(zip(self._flat(), gradients, strict=True)):
            if workload.optimizer == "sgd":
                value -= s.lr * gradient
                continue
            if workload.optimizer == "adamw" and value.ndim > 1:
                value -= s.lr * s.weight_decay * value
            self.m[place] = s.beta1 * self.m[place] + (1 - s.beta1) * gradient
            self.v[place] = s.beta2 * self.v[place] + (1 - s.beta2) * gradient**2
            m = self.m[place] / (1 - s.beta1**self.steps)
            v = self.v[place] / (1 - s.beta2**self.steps)
            epsilon = s.epsilon / (1 - s.beta2**self.steps) ** 0.5 if s.epsilon_first else s.epsilon
            value -= s.lr * m / (self.xp.sqrt(v) + epsilon)

    def predict(self, x: Any) -> Any:
        xp = self.xp
        for place, (layer, values) in enumerate(self.layers):
            if layer.kind == "dense":
                x = x @ values[0]
                if layer.bias:
                    x = x + values[1]
            elif layer.kind == "relu":
                x = xp.maximum(x, 0)
            elif layer.kind == "sigmoid":
                x = 1 / (1 + xp.exp(-x))
            elif layer.kind == "batchnorm":
                mean, variance = self.running[place]
                x = (x - mean) / xp.sqrt(variance + self.task.settings.norm_epsilon) * values[0] + values[1]
        return x

    def wait(self, result: Any) -> None:
        if self.xp is not np:
            self.xp.cuda.Device().synchronize()

    def parameters(self) -> list[Array]:
        return [self.host(value) for value in self._flat()]

    def host(self, output: Any) -> Array:
        array: Array = output if self.xp is np else self.xp.asnumpy(output)
        return array


def library_named(name: str, precision: str = "float32") -> Any:
    """NumPy or CuPy, the latter only where there is a device; the precision is that of its products of float32."""
    if precision == "tf32":
        os.environ["CUPY_TF32"] = "1"  # read at the first product
    try:
        xp = importlib.import_module(name)
        if name == "cupy":
            xp.zeros(1)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise Absent(f"{name} finds no device: {error}") from None
    return xp


def make(task: Task, library: str) -> Contender:
    if task.precision == "bfloat16":
        raise Absent("written for float32, with which CuPy's products can be TF32 but nothing can be bfloat16")
    xp = library_named(library, task.precision)
    return SeedScript(task) if task.workload.key == "e" and xp is np else PlainNumPy(task, xp)
