"""The few names of CuPy that bpnet's seam uses, on host memory, with streams that run late and graphs that run again.

Every operation on a `Device` array is put in the queue of the current stream, or into the graph that it captures; what
it will compute is not there until somebody waits.  Streams run in an order drawn at random as far as events allow,
memory that is not initialised is full of NaN, and a graph that is launched after its memory was freed is an error: what
would go wrong on a device now and then goes wrong here.  CuPy's own products refuse to be captured, as on a device;
those of cuBLASLt are NumPy's, done when their stream comes to them.
"""

import contextlib
import ctypes
import functools
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import BLAS, Fake

import bpnet as bp

VIEWS = {np.reshape, np.transpose, np.expand_dims, np.squeeze, np.broadcast_to, np.permute_dims, np.atleast_1d}


class Token:
    """Device memory, as long as an array on it lives."""

    def __init__(self, size: int, world: "World") -> None:
        self.storage = np.full(size + 512, 0xFF, np.uint8)  # NaN, or -1
        self.start = -self.storage.ctypes.data % 512
        self.ptr = self.storage.ctypes.data + self.start
        self.size, self.pool = size, None
        world.tokens.add(self)
        world.used += size
        weakref.finalize(self, world.freed, size, self.storage)


class Device(np.ndarray):
    """An array in the memory of the device: computing with it enqueues."""

    token: Token | None
    world: "World | None"

    def __new__(cls, shape: Any, dtype: Any, memory: "Pointer", strides: Any = None) -> "Device":
        """On memory that is there."""
        token = memory.world.owner(memory.ptr)
        offset = memory.ptr - token.storage.ctypes.data
        made = np.ndarray(shape, dtype, token.storage, offset, strides).view(cls)
        made.token, made.world = token, memory.world
        return made

    def __array_finalize__(self, obj: Any) -> None:
        self.token = getattr(obj, "token", None)
        self.world = getattr(obj, "world", None)

    @property
    def data(self) -> Any:
        return Pointer(self, self.ctypes.data)

    @property
    def device(self) -> Any:
        return self.world.cuda.Device()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        world = next(a.world for a in (*inputs, *(out or ())) if isinstance(a, Device))
        if ufunc is np.matmul:
            world.forbid("product")
        for a in inputs:
            if not isinstance(a, np.ndarray | float | int | np.generic):
                return NotImplemented
        return world.operate(getattr(ufunc, method), inputs, options, None if out is None else out[0])

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        assert function is not np.copyto
        if function is np.take:
            options = {**options, "mode": "clip"}  # CuPy's never looks whether an index is there
        out = options.pop("out", None) if "out" in options else None
        return self.world.operate(function, args, options, out, function in VIEWS)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return super().__getitem__(slice(index, index + 1)).reshape(self.shape[1:])
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        place = super().__getitem__(index)
        there, here = raw(place), raw(value) if isinstance(value, np.ndarray) else value
        self.world.enqueue(lambda: np.copyto(there, here), [place, value])

    def astype(self, dtype: Any, *_: Any, **__: Any) -> Any:
        return self.world.operate(np.ndarray.astype, (self, dtype), {}, None)

    def copy(self, *_: Any, **__: Any) -> Any:
        return self.world.operate(np.array, (self,), {}, None)

    def __float__(self) -> float:
        return float(self.world.asnumpy(self))

    def __bool__(self) -> bool:
        return bool(self.world.asnumpy(self))

    def __int__(self) -> int:
        return int(self.world.asnumpy(self))


def raw(a: Any) -> Any:
    """The same memory as a plain array, which does not keep it allocated."""
    if not isinstance(a, Device):
        return a
    assert a.token is not None
    storage = a.token.storage
    return np.ndarray(a.shape, a.dtype, storage, a.ctypes.data - storage.ctypes.data if a.size else 0, a.strides)


class _Pinned(np.ndarray):
    """An array that can be told from others on the same memory."""


class Pointer:
    """CuPy's pointer to device memory."""

    device_id = 0

    def __init__(self, array: Device, ptr: int) -> None:
        self.array, self.ptr, self.world = array, ptr, array.world

    def __add__(self, offset: int) -> "Pointer":
        return Pointer(self.array, self.ptr + offset)

    def copy_from_device_async(self, source: "Pointer", size: int) -> None:
        here, there = self.ptr, source.ptr
        self.array.world.counts["device copy"] += 1
        self.array.world.enqueue(lambda: ctypes.memmove(here, there, size), [self.array, source.array])

    def copy_from_host_async(self, source: int, size: int, stream: Any = None) -> None:
        here, world = self.ptr, self.array.world
        world.forbid("host copy")
        world.enqueue(lambda: ctypes.memmove(here, source, size), [self.array], stream)


