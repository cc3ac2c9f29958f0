"""CuPy, on CUDA and ROCm devices.  Importing it needs no device; making an array does."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.cupy as xp
import cupy
import cupyx
import cupyx.scipy.special
import numpy

from bpnet.backends import cublaslt, cuda
from bpnet.backends.base import PRECISIONS, Array, Backend, Key, Piece, Prefetcher, Rule, Specs, State
from bpnet.backends.cupy_feed import PinnedPrefetcher
from bpnet.backends.cupy_graph import CapturedStep
from bpnet.backends.cupy_kernels import DEFINITIONS, KERNELS, CupyContext
from bpnet.backends.cupy_launch import Kernel
from bpnet.backends.cupy_slots import fetch
from bpnet.backends.cupy_sums import draw
from bpnet.backends.interrupts import Calls, advance, current, uninterrupted
from bpnet.errors import DeviceError, UnknownNameError

TECHNIQUES = frozenset({"fused", "cublaslt", "graph"})
"""Ways to compute the same faster: rules as single kernels, products with cuBLASLt's epilogues, the captured step."""

MAX_STEPS_PER_LAUNCH = 8
"""Steps of one launch."""


class CupyBackend(Backend):
    name = "cupy"
    writable = True
    drops_nan = True  # an epilogue of cuBLASLt: see `cupy_kernels.dense_forward`
    _techniques = TECHNIQUES

    @property
    def techniques(self) -> frozenset[str]:
        """Those in use, for trainers built from now on; take one out to see what it brings, or to look for a fault.

        Products of less precision than float32 need "fused" and "cublaslt".
        """
        return self._techniques

    @techniques.setter
    def techniques(self, names: Iterable[str]) -> None:
        chosen = frozenset([names] if isinstance(names, str) else names)
        for name in chosen - TECHNIQUES:
            raise UnknownNameError("technique", name, TECHNIQUES)
        self._techniques = chosen

    @property
    def max_steps_per_launch(self) -> int:  # type: ignore[override]
        return MAX_STEPS_PER_LAUNCH if "graph" in self.techniques else 1

    @property
    def kernels(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[override]
        return KERNELS if "fused" in self.techniques else DEFINITIONS

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
        if not {"fused", "cublaslt"} <= self.techniques or not cublaslt.available():
            return super().precisions(device)
        device = cupy.cuda.Device() if device is None else device
        return PRECISIONS if int(device.compute_capability) >= 80 else super().precisions(device)

    def context(
        self, precision: str = "float32", grad_buffers: dict[int, Array] | None = None, network: Any = None
    ) -> CupyContext:
        return CupyContext(self, precision, grad_buffers, network)

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        return fetch(scalars)

    def bytes_requested(self, error: Exception) -> int | None:
        return getattr(error, "_size", None)  # of cupy.cuda.memory.OutOfMemoryError, which says it in its text too

    def prefetcher(self, specs: Specs, rows: int, batches: int, device: Any = None) -> Prefetcher:
        """Through memory that the device reads by itself, while it computes."""
        return PinnedPrefetcher(specs, rows, batches)

    def session(
        self, threads: int | None = None, device: Any = None, work: float = 0.0
    ) -> AbstractContextManager[None]:
        """CuPy computes on the current device, so that of the data is made it."""
        current: AbstractContextManager[None] = cupy.cuda.Device(None if device is None else device.id)
        return current

    def erf(self, x: Array) -> Array:
        return cupyx.scipy.special.erf(x)

    def empty_vector(self, size: int, like: Array) -> Array | None:
        with like.device:
            return cupy.empty(size, like.dtype)

    def store(self, place: Array, value: Array) -> None:
        place[...] = value

    def keep_mask(self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any) -> Array:
        """By one kernel; the same bits as the definition's."""
        real = numpy.dtype(dtype)
        if real.name not in cuda.TYPES or "fused" not in self.techniques:
            return super().keep_mask(key, shape, keep, dtype, device)
        with device:
            mask = cupy.empty(shape, real)
            draw("keep_mask", 1, key, keep, (mask,))
        return mask

    # ---- how work is carried out --------------------------------------------------------------------------------

    def compile(self, function: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
        """A step that goes on with what it gave back last becomes a CUDA graph; see `CapturedStep`."""
        plain = functools.partial(function, self)
        if not donate:
            return plain
        return CapturedStep(plain) if "graph" in self.techniques else plain

    def advance(self, step: Callable[..., Any], state: State, args: Sequence[Any], count: int) -> Any:
        if isinstance(step, CapturedStep):
            return step.advance(state, args, count)
        return advance(step, state, count, state.now[0], *args)

    def run_steps(
        self, step: Callable[..., Any], state: State, shared: Sequence[Any], each: Sequence[tuple[Any, ...]]
    ) -> Sequence[Array] | None:
        return step.run_steps(state, shared, each) if isinstance(step, CapturedStep) else None

    def add_to(self, total: Array, part: Array) -> Array:
        return cupy.add(total, part, out=total)

    def concat(self, vectors: Sequence[Array]) -> Array:
        """Piece by piece: CuPy's own would copy a table of addresses to the device, which no graph can hold."""
        whole = cupy.empty(sum(v.size for v in vectors), vectors[0].dtype)
        start = 0
        for vector in vectors:
            whole[start : start + vector.size] = vector
            start += vector.size
        return whole

    def fuse(self, rule: Rule) -> Rule:
        """One kernel for the rule, where it can be traced."""
        return functools.partial(_fused, rule) if "fused" in self.techniques else rule

    def map_vector(
        self, rule: Rule, outputs: int, arrays: Sequence[Array], pieces: Sequence[Piece], donate: bool
    ) -> tuple[Array, ...]:
        """One kernel for each piece, which reads and writes every element once."""
        found = [Kernel.of(rule, arrays, scalars=scalars) for _, _, scalars in pieces]
        kernels = [kernel for kernel in found if kernel is not None]
        if len(kernels) < len(pieces) or "fused" not in self.techniques:
            return super().map_vector(rule, outputs, arrays, pieces, donate)
        late = current.late
        results = tuple(arrays[:outputs]) if donate else tuple(cupy.empty_like(a) for a in arrays[:outputs])
        calls = [
            kernel.mapping([a[start:stop] for a in arrays], [r[start:stop] for r in results], scalars)
            for kernel, (start, stop, scalars) in zip(kernels, pieces, strict=True)
        ]
        if donate and late is not None:
            late.append(Launches(calls))
        else:
            uninterrupted(calls)
        return results


class Launches:
    """An update in place by these launches."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def carry_out(self, then: Calls) -> None:
        uninterrupted([*self.calls, *then])


def no_device(error: Exception) -> DeviceError:
    return DeviceError(
        f"CuPy finds no such CUDA device: {error}. Either there is no NVIDIA driver, or none as new as this CuPy "
        "wants: nvidia-smi shows the CUDA version that it has, and the extra cuda12 or cuda13 brings a CuPy for that"
    )


def _fused(rule: Rule, b: Backend, *args: Any) -> Any:
    """rule(b, *args) by one kernel; an array that is None is left to the rule."""
    count = next((i for i, a in enumerate(args) if isinstance(a, float)), len(args))
    arrays, scalars = args[:count], args[count:]
    kernel = None if any(a is None for a in arrays) else Kernel.of(rule, arrays, scalars=scalars)
    if kernel is None:
        return rule(b, *args)
    results = [cupy.empty_like(arrays[0]) for _ in kernel.source.text.results]
    kernel.map(arrays, results, scalars)
    return results[0] if len(results) == 1 else tuple(results)


BACKEND = CupyBackend(xp)
