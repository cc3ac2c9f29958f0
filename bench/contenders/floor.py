"""The matrix products of a step and nothing else, into arrays made beforehand: what no implementation goes below.

It goes below only with other products: a faster BLAS, or the same BLAS on blocks of rows that suit it better.
Layers of one shape share their arrays, so the floor also takes little memory.

With ``update``, memory is moved besides as by Adam in one pass: 28 bytes a parameter, read and written by copies.
"""

from __future__ import annotations

from typing import Any

from bench.contenders.base import Contender
from bench.contenders.numpy_plain import library_named
from bench.workloads import Array, Task


class Floor(Contender):
    has_results = False

    def __init__(self, task: Task, xp: Any, update: bool = False) -> None:
        super().__init__(task)
        self.xp = xp
        self.kind: Any = task.dtype
        if task.precision == "bfloat16":
            import ml_dtypes

            self.kind = ml_dtypes.bfloat16
        rng = xp.random.default_rng(0)
        widths = {layer.units for layer in task.workload.dense()}
        self.activations = {width: rng.standard_normal((task.batch, width)).astype(self.kind) for width in widths}
        self.outputs = {width: xp.empty((task.batch, width), self.kind) for width in widths}
        weights = [self.put(value) for value in task.start if value.ndim == 2]
        self.layers = [(weight, xp.empty_like(weight)) for weight in weights]
        size = task.workload.parameter_count()
        self.copies = [(xp.zeros(n, "float32"), xp.zeros(n, "float32")) for n in (size, size // 2)] if update else []

    def put(self, array: Array) -> Any:
        on_device = self.xp.asarray(array)
        wanted = self.kind if array.dtype == self.task.dtype else array.dtype
        return on_device if on_device.dtype == wanted else on_device.astype(wanted)

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
        if self.copies:  # 3 times 8 bytes a parameter, and once 4
            whole, half = self.copies
            for to, from_ in (whole, whole, whole, half):
                self.xp.copyto(to, from_)

    def wait(self, result: Any) -> None:
        if self.xp.__name__ == "cupy":
            self.xp.cuda.Device().synchronize()


def make(task: Task, library: str, update: bool = False) -> Contender:
    return Floor(task, library_named(library, task.precision), update)
