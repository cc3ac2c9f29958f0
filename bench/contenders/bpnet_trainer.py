"""bpnet: ``Trainer.step`` and ``Trainer.predict`` on the arrays of any of its backends."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

import bpnet as bp
from bench.contenders.base import Absent, Contender
from bench.workloads import Array, Task, Workload


def network_for(workload: Workload, dropout: bool) -> Any:
    """The workload as a bpnet network, an activation joined with the dense layer before it."""
    layers: list[Any] = []
    for layer in workload.layers:
        if layer.kind == "dense":
            layers.append(bp.Dense(layer.units, bias=layer.bias))
        elif layer.kind == "batchnorm":
            layers.append(bp.BatchNorm())
        elif layer.kind == "dropout":
            layers.append(bp.Dropout(layer.rate if dropout else 0.0))
        elif isinstance(layers[-1], bp.Dense):
            layers[-1] = bp.Dense(layers[-1].units, layer.kind, bias=layers[-1].bias)
        else:
            layers.append({"relu": bp.ReLU, "sigmoid": bp.Sigmoid}[layer.kind]())
    return bp.Sequential(*layers)


def trainer_for(task: Task, **options: Any) -> Any:
    """A trainer for the workload; ``options`` go to ``Trainer`` as they are."""
    s, workload = task.settings, task.workload
    adam: dict[str, Any] = {"beta1": s.beta1, "beta2": s.beta2, "epsilon": s.epsilon}
    if workload.optimizer == "sgd":
        optimizer: Any = bp.SGD(s.lr)
    elif workload.optimizer == "adam":
        optimizer = bp.Adam(s.lr, **adam)
    else:
        optimizer = bp.AdamW(s.lr, **adam, weight_decay=s.weight_decay)
    network = network_for(workload, s.dropout)
    return bp.Trainer(network, workload.loss, optimizer, seed=0, threads=task.threads, **options)


def leaves(parameters: Any) -> list[tuple[Any, str]]:
    """Where each array of nested parameters lies, as (dict, key), in the order of the layers."""
    found: list[tuple[Any, str]] = []
    for key, value in parameters.items():
        found += leaves(value) if isinstance(value, dict) else [(parameters, key)]
    return found


class Bpnet(Contender):
    """``captures``: whether CuPy's steps become CUDA graphs; the precision goes to ``Trainer``.

    ``together`` steps are one launch as in ``Trainer.fit`` where the data lie on the device, without what that does
    once an epoch; but of stacks of batches, which are copied to the graph's buffers before rows are taken of them.
    """

    def __init__(
        self,
        task: Task,
        backend: str,
        jit: bool = False,
        captures: bool = True,
        together: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(task)
        self.together = together
        self.rows: dict[tuple[int, int], Any] = {}
        if jit and importlib.util.find_spec("llvmlite") is None:
            raise Absent("llvmlite is not installed")
        try:
            found: Any = bp.backends.get(backend)
        except ImportError as error:
            raise Absent(str(error)) from None
        self.backend = found
        if backend == "numpy":
            options |= {"compile": jit}
        if backend == "jax":
            import jax

            jax.config.update("jax_enable_x64", task.dtype == "float64")
            jax.config.update("jax_default_matmul_precision", "highest")
        elif backend == "torch":
            import torch

            torch.set_num_threads(task.threads)
        if task.precision != "float32":
            options |= {"precision": task.precision}
        self.device = "cuda" if task.device == "cuda" and backend == "torch" else None
        try:
            example = self.put(np.zeros((task.batch, task.workload.inputs), task.dtype))
        except Exception as error:
            raise Absent(f"{backend} can't make an array: {error}") from None
        try:
            self.trainer = trainer_for(task, **options)
            self.trainer.build(example)
        except (TypeError, ValueError) as error:
            if task.precision == "float32":
                raise
            raise Absent(f"no {task.precision} on {backend}: {error}") from None  # not of every library's arrays
        if not captures:
            self.trainer._engine.step.captures = False
        parameters = self.trainer.parameters
        for (holder, key), value in zip(leaves(parameters), task.start, strict=True):
            holder[key] = self.put(value)
        self.trainer.parameters = parameters

    def put(self, array: Array) -> Any:
        return self.backend.from_host(array, device=self.device)

    def step(self, x: Any, y: Any) -> Any:
        return self.trainer.step(x, y, check=False)

    def several(self, x: Any, y: Any) -> Any:
        count, size = x.shape[:2]
        if (count, size) not in self.rows:
            self.rows[count, size] = self.put(np.arange(count * size, dtype=np.int32))
        rows = self.rows[count, size]
        x, y = (a.reshape(count * size, *a.shape[2:]) for a in (x, y))
        losses = self.trainer._engine.run_steps(x, y, None, rows, count)
        if losses is None:  # as the first time, when products are planned too, which a capture can't
            parts = [rows[i : i + size] for i in range(0, count * size, size)]
            losses = [self.trainer._engine.advance(x, y, None, part) for part in parts]
        return losses

    def predict(self, x: Any) -> Any:
        return self.trainer.predict(x)

    def wait(self, result: Any) -> None:
        self.backend.synchronise(result[-1] if isinstance(result, list) else result)

    def parameters(self) -> list[Array]:
        parameters = self.trainer.parameters
        return [np.array(self.backend.to_host(holder[key])) for holder, key in leaves(parameters)]

    def host(self, output: Any) -> Array:
        return np.asarray(self.backend.to_host(output))


make = Bpnet