class Stream:
    """A queue of operations; a wait for an event is one, too."""

    world: "World"

    def __init__(self, non_blocking: bool = False) -> None:
        self.queue: deque[tuple[Any, Callable[[], Any]]] = deque()
        self.count = self.done = 0
        self.graph: Graph | None = None
        self.ptr = 1000 + len(self.world.streams)
        self.world.streams.append(self)

    def __enter__(self) -> "Stream":
        self.world.current.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.world.current.pop()

    def push(self, work: Callable[[], Any], after: Any = None) -> None:
        self.queue.append((after, work))
        self.count += 1

    def begin_capture(self) -> None:
        assert self.world.current[-1] is self
        self.graph = Graph(self.world)

    def end_capture(self) -> "Graph":
        graph, self.graph = self.graph, None
        assert graph is not None
        return graph

    def wait_event(self, event: "Event") -> None:
        if event.stream is not None:
            self.push(lambda: None, (event.stream, event.number))

    def synchronize(self) -> None:
        self.world.forbid("synchronise")
        self.world.run(lambda: self.done == self.count)

    def record(self, event: "Event") -> None:
        event.record(self)


class Event:
    world: "World"

    def __init__(self, disable_timing: bool = False) -> None:
        self.stream: Stream | None = None
        self.number = 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self.world.current[-1]
        self.stream.push(lambda: None)
        self.number = self.stream.count

    def synchronize(self) -> None:
        self.world.counts["event wait"] += 1
        self.world.run(lambda: self.stream is None or self.stream.done >= self.number)


