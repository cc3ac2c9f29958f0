"""Real CuPy on the substitute for a device, as the tests of streams, graphs and memory want it: late, and guarded.

What would go wrong on a device now and then goes wrong here: work is done when somebody waits for it, streams in an
order drawn at random as far as events allow; new memory holds NaN, and is followed by bytes that nobody may write to.
"""

import ctypes
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from support import substitute

GUARD = 512
"""Bytes behind all memory, as many as keep what follows aligned."""


class World:
    """`cupy` is CuPy, `seam` its backend, `codes` are the texts of all kernels of ours that were launched."""

    def __init__(self, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from bpnet.backends.cupy import program

        self.cupy, self.cuda, self.seam = cupy, cupy.cuda, bp.backends.get("cupy")
        self.before: Counter[str] = Counter()
        self.before = self.counts
        self.codes: set[str] = set()
        self.pool = cupy.get_default_memory_pool()
        self.memory: weakref.WeakSet[Any] = weakref.WeakSet()
        self.between: list[Any] = []
        real = program.function

        def function(code: str, name: str) -> Any:
            self.codes.add(code)
            return real(code, name)

        monkeypatch.setattr(program, "function", function)

        class Guarded(cupy.cuda.memory.UnownedMemory):  # type: ignore[misc]
            """Memory of the pool, as long as an array on it lives."""

        self.guarded = Guarded

    def malloc(self, size: int) -> Any:
        """CuPy's allocator: memory full of NaN, guarded."""
        if not size:
            return self.pool.malloc(0)
        pooled = self.pool.malloc(size + GUARD)
        memory = self.guarded(pooled.ptr, size, pooled, pooled.device_id)
        if not self.cuda.get_current_stream().is_capturing():
            pooled.memset_async(0xFF, size + GUARD)
            self.memory.add(memory)
        return self.cuda.MemoryPointer(memory, 0)

    def check_bounds(self) -> None:
        """That nothing was written beside the memory of arrays."""
        self.synchronise()
        for memory in self.memory:
            beside = (ctypes.c_ubyte * GUARD).from_address(memory.ptr + memory.size)
            assert bytes(beside) == b"\xff" * GUARD, "a kernel writes beside an array"

    def array(self, value: Any) -> Any:
        """A copy on the device, made at once."""
        made = self.cupy.array(value)
        self.cuda.get_current_stream().synchronize()
        return made

    def synchronise(self) -> None:
        self.cuda.Device().synchronize()

    @property
    def used(self) -> int:
        """Bytes of arrays that live."""
        return int(self.pool.used_bytes())

    def leave(self, size: int) -> None:
        """Let there be so many bytes more, and then no memory."""
        gc.collect()
        self.pool.free_all_blocks()
        self.pool.set_limit(size=max(self.pool.total_bytes(), 1))
        most = self.pool.free_bytes()  # between what lives, according to what was done before
        while most:
            try:
                self.between.append(self.pool.malloc(most))
            except self.cuda.memory.OutOfMemoryError:
                most = most // 1024 * 512
        self.pool.set_limit(size=self.pool.total_bytes() + size)

    @property
    def counts(self) -> Counter[str]:
        """How often each thing was asked of the device."""
        counts = Counter(substitute.counts())
        counts["memset"] = 0  # of new memory
        return counts - self.before


class Spent:
    """What is asked of the device while this holds: all of it, and how often that of these names."""

    def __init__(self, world: World, *names: str) -> None:
        self.world, self.names = world, names

    def __enter__(self) -> "Spent":
        self.before = self.world.counts
        return self

    def __exit__(self, *_: object) -> None:
        self.all = dict(self.world.counts - self.before)
        self.counts = tuple(self.all.get(name, 0) for name in self.names)


def raw(a: Any) -> Any:
    """The memory of an array as it is now, whatever is still to be done."""
    memory = (ctypes.c_ubyte * a.nbytes).from_address(a.data.ptr)
    return np.frombuffer(memory, a.dtype).reshape(a.shape)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """CuPy on a device that is late; its arrays are `world.array(values)`."""
    reason = substitute.missing()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    import cupy

    from bpnet.backends.cupy import verdicts

    monkeypatch.setattr(verdicts, "_off", {0: {}})  # the device has been checked
    late = ctypes.CDLL("libcuda.so.1").sub_late
    world = World(cupy, monkeypatch)
    cupy.cuda.set_allocator(world.malloc)
    late(1, 0)
    yield world
    late(0, 0)
    cupy.cuda.set_allocator(world.pool.malloc)
    world.pool.set_limit(size=0)
