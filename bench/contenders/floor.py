"""The matrix products of a step and nothing else, into arrays made beforehand: what no implementation goes below.

It goes below only with other products: a faster BLAS, or the same BLAS on blocks of rows that suit it better.
Layers of one shape share their arrays, so the floor also takes little memory.
"""

from __future__ import annotations

from typing import Any

from bench.contenders.base import Contender
from bench.contenders.numpy_plain import library_named
from bench.workloads import Array, Task


class Floor(Contender):
    has_results = False

    def __init__(self, task: Task, xp: Any) -> None:
        super().__init__(task)
        self.xp = xp
        rng = xp.random.default_rng(0)
        widths = {layer.units for layer in task.workload.dense()}
        self.activations = {width: rng.standard_normal((task.batch, width)).astype(task.dtype) for width in widths}
        self.outputs = {width: xp.empty((task.batch, width), task.dtype) for width in widths}
        weights = [xp.array(value) for value in task.start if value.ndim == 2]
        self.layers = [(weight, xp.empty_like(weight)) for weight in weights]

    def put(self, array: Array) -> Any:
        return self.xp.asarray(array)

    def predict(self, x: Any) -> Any:
        for weight, _ in self.layers:
            units = weight.shape[1]
            self.xp.matmul(x, weight, out=self.outputs[units])
            x = self.activations[units]

    def step(self, x: Any, y: Any) -> Any:
        self.predict(x)
        for place in reversed(range(len(self.layers))):
            weight, gradient = self.layers[place]
            inputs, units = weight.shape
            before = self.activations[inputs] if place else x
            self.xp.matmul(before.T, self.activations[units], out=gradient)
            if place:
                self.xp.matmul(self.activations[units], weight.T, out=self.outputs[inputs])

    def wait(self, result: Any) -> None:
        if self.xp.__name__ == "cupy":
            self.xp.cuda.Device().synchronize()


def make(task: Task, library: str) -> Contender:
    return Floor(task, library_named(library))
