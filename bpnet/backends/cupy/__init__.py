"""CuPy, on CUDA and ROCm devices.  Importing it needs no device; making an array does."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any, ClassVar

import array_api_compat.cupy as xp
import cupy
import cupyx.scipy.special
import numpy

from bpnet.backends.base import PRECISIONS, Array, Backend, Prefetcher, Specs, State
from bpnet.backends.cupy import cublaslt, verdicts
from bpnet.backends.cupy.compiled import CapturedStep, Compiled
from bpnet.backends.cupy.device_scalars import fetch
from bpnet.backends.cupy.prefetch import PinnedPrefetcher
from bpnet.backends.interrupts import store_rows
from bpnet.backends.techniques import Finding
from bpnet.errors import DeviceError

PER_THREAD = 2
"""The stream that is another in each thread."""


def first_places(run: Any, index: Array, entries: int) -> Array:
    """By a vector with an element for every number, of which only those that occur are written to and read."""
    count = index.shape[0]
    first = cupy.empty(entries, numpy.int32)
    first[index] = count
    cupy.minimum.at(first, index, cupy.arange(count, dtype=numpy.int32))
    return first[index]


def put_rows(run: Any, vectors: Any, puts: Any) -> Any:
    """CuPy compiles a kernel when it is first used, which an interrupt may break off: so that is with what is there."""
    for vector, some in zip(vectors, puts, strict=True):
        for part, shape, index, _ in some:
            kind = shape, vector.dtype, None if index is None else index.dtype, vector.device.id
            if index is not None and kind not in _compiled:
                table = vector[part].reshape(shape)
                table[index] = table[index]
                _compiled.add(kind)
    return store_rows(run, vectors, puts)


_compiled: set[Any] = set()
"""The kinds of tables and numbers for which `put_rows` has its kernel."""


class CupyBackend(Backend):
    name = "cupy"
    has_streams = True
    drops_nan = True
    """An epilogue of cuBLASLt may make 0 of what is not a number (NVIDIA's forum, topic 329783).  A training that
    diverges is still seen from its parameters: what is not finite in a layer's input makes its weights' gradient so."""
    fused, repeated = verdicts.KERNELS, verdicts.CAPTURE
    max_steps_per_launch = 8
    kernels: ClassVar = {"first_places": first_places, "put_rows": put_rows}

    def get_device(self, number: int) -> Any:
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise no_device(error) from error
        if number >= count:
            raise DeviceError(f"there is no CUDA device {number}: CuPy finds {count}, numbered from 0")
        return cupy.cuda.Device(number)

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        try:
            with cupy.cuda.Device() if device is None else device:
                return cupy.array(numpy.asarray(value, dtype=dtype))
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if "NoDevice" in str(error) or "InsufficientDriver" in str(error) or "InvalidDevice" in str(error):
                raise no_device(error) from error
            raise

    def to_host(self, x: Array) -> Any:
        return cupy.asnumpy(x)

    def copy(self, x: Array) -> Array:
        with x.device:
            return x.copy()

    def synchronise(self, x: Array) -> None:
        x.device.synchronize()

    def memory(self, x: Array) -> tuple[int, int] | None:
        """What CuPy keeps for later arrays counts as free, and what it may not take as taken."""
        with x.device:
            (free, total), pool = x.device.mem_info, cupy.get_default_memory_pool()
            free, limit = free + pool.free_bytes(), pool.get_limit()
            return int(min(free, limit - pool.used_bytes()) if limit else free), int(total)

    def precisions(self, device: Any) -> tuple[str, ...]:
        """All of them by cuBLASLt on devices that have tensor cores for them, of compute capability 8.0 and newer."""
        device = cupy.cuda.Device() if device is None else device
        if not cublaslt.available() or int(device.compute_capability) < 80:
            return super().precisions(device)
        verdicts.first_use(device.id)
        with device:
            if not verdicts.usable(verdicts.KERNELS):  # definitions know no other
                return super().precisions(device)
            return tuple(p for p in PRECISIONS if p == "float32" or verdicts.usable(f"product {p} DEFAULT"))

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        return fetch(scalars)

    def bytes_requested(self, error: Exception) -> int | None:
        return getattr(error, "_size", None)  # of cupy.cuda.memory.OutOfMemoryError, which says it in its text too

    def prefetcher(self, specs: Specs, rows: int, batches: int, device: Any = None) -> Prefetcher:
        """Through memory that the device reads by itself, while it computes."""
        if not verdicts.usable(verdicts.STREAMING):
            return super().prefetcher(specs, rows, batches, device)
        return PinnedPrefetcher(specs, rows, batches)

    def session(
        self, threads: int | None = None, device: Any = None, work: float = 0.0, choice: bool | str = "auto"
    ) -> AbstractContextManager[None]:
        """CuPy computes on the current device, so that of the data is made it; at its first use it is checked."""
        current: AbstractContextManager[None] = cupy.cuda.Device(None if device is None else device.id)
        number: int = current.id  # type: ignore[attr-defined]
        if cupy.cuda.get_current_stream(number).is_capturing():
            raise DeviceError(
                "the current stream is being captured: what bpnet does can't be a part of your own CUDA graph, since "
                "the memory in which it works is used again afterwards. Compute before you capture, or elsewhere"
            )
        verdicts.first_use(number)
        return current

    # ---- checks -------------------------------------------------------------------------------------------------

    def techniques(self) -> Iterable[Finding]:
        from bpnet.backends.cupy.techniques import thorough

        return thorough()

    def instead_of(self, technique: str) -> str:
        return verdicts.instead_of(technique)

    def everything_on(self) -> AbstractContextManager[None]:
        return verdicts.everything_on()

    def switch_off(self, findings: Sequence[Finding]) -> None:
        verdicts.switch_off(findings)

    def describe(self, device: Any) -> str:
        return verdicts.describe(device.id)

    def erf(self, x: Array) -> Array:
        return cupyx.scipy.special.erf(x)

    # ---- how work is carried out --------------------------------------------------------------------------------

    def compile(
        self, function: Callable[..., Any], donate: bool = False, choice: bool | str = "auto"
    ) -> Callable[..., Any]:
        """To kernels and products that are launched one by one, or, where a carry is given up, as a CUDA graph."""
        if choice is False:
            return super().compile(function)
        return CapturedStep(function, self) if donate else Compiled(function, self)

    def explain(self, function: Callable[..., Any], args: Sequence[Any]) -> str:
        assert isinstance(function, Compiled)
        return f"cupy: {function.explain(args)}"

    def follow(self, state: State) -> None:
        """Memory is used again in the order of one stream: where the last use was on another, all is waited for."""
        stream = cupy.cuda.get_current_stream().ptr
        used_by = stream, get_ident() if stream == PER_THREAD else 0
        if state.stream != used_by:
            cupy.cuda.Device().synchronize()
            state.stream = used_by

    def advance(self, step: Callable[..., Any], state: State, args: Sequence[Any], count: int) -> Any:
        if isinstance(step, CapturedStep):
            return step.advance(state, args, count)
        return super().advance(step, state, args, count)

    def run_steps(
        self, step: Callable[..., Any], state: State, shared: Sequence[Any], each: Sequence[tuple[Any, ...]]
    ) -> Sequence[Array] | None:
        return step.run_steps(state, shared, each) if isinstance(step, CapturedStep) else None

    def add_to(self, total: Array, part: Array) -> Array:
        return cupy.add(total, part, out=total)


def no_device(error: Exception) -> DeviceError:
    return DeviceError(
        f"CuPy finds no such CUDA device: {error}. Either there is no NVIDIA driver, or none as new as this CuPy "
        "wants: nvidia-smi shows the CUDA version that it has, and the extra cuda12 or cuda13 brings a CuPy for that"
    )


BACKEND = CupyBackend(xp)