class Graph:
    """What was captured, and on whose memory."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.work: list[Callable[[], Any]] = []
        self.memory: dict[int, Any] = {}

    def launch(self) -> None:
        self.world.counts["launch"] += 1
        for token, pool in self.memory.values():
            assert token() is not None or (pool is not None and not pool.released), "memory of a graph was freed"
        for work in self.work:
            self.world.current[-1].push(work)


class Pool:
    """A memory pool that keeps what is freed."""

    world: "World"

    def __init__(self, source: Any) -> None:
        self.source, self.released = source, False

    def set_limit(self, *, size: int) -> None:
        assert size == 0  # none

    def malloc(self, size: int) -> Token:
        token: Token = self.source(size)
        token.pool, self.released = self, False
        return token

    def free_all_blocks(self) -> None:
        self.released = True


class World:
    """A device: `cupy` and `cupyx` are what stands in for these modules, `counts` what was asked of it."""

    def __init__(self, host: Callable[..., None], seed: int = 0) -> None:
        self.host, self.random = host, random.Random(seed)
        self.seam: Any = None
        self.codes: set[str] = set()
        """The texts of all kernels that were launched."""
        self.graveyard: list[Any] = []
        """Memory that was freed, to which something may be written until all is done."""
        self.tokens: weakref.WeakSet[Token] = weakref.WeakSet()
        self.used, self.limit = 0, 2**40
        self.counts: dict[str, int] = dict.fromkeys(
            ("launch", "device copy", "host copy", "synchronise", "event wait", "kernel", "operation", "to host"), 0
        ) | {"product": 0, "cublaslt": 0}
        """Of products, those of CuPy, and those of cuBLASLt."""
        self.streams: list[Stream] = []
        kinds = {c.__name__: type(c.__name__, (c,), {"world": self}) for c in (Stream, Event, Pool)}
        self.current: list[Stream] = [kinds["Stream"]()]
        self.allocators: list[Any] = [self.malloc]
        device = _Device("cpu")
        device.world = self
        self.cuda = SimpleNamespace(
            Stream=kinds["Stream"],
            Event=kinds["Event"],
            MemoryPool=kinds["Pool"],
            Device=lambda _=None: device,
            get_current_stream=lambda number=None: self.current[-1],
            get_allocator=lambda: self.allocators[-1],
            using_allocator=self.using_allocator,
            runtime=SimpleNamespace(
                CUDARuntimeError=RuntimeError, is_hip=False, getDevice=lambda: 0, getDeviceCount=lambda: 1
            ),
            alloc=lambda size: self.allocators[-1](size),
        )
        self.cupy = SimpleNamespace(
            cuda=self.cuda,
            ndarray=Device,
            empty=self.empty,
            zeros=lambda shape, dtype: self.array(np.zeros(shape, dtype)),
            asarray=self.array,
            ascontiguousarray=lambda a: a if a.flags.c_contiguous else a.copy(),
            empty_like=lambda a: self.empty(a.shape, a.dtype),
            matmul=np.matmul,
            add=np.add,
            stack=np.stack,
            asnumpy=self.asnumpy,
            array=self.array,
            get_default_memory_pool=lambda: SimpleNamespace(free_bytes=lambda: 0, get_limit=lambda: 0),
        )
        self.cupyx = SimpleNamespace(empty_pinned=self.empty_pinned)

    # ---- memory -------------------------------------------------------------------------------------------------

    def freed(self, size: int, storage: Any) -> None:
        self.used -= size
        self.graveyard.append(storage)

    def empty_pinned(self, shape: Any, dtype: Any) -> Any:
        """Host memory that is overwritten when it is freed, though a copy from it may not have begun."""
        memory = np.empty(shape, dtype)
        owner = memory.view(_Pinned)
        weakref.finalize(owner, self.spoil, memory)
        return owner

    def find(self, place: int) -> Token | None:
        """The memory in which an address lies, if there is any."""
        return next((token for token in self.tokens if token.ptr <= place < token.ptr + token.size), None)

    def owner(self, place: int) -> Token:
        token = self.find(place)
        assert token is not None, "an address that is in no memory"
        return token

    def spoil(self, memory: Any) -> None:
        memory.view(np.uint8)[...] = 0xFF
        self.graveyard.append(memory)

    def malloc(self, size: int) -> Token:
        if self.used + size > self.limit:
            from cupy.cuda.memory import OutOfMemoryError

            raise OutOfMemoryError(size, self.used, self.limit)
        return Token(size, self)

    @contextlib.contextmanager
    def using_allocator(self, allocator: Any) -> Iterator[None]:
        self.allocators.append(allocator)
        try:
            yield
        finally:
            self.allocators.pop()

    def empty(self, shape: Any, dtype: Any) -> Device:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        token = self.allocators[-1](size)
        made = token.storage[token.start : token.start + size].view(dtype).reshape(shape).view(Device)
        made.token, made.world = token, self
        return made

    def array(self, value: Any) -> Device:
        """A copy on the device, made at once."""
        value = np.asarray(value)
        made = self.empty(value.shape, value.dtype)
        raw(made)[...] = value
        return made

    def asnumpy(self, a: Any) -> Any:
        self.forbid("to host")
        self.run(lambda: all(stream.done == stream.count for stream in self.streams))
        return np.array(raw(a))

    def check_bounds(self) -> None:
        """That nothing was written beside the memory of arrays."""
        self.synchronise()
        for token in self.tokens:
            beside = token.storage[: token.start], token.storage[token.start + token.size :]
            assert all(np.all(part == 0xFF) for part in beside), "a kernel writes beside an array"

    # ---- work ---------------------------------------------------------------------------------------------------

    def forbid(self, what: str) -> None:
        """Count what a graph can't hold."""
        self.counts[what] += 1
        if self.current[-1].graph is not None:
            raise RuntimeError(f"the stream is capturing: no {what}")

    def enqueue(self, work: Callable[[], Any], arrays: Sequence[Any], stream: Stream | None = None) -> None:
        stream = stream or self.current[-1]
        tokens = [a.token if isinstance(a, Device) else a for a in arrays if isinstance(a, Device | Token)]
        storage = [token.storage for token in tokens]  # it is there until the work is done
        if stream.graph is None:
            stream.push(lambda: (work(), storage))
            return
        stream.graph.work.append(lambda: (work(), storage))
        for token in tokens:
            stream.graph.memory[id(token)] = weakref.ref(token), token.pool

    def operate(self, function: Any, args: Any, options: Any, out: Any, is_view: bool = False) -> Any:
        """function(*args), later; what it gives is looked at once for its shape, and then is not there."""
        plain = [_plain(a) for a in args]
        with np.errstate(all="ignore"):
            first = np.asarray(function(*plain, **options))
        if is_view:
            result = first.view(Device)
            result.token, result.world = args[0].token, self
            return result
        self.counts["operation"] += 1
        result = self.empty(first.shape, first.dtype) if out is None else out
        place = raw(result)

        def work() -> None:
            with np.errstate(all="ignore"):
                place[...] = function(*plain, **options)

        self.enqueue(work, [*_arrays(args), result])
        return result

    def run(self, until: Callable[[], bool]) -> None:
        """Let streams run, in any order that events allow, until that holds."""
        while not until():
            ready = [s for s in self.streams if s.queue and _free(s.queue[0][0])]
            stream = self.random.choice(ready)
            _, work = stream.queue.popleft()
            work()
            stream.done += 1
        if not any(stream.queue for stream in self.streams):
            self.graveyard.clear()

    def synchronise(self) -> None:
        self.forbid("synchronise")
        self.run(lambda: all(stream.done == stream.count for stream in self.streams))

    def function(self, code: str, name: str) -> Any:
        """What CuPy makes of a text: a kernel, which runs on the host."""

        def launch(grid: Any, block: Any, arguments: Any) -> None:
            check_launch(grid, block)
            self.counts["kernel"] += 1
            self.codes.add(code)
            passed = [_passed(a) for a in arguments]
            memory = [self.find(a) for a in arguments if type(a) is int]
            self.enqueue(lambda: self.host(code, name, (grid, block), *passed), memory)

        return launch


