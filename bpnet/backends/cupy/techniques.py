"""Each technique of this backend tried on the current device, against its definition on the host."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import array_api_compat.numpy as host
import cupy
import numpy

from bpnet.backends import get
from bpnet.backends.base import Backend
from bpnet.backends.cupy import cublaslt
from bpnet.backends.cupy.compiled import Compiled, Traced
from bpnet.backends.cupy.prefetch import PinnedPrefetcher
from bpnet.backends.cupy.verdicts import CAPTURE, CUBLASLT, KERNELS, STREAMING, instead_of
from bpnet.backends.interrupts import uninterrupted
from bpnet.backends.techniques import Finding, brief, difference

EPILOGUES = ("DEFAULT", "BIAS", "RELU", "RELU_BIAS")
TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2, "float64": 1e-12}
"""Of products relative to the largest, by how they are computed: tf32 in the place of float32 would be seen."""
OF_KERNELS = {"float32": 1e-4, "float64": 1e-11}
"""Of kernels: more than what a few roundings, and functions of another library, can amount to."""


def quick() -> list[Finding]:
    """One small problem of each: a fraction of a second, of which one kernel takes half to be compiled."""
    if cupy.cuda.runtime.is_hip:
        return [*kernels([FORMS], [(33, 12)], ["float32"]), streaming()]
    return [*kernels([FORMS], [(33, 12)], ["float32"]), *products([(24, 32, 16)]), capture(), streaming()]


def thorough() -> Iterator[Finding]:
    """Shapes of every kind: one row, one column, none that fits 16 bytes, more than the threads of a block hold."""
    shapes = [(1, 1), (1, 12), (33, 1), (33, 12), (7, 5), (12, 12), (257, 130), (40, 1500), (4500, 6)]
    yield from kernels([FORMS, SUMS, MAPS, TURNED, MOVES], shapes, ["float32"])
    yield from kernels([FORMS], [(33, 12)], ["float64"])
    yield from products([(1, 1, 1), (1, 12, 5), (24, 32, 16), (33, 7, 130), (257, 64, 40)])
    if not cupy.cuda.runtime.is_hip:
        yield capture()
    yield streaming()


def microseconds(call: Callable[[], Any], calls: int = 20) -> float:
    """Of a call, the host's share included, on average."""
    call()
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    cupy.cuda.Device().synchronize()
    return (time.perf_counter() - start) / calls * 1e6


# ---- fused kernels --------------------------------------------------------------------------------------------------


def _forms(b: Backend, x: Any, y: Any, number: Any) -> tuple[Any, ...]:
    """Reductions of rows, of columns and of everything, and a mask, in one kernel."""
    xp = b.xp
    e = xp.exp(x - xp.max(x, axis=1, keepdims=True))
    share = e / xp.sum(e, axis=1, keepdims=True)
    d = (share - y) * b.keep_mask((3, number), x.shape, 0.75, x.dtype, b.device(x))
    return d, xp.sum(d, axis=0), xp.sum(d * d)


def _sums(b: Backend, x: Any, y: Any, number: Any) -> tuple[Any, ...]:
    """Of columns, where rows need none, and the largest of all."""
    xp = b.xp
    return x * y, xp.sum(x * y, axis=0), xp.sum(y, axis=0), xp.max(xp.abs(x))


def _maps(b: Backend, x: Any, y: Any, number: Any) -> tuple[Any, ...]:
    """Every entry by itself, with vectors that go along rows and columns."""
    xp = b.xp
    z = x * y[:1, :] + y[:, :1] * (1.0 * number)
    return xp.where(z > 0.0, xp.tanh(z), xp.expm1(z)), xp.sqrt(xp.abs(z) + 1.0) - xp.log1p(z * z)


def _turned(b: Backend, x: Any, y: Any, number: Any) -> tuple[Any, ...]:
    """Sums of columns that are factors of rows, where there are as many of both."""
    xp, n = b.xp, min(x.shape)
    sums = xp.sum(x[:n, :n] * y[:n, :n], axis=0)
    return y[:n, :n] * xp.reshape(sums, (n, 1)), y[:n, :n] * sums


def _moves(b: Backend, x: Any, y: Any, number: Any) -> tuple[Any, ...]:
    """Copies in another order."""
    xp, (rows, columns) = b.xp, x.shape
    turned = xp.permute_dims(xp.reshape(x, (rows, 1, columns)), (2, 1, 0))
    return xp.reshape(turned, (columns, rows)), xp.concat([y, x], axis=1), x[::-1, :]


