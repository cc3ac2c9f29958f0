"""JAX: the whole step as one compiled function of parameters and optimizer state, which it may overwrite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.contenders.base import Absent, Contender
from bench.workloads import Array, Task

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
"""JAX's names; of arrays that are bfloat16 themselves, every precision is as good."""


class Jax(Contender):
    """One step a call, or `together` of them: then a loop over staged batches is compiled too."""

    def __init__(self, task: Task, together: int = 1) -> None:
        super().__init__(task)
        self.together = together
        jax.config.update("jax_enable_x64", task.dtype == "float64")
        jax.config.update("jax_default_matmul_precision", PRECISIONS[task.precision])
        if task.device == "cuda" and jax.default_backend() != "gpu":
            raise Absent("JAX finds no GPU")
        values = [jnp.array(value) for value in task.start]
        running = [
            (jnp.zeros(layer.units, task.dtype), jnp.ones(layer.units, task.dtype))
            for layer in task.workload.layers
            if layer.kind == "batchnorm"
        ]
        moments = ([jnp.zeros_like(v) for v in values], [jnp.zeros_like(v) for v in values])
        self.state: Any = (values, running, moments, jnp.zeros((), jnp.int32), jax.random.key(0))
        self._step = jax.jit(self._pure_step, donate_argnums=0)
        self._steps = jax.jit(self._pure_steps, donate_argnums=0)
        self._predict = jax.jit(lambda values, running, x: self._network(values, running, x, None)[0])

    def _network(self, values: list[Any], running: list[Any], x: Any, key: Any) -> tuple[Any, list[Any]]:
        """The outputs and the new running values; without a key this is not training."""
        settings = self.task.settings
        if self.task.precision == "bfloat16":  # products and activations; parameters and the loss stay as they are
            x, values = x.astype(jnp.bfloat16), [value.astype(jnp.bfloat16) for value in values]
        left = iter(values)
        new_running: list[Any] = []
        for place, layer in enumerate(self.task.workload.layers):
            if layer.kind == "dense":
                x = x @ next(left)
                if layer.bias:
                    x = x + next(left)
            elif layer.kind == "relu":
                x = jax.nn.relu(x)
            elif layer.kind == "sigmoid":
                x = jax.nn.sigmoid(x)
            elif layer.kind == "dropout" and settings.dropout and key is not None:
                kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - layer.rate, x.shape)
                x = jnp.where(kept, x / (1 - layer.rate), 0)
            elif layer.kind == "batchnorm":
                mean, variance = running[len(new_running)]
                if key is None:
                    new_running.append((mean, variance))
                else:
                    kept, old = settings.momentum, (mean, variance)
                    real = x.astype(self.task.dtype)
                    mean, variance = real.mean(axis=0), real.var(axis=0)
                    new = kept * old[0] + (1 - kept) * mean, kept * old[1] + (1 - kept) * variance
                    new_running.append(jax.lax.stop_gradient(new))
                normal = (x - mean) * jax.lax.rsqrt(variance + settings.norm_epsilon)
                x = (normal * next(left) + next(left)).astype(x.dtype)
        return x.astype(self.task.dtype), new_running

    def _objective(self, values: Any, running: Any, x: Any, y: Any, key: Any) -> tuple[Any, Any]:
        out, running = self._network(values, running, x, key)
        if self.task.workload.loss == "mse":
            return jnp.mean((out - y) ** 2), running
        logs = jax.nn.log_softmax(out)
        return -jnp.mean(jnp.take_along_axis(logs, y[:, None], axis=1)), running

    def _pure_step(self, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        values, running, (ms, vs), count, key = state
        key, used = jax.random.split(key)
        (loss, running), gradients = jax.value_and_grad(self._objective, has_aux=True)(values, running, x, y, used)
        s, optimizer, count = self.task.settings, self.task.workload.optimizer, count + 1
        if optimizer == "sgd":
            values = [p - s.lr * g for p, g in zip(values, gradients, strict=True)]
            return (values, running, (ms, vs), count, key), loss
        if optimizer == "adamw":
            values = [p * (1 - s.lr * s.weight_decay) if p.ndim > 1 else p for p in values]
        ms = [s.beta1 * m + (1 - s.beta1) * g for m, g in zip(ms, gradients, strict=True)]
        vs = [s.beta2 * v + (1 - s.beta2) * g * g for v, g in zip(vs, gradients, strict=True)]
        t = count.astype(self.task.dtype)
        corrections = 1 - s.beta1**t, 1 - s.beta2**t
        values = [
            p - s.lr * (m / corrections[0]) / (jnp.sqrt(v / corrections[1]) + s.epsilon)
            for p, m, v in zip(values, ms, vs, strict=True)
        ]
        return (values, running, (ms, vs), count, key), loss

    def _pure_steps(self, state: Any, x: Any, y: Any) -> Any:
        return jax.lax.scan(lambda carry, batch: self._pure_step(carry, *batch), state, (x, y))

    def put(self, array: Array) -> Any:
        return jax.device_put(array)

    def step(self, x: Any, y: Any) -> Any:
        self.state, loss = self._step(self.state, x, y)
        return loss

    def several(self, x: Any, y: Any) -> Any:
        self.state, losses = self._steps(self.state, x, y)
        return losses

    def predict(self, x: Any) -> Any:
        return self._predict(self.state[0], self.state[1], x)

    def wait(self, result: Any) -> None:
        jax.block_until_ready((result, self.state[0]))

    def parameters(self) -> list[Array]:
        return [np.array(value) for value in self.state[0]]


make = Jax
