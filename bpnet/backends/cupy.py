"""CuPy, on CUDA and ROCm devices.  Importing it needs no device; making an array does."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.cupy as xp
import cupy
import cupyx
import cupyx.scipy.special
import numpy

from bpnet.backends.base import Array, Backend
from bpnet.errors import DeviceError


class CupyBackend(Backend):
    name = "cupy"

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        try:
            with cupy.cuda.Device() if device is None else device:
                return cupy.array(numpy.asarray(value, dtype=dtype))
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if "NoDevice" in str(error) or "InsufficientDriver" in str(error) or "InvalidDevice" in str(error):
                raise DeviceError(f"CuPy finds no such CUDA device: {error}") from error
            raise

    def to_host(self, x: Array) -> Any:
        return cupy.asnumpy(x)

    def copy(self, x: Array) -> Array:
        with x.device:
            return x.copy()

    def synchronise(self, x: Array) -> None:
        x.device.synchronize()

    def memory(self, x: Array) -> tuple[int, int] | None:
        free, total = x.device.mem_info
        return int(free), int(total)

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        return [float(value) for value in cupy.asnumpy(cupy.stack(list(scalars)))] if scalars else []

    def session(self, threads: int | None = None, device: Any = None) -> AbstractContextManager[None]:
        """CuPy computes on the current device, so that of the data is made it."""
        current: AbstractContextManager[None] = cupy.cuda.Device(None if device is None else device.id)
        return current

    def erf(self, x: Array) -> Array:
        return cupyx.scipy.special.erf(x)

    def scatter_add(self, length: int, index: Array, values: Array) -> Array:
        with values.device:
            total = cupy.zeros((length, *values.shape[1:]), dtype=values.dtype)
            cupyx.scatter_add(total, index, values)
        return total


BACKEND = CupyBackend(xp)