FORMS, SUMS, MAPS, TURNED, MOVES = _forms, _sums, _maps, _turned, _moves


def kernels(functions: list[Any], shapes: list[tuple[int, int]], dtypes: list[str]) -> Iterator[Finding]:
    """Fused kernels and copies; a fault in any form switches off all."""
    backend, definition, rng = get("cupy"), Backend(host), numpy.random.default_rng(0)
    for function in functions:
        for dtype in dtypes:
            for shape in shapes:
                x, y = rng.standard_normal(shape), rng.random(shape)
                of = KERNELS, function.__name__.strip("_"), f"{dtype} {shape[0]} x {shape[1]}"
                given = cupy.asarray(x.astype(dtype)), cupy.asarray(y.astype(dtype)), 5
                compiled, tolerance = Compiled(function, backend), OF_KERNELS[dtype]
                try:
                    found = [cupy.asnumpy(a) for a in compiled(*given)]
                except MemoryError:
                    raise
                except Exception as error:  # a compiler that refuses a text has its own errors
                    yield Finding(*of, math.inf, tolerance, instead_of(KERNELS), refused=brief(error))
                    continue
                single = x.astype(dtype).astype("float64"), y.astype(dtype).astype("float64")
                expected = function(definition, *single, 5)
                errors = [difference(a, e) for a, e in zip(found, expected, strict=True)]
                call = microseconds(lambda: compiled(*given))  # noqa: B023 - called at once
                yield Finding(*of, max(errors), tolerance, instead_of(KERNELS), microseconds=call)


# ---- products -------------------------------------------------------------------------------------------------------


def products(shapes: list[tuple[int, int, int]]) -> Iterator[Finding]:
    """By cuBLASLt: every precision with every epilogue, factors stored either way, (rows, inner, columns)."""
    why = cublaslt.bindings()
    if isinstance(why, str):
        yield Finding(CUBLASLT, "", "", math.inf, 0.0, instead_of(CUBLASLT), refused=f"{why}: install nvmath-python")
        return
    capable = int(cupy.cuda.Device().compute_capability) >= 80
    precisions = ("float32", "tf32", "bfloat16", "float64") if capable else ("float32", "float64")
    for precision in precisions:
        for epilogue in EPILOGUES:
            for i, shape in enumerate(shapes):
                yield product(precision, epilogue, shape, i)


