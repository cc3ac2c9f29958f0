"""Arrays on a device and the other ranks of a training: sums by NCCL on the current stream, and memory that MPI reads.

CuPy's own binding of NCCL is used (`cupy.cuda.nccl`): NVIDIA's library is all that has to be installed.  Their binding
nccl4py (0.6) would bring several packages, looks for PyTorch at each call, and promises nothing of its lower level.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import cupyx
import numpy

from bpnet.backends.base import Array
from bpnet.errors import DeviceError, DTypeError, MissingPackageError

TYPES = {"float32": 7, "float64": 8, "bfloat16": 9}
"""NCCL's numbers of them (`ncclDataType_t`)."""
SUM = 0
"""And of what it does with the vectors (`ncclRedOp_t`)."""

KERNELS = """
extern "C" __global__ void count(volatile long long* number) {  // in memory of the host, which reads it meanwhile
    if (threadIdx.x == 0) *number = *number + 1;
}
extern "C" __global__ void narrow(const float* from, unsigned short* to, long long count) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float value = from[i];
    const unsigned int bits = reinterpret_cast<const unsigned int&>(value);
    const unsigned int even = 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, of two as near to the even one
    to[i] = value != value ? 0x7FC0u : (bits + even) >> 16;
}
extern "C" __global__ void widen(const unsigned short* from, float* to, long long count) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned int bits = (unsigned int)from[i] << 16;
    to[i] = reinterpret_cast<const float&>(bits);
}
"""
THREADS = 256


def nccl() -> Any:
    """CuPy's module; raises MissingPackageError where NVIDIA's library is not installed."""
    from cupy.cuda import nccl as module

    if not module.available:
        package = f"nvidia-nccl-cu{cupy.cuda.runtime.runtimeGetVersion() // 1000}"
        raise MissingPackageError("distributed='nccl'", package)
    return module


def place(device: Any) -> str:
    """What a device is called on its machine by whatever process sees it, under whichever number."""
    return str(cupy.cuda.runtime.deviceGetPCIBusId(device.id))


def device_count() -> int:
    """How many devices this process sees."""
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


class NcclSums:
    """Sums over ranks of vectors on devices, of which each rank has one of its own.

    Work is launched on the current stream and nothing is waited for, so that it can be captured; but the first sum of
    a size is not to be.

    The communicator lives as long as the process: to destroy one for which a captured step still exists, or whose
    ranks don't all do so, waits for ever.
    """

    def __init__(self, ranks: int, rank: int, identity: Any) -> None:
        """On the current device, by all ranks together; `identity` is one's `nccl().get_unique_id()`."""
        self.nccl = nccl()
        with self._said("connect the ranks"):
            self.kept = self.nccl.NcclCommunicator(ranks, identity, rank)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.kept))
        self.counted = cupyx.zeros_pinned(2, numpy.int64)
        """How many sums the device has begun, and how many it is done with."""
        self.narrow: dict[int, Array] = {}
        """Memory for what is sent of so many elements: captured steps know where it lies, so it is kept."""
        self.broken = False
        module = cupy.RawModule(code=KERNELS)
        self.count, self.round, self.widen = map(module.get_function, ("count", "narrow", "widen"))

    @property
    def waits(self) -> bool:
        """Whether the device is at a sum to which not all ranks have come, as far as the host can see."""
        begun, done = self.counted
        return bool(begun > done)

    def all_reduce(self, vector: Array, tail: int = 0, dtype: str | None = None) -> Array:
        """The sum, in the place of the vector.

        `dtype` "bfloat16" sends elements of float32 rounded to that, but for the last `tail`.
        """
        if vector.dtype.name not in TYPES or not vector.flags.c_contiguous:
            raise DTypeError(f"NCCL adds up vectors of float32 or float64, but this one holds {vector.dtype} values")
        stream, head = cupy.cuda.get_current_stream().ptr, vector.size - tail
        narrow = None if dtype is None or not head else self._narrow(vector, head)
        address, kind = vector.data.ptr, TYPES[vector.dtype.name]
        self._tick(0)
        with self._said("add up a vector"):
            if narrow is None:
                self._sum(address, vector.size, kind, stream)
            else:
                blocks = (-(-head // THREADS),)
                self.round(blocks, (THREADS,), (vector, narrow, numpy.int64(head)))
                self.nccl.groupStart()
                try:
                    self._sum(narrow.data.ptr, head, TYPES["bfloat16"], stream)
                    if tail:
                        self._sum(address + head * vector.itemsize, tail, kind, stream)
                finally:
                    self.nccl.groupEnd()
                self.widen(blocks, (THREADS,), (narrow, vector, numpy.int64(head)))
        self._tick(1)
        return vector

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Raise DeviceError where NCCL refuses."""
        try:
            yield
        except self.nccl.NcclError as error:
            raise DeviceError(f"NCCL could not {what}: {error}. With NCCL_DEBUG=WARN it says more") from error

    def _narrow(self, vector: Array, head: int) -> Array:
        if vector.dtype != numpy.float32:
            raise DTypeError("NCCL(dtype='bfloat16') is for networks of float32: leave dtype out for float64")
        if head not in self.narrow:
            self.narrow[head] = cupy.empty(head, numpy.uint16)
        return self.narrow[head]

    def _sum(self, address: int, size: int, kind: int, stream: int) -> None:
        self.kept.allReduce(address, address, size, kind, SUM, stream)

    def _tick(self, which: int) -> None:
        self.count((1,), (1,), (numpy.intp(self.counted.ctypes.data + 8 * which),))

    # ---- faults -------------------------------------------------------------------------------------------------

    def error(self) -> str | None:
        """What NCCL says to have gone wrong since, if anything has."""
        if self.broken:
            return None
        try:
            self.kept.check_async_error()
        except self.nccl.NcclError as error:
            return str(error)
        return None

    def abort(self) -> None:
        """End sums that wait for other ranks, which then give no sums.  Any thread may call it, and it may wait."""
        if not self.broken:
            self.broken = True
            self.kept.abort()


class Staging:
    """Memory in which MPI adds up vectors of a device, the same for all vectors of one kind.

    Where MPI reads the memory of devices itself (`direct`), that is where the vector lies.
    """

    def __init__(self, direct: bool) -> None:
        self.direct = direct
        self.pinned: dict[Any, tuple[Any, Any]] = {}
        """By shape, type and device: the memory, and an event after which the device no longer reads it."""

    def begin(self, vector: Array) -> Any:
        """What MPI may read and write, with the values of the vector, which the device has computed by then."""
        stream = cupy.cuda.get_current_stream()
        vector = cupy.ascontiguousarray(vector)
        own = vector
        if not self.direct:
            own, read = self._memory(vector)
            stream.wait_event(read)
            vector.data.copy_to_host_async(own.ctypes.data, own.nbytes, stream)
        stream.synchronize()
        return own

    def end(self, own: Any, vector: Array) -> Array:
        """The vector with the values that MPI has left there, once the current stream comes to it."""
        if self.direct:
            return own
        stream = cupy.cuda.get_current_stream()
        if not vector.flags.c_contiguous:
            vector = cupy.empty(vector.shape, vector.dtype)
        vector.data.copy_from_host_async(own.ctypes.data, own.nbytes, stream)
        self._memory(vector)[1].record(stream)
        return vector

    def _memory(self, like: Array) -> tuple[Any, Any]:
        kind = like.shape, like.dtype, like.device.id
        if kind not in self.pinned:
            self.pinned[kind] = cupyx.empty_pinned(like.shape, like.dtype), cupy.cuda.Event(disable_timing=True)
        return self.pinned[kind]
