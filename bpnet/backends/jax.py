"""JAX: arrays can't be written to, and a whole training step is compiled by XLA."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as xp
import numpy

from bpnet.backends.base import Array, Backend, Key
from bpnet.errors import DTypeError


class JaxBackend(Backend):
    name = "jax"
    traces = True

    def device(self, x: Array) -> Any:
        return None if isinstance(x, jax.core.Tracer) else super().device(x)

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        made = super().from_host(value, dtype, device)
        if dtype is not None and made.dtype != dtype:
            raise DTypeError(
                f"JAX makes {made.dtype} of {numpy.dtype(dtype)} values; for all of float64 call "
                "jax.config.update('jax_enable_x64', True) first"
            )
        return made

    def to_host(self, x: Array) -> Any:
        return numpy.array(x)

    def unfit(self, x: Array) -> str | None:
        gone = getattr(x, "is_deleted", None)
        return "an array that was given up: copy what must stay" if gone is not None and gone() else None

    def synchronise(self, x: Array) -> None:
        jax.block_until_ready(x)

    def memory(self, x: Array) -> tuple[int, int] | None:
        stats = next(iter(x.devices())).memory_stats()
        return (stats["bytes_limit"] - stats["bytes_in_use"], stats["bytes_limit"]) if stats else None

    def _folded(self, key: Key, device: Any) -> Array:
        """As the base's `fold`, but the step may be traced, so it is folded in by array operations."""
        state = self._uint32(0, device)
        for part in key:
            word = self._uint32(part & 0xFFFFFFFF if isinstance(part, int) else part, device)
            state = self._hashed((state ^ word) + self._uint32(0x9E3779B9, device), device)
        return state

    def erf(self, x: Array) -> Array:
        return jax.scipy.special.erf(x)

    def column_sums(self, x: Array) -> Array:
        return xp.sum(x, axis=0)

    def scatter_add(self, length: int, index: Array, values: Array) -> Array:
        return xp.zeros((length, *values.shape[1:]), dtype=values.dtype).at[index].add(values)

    def compile(self, function: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
        compiled: Callable[..., Any] = jax.jit(partial(function, self), donate_argnums=0 if donate else ())
        return compiled

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        return [float(s) for s in jax.device_get(list(scalars))]


BACKEND = JaxBackend(xp)