def product(precision: str, epilogue: str, shape: tuple[int, int, int], turn: int = 0) -> Finding:
    """One of them; `turn` chooses which factors are stored transposed, and whether it is added to what is there."""
    rows, inner, columns = shape
    dtype = precision if precision in ("float64", "bfloat16") else "float32"
    real, name = "float64" if precision == "float64" else "float32", f"product {precision} {epilogue}"
    rng, (turn_a, turn_b) = numpy.random.default_rng(0), (bool(turn % 2), bool(turn // 2 % 2))
    accumulate = turn % 3 == 1 and precision != "bfloat16"
    sizes = ((rows, inner), (inner, columns), (columns,), (rows, columns))
    a, b, vector, before = (rng.standard_normal(size).astype(real) for size in sizes)
    if dtype == "bfloat16":
        a, b, vector = map(_rounded, (a, b, vector))
    expected = a.astype("float64") @ b + (vector if "BIAS" in epilogue else 0.0) + (before if accumulate else 0.0)
    expected = numpy.maximum(expected, 0.0) if "RELU" in epilogue else expected
    factors = [_stored(x.T if turned else x, dtype) for x, turned in ((a, turn_a), (b, turn_b))]
    result = "bfloat16" if dtype == "bfloat16" and (epilogue != "DEFAULT" or turn % 2) else real
    out, bias = _stored(before, result), _stored(vector, result)
    stored = (turn_a, rows if turn_a else inner, 0), (turn_b, inner if turn_b else columns, 0)
    given = "float32" if precision == "float64" else precision
    problem = cublaslt.Problem(rows, columns, inner, *stored, dtype, result, given, epilogue, accumulate)
    addresses = *(f.data.ptr for f in factors), out.data.ptr, bias.data.ptr if "BIAS" in epilogue else 0
    of, tolerance = (name, "", f"{rows} x {inner} x {columns}"), TOLERANCES[precision]
    plan = cublaslt.plan(problem, addresses)
    if plan is None:
        return Finding(*of, math.inf, tolerance, instead_of(name), refused="the library has none")
    workspace = cupy.empty(max(plan.scratch, 1), numpy.uint8)
    try:
        plan.run(addresses, workspace.data.ptr)
        error = difference(_loaded(out, result), expected)
        call = None if accumulate else microseconds(lambda: plan.run(addresses, workspace.data.ptr))
    except plan.lt.cuBLASLtError as refusal:
        return Finding(*of, math.inf, tolerance, instead_of(name), refused=brief(refusal))
    return Finding(*of, error, tolerance, instead_of(name), microseconds=call)


def _rounded(x: Any) -> Any:
    """float32 values rounded to bfloat16."""
    bits = numpy.ascontiguousarray(x).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & numpy.uint32(0xFFFF0000)).view(numpy.float32)


def _stored(x: Any, dtype: str) -> Any:
    """A matrix on the device; of a bfloat16 the upper half of a float32."""
    x = numpy.ascontiguousarray(x)
    return cupy.asarray((_rounded(x).view(numpy.uint32) >> 16).astype(numpy.uint16) if dtype == "bfloat16" else x)


def _loaded(x: Any, dtype: str) -> Any:
    values = cupy.asnumpy(x)
    return (values.astype(numpy.uint32) << 16).view(numpy.float32) if dtype == "bfloat16" else values


# ---- graphs and copies ----------------------------------------------------------------------------------------------


def capture() -> Finding:
    """A kernel and a product captured as a graph, which gives the bits of the same launched one by one."""
    backend, rng = get("cupy"), numpy.random.default_rng(0)
    x, y = (cupy.asarray(rng.random((33, 12), "float32")) for _ in range(2))
    of, instead = (CAPTURE, "", "a kernel and a product"), instead_of(CAPTURE)
    try:
        traced = Traced(_forms, backend, (x, y, 5), [x, y, 5], False)
        results = [cupy.zeros(r.shape, r.dtype) for r in traced.new]
        numbers = cupy.asarray(numpy.array(traced.values([x, y, 5])))
        out, arena = cupy.zeros((12, 12), "float32"), traced.program.new_arena()
        calls = [*traced.program.calls(numbers.data, arena, [x, y, *results])]
        problem = cublaslt.Problem(12, 12, 33, (True, 12, 0), (False, 12, 0), *("float32",) * 3, "DEFAULT", False)
        addresses = x.data.ptr, y.data.ptr, out.data.ptr, 0
        plan = cublaslt.plan(problem, addresses)
        if plan is not None:
            workspace = cupy.empty(max(plan.scratch, 1), numpy.uint8)
            calls.append([(plan.run, addresses, workspace.data.ptr)])

        def launched(launch: Callable[[], Any]) -> list[Any]:
            for array in (*results, out):
                array.fill(0)
            launch()
            return [cupy.asnumpy(array) for array in (*results, out)]

        expected = launched(lambda: uninterrupted(chain(*calls)))
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                uninterrupted(chain(*calls))
            finally:
                graph = stream.end_capture()
        found = launched(graph.launch)
        same = all(numpy.array_equal(a, e) for a, e in zip(found, expected, strict=True))
        error = 0.0 if same else max(map(difference, found, expected))
        return Finding(*of, error, 0.0, instead, microseconds=microseconds(graph.launch))
    except MemoryError:
        raise
    except Exception as error:  # of CuPy, of the driver, or of cuBLASLt
        return Finding(*of, math.inf, 0.0, instead, refused=brief(error))


def streaming() -> Finding:
    """Batches through two staging buffers by turns."""
    of, instead, rng = (STREAMING, "", "four batches"), instead_of(STREAMING), numpy.random.default_rng(0)
    batches = [rng.random((rows, 5), "float32") for rows in (7, 7, 7, 3)]
    try:
        prefetcher = PinnedPrefetcher([((5,), numpy.dtype("float32"))], 7, 4)
        start = time.perf_counter()

        def sent(batch: Any) -> Any:
            def write(buffers: Any) -> None:
                buffers[0][...] = batch

            (array,) = prefetcher.send(len(batch), write)
            return array * 1.0  # work that has been launched before the next is sent

        arrays = [sent(batch) for batch in batches]
        prefetcher.close()
        found = [cupy.asnumpy(array) for array in arrays]
        spent = (time.perf_counter() - start) / len(batches) * 1e6
        return Finding(*of, max(map(difference, found, batches)), 0.0, instead, microseconds=spent)
    except MemoryError:
        raise
    except Exception as error:
        return Finding(*of, math.inf, 0.0, instead, refused=brief(error))