class _Device(str):
    """The one device, which NumPy calls "cpu"."""

    world: World
    id = 0
    compute_capability = "90"

    def __enter__(self) -> "_Device":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.world.synchronise()

    @property
    def mem_info(self) -> tuple[int, int]:
        return self.world.limit - self.world.used, self.world.limit


class Products(Fake):
    """cuBLASLt's bindings on a device: what a description says is read at once, the product is done later."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def matmul(self, handle: int, number: int, *rest: Any) -> None:
        self.world.counts["cublaslt"] += 1
        assert rest[-1] == self.world.current[-1].ptr, "a product on another stream"
        told = dict(self.alive[number])
        _, a, _, b, _, _, _, _, d, _, _, scratch, size, _ = rest
        workspace = self.world.owner(scratch)
        assert workspace.size >= size == 4096
        vectors = [told[8]] if 8 in told else []

        def work() -> None:
            self.alive[number], now = told, self.alive[number]
            with np.errstate(all="ignore"):
                super(Products, self).matmul(handle, number, *rest)
            self.alive[number] = now

        self.world.enqueue(work, [self.world.owner(place) for place in (a, b, d, *vectors)] + [workspace])

    def check_scratch(self, place: int, size: int) -> None:
        """It was looked at when the product was launched, and may be somebody else's by now."""


def lent(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> World:
    """A device whose arrays bpnet takes for CuPy's; `run` runs a kernel's text, `seam` is the backend."""
    from bpnet.backends import cupy as seam
    from bpnet.backends.cupy import compiled, cublaslt, device_scalars, prefetch, program, verdicts

    class Backend(seam.CupyBackend):
        def device(self, x: Any) -> Any:
            return x.device

    world = World(run)
    products = Products(world)
    monkeypatch.setattr(cublaslt, "bindings", lambda: (products, BLAS))
    for made in ("_plan", "_handle"):  # nor are those kept that were made for another device
        monkeypatch.setattr(cublaslt, made, functools.cache(getattr(cublaslt, made).__wrapped__))
    monkeypatch.setattr(program, "function", world.function)
    monkeypatch.setattr(verdicts, "_off", {0: {}})  # it has been checked
    for module in (compiled, cublaslt, prefetch, program, seam, device_scalars, verdicts):
        for name in ("cupy", "cupyx"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(world, name))
    monkeypatch.setattr(device_scalars.DeviceScalars, "retired", [])  # nor those of another device
    world.seam = Backend(bp.backends.get("numpy").xp)
    monkeypatch.setitem(bp.backends._by_type, Device, world.seam)
    monkeypatch.setitem(bp.backends._by_name, "cupy", world.seam)
    return world


@pytest.fixture
def world(host: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """CuPy's backend on a stand-in for the device; its arrays are `world.array(values)`."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    world = lent(host, monkeypatch)
    yield world
    for stream in world.streams:  # nobody may wait any more for what a test has left
        stream.queue.clear()
        stream.done = stream.count


def check_launch(grid: tuple[int, int], block: tuple[int, int]) -> None:
    """That devices take so many blocks and threads, and that sums can halve the threads down to one."""
    assert 1 <= grid[0] < 2**31
    assert 1 <= grid[1] < 2**16
    assert block[0] * block[1] <= 1024
    assert all(size > 0 and size & (size - 1) == 0 for size in block)


def _free(after: Any) -> bool:
    return after is None or after[0].done >= after[1]


def _plain(a: Any) -> Any:
    return type(a)(map(_plain, a)) if isinstance(a, list | tuple) else raw(a)


def _arrays(a: Any) -> list[Any]:
    return [x for b in a for x in _arrays(b)] if isinstance(a, list | tuple) else [a]


def _passed(argument: Any) -> Any:
    if type(argument) is int:
        return ctypes.c_longlong(argument)
    kinds = {"i": ctypes.c_int, "I": ctypes.c_uint, "f": ctypes.c_float}
    return kinds.get(argument.dtype.char, ctypes.c_double)(argument)
