"""CuPy's replacements for the kernels: products by cuBLAS, and all that is elementwise in one pass around them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends import cuda
from bpnet.backends.base import Array, Backend, Rule
from bpnet.backends.trace import NotTraceableError


class Kernel:
    """A rule as kernels for arrays of one type."""

    def __init__(self, form: cuda.Form) -> None:
        self.source = cuda.source(form)
        self.real = numpy.dtype(form.dtype)
        self.vectors, self.held = form.vectors, bool(form.held)
        space: dict[str, Any] = {}
        exec(self.source.text.prepare, space)  # made of names chosen there
        self.prepare = space["prepare"]

    @staticmethod
    def of(rule: Rule, arrays: Sequence[Array], vectors: int = 0, scalars: Sequence[Any] = ()) -> "Kernel | None":
        """The kernels of a rule for such arrays; None where they can't be made, or the arrays differ or have gaps.

        The last `vectors` arrays have an entry for every column of the others.
        """
        first = arrays[0]
        if first.dtype.name not in cuda.TYPES or not first.size:
            return None
        for i, a in enumerate(arrays):
            shape = first.shape if i < len(arrays) - vectors else first.shape[-1:]
            if a.dtype != first.dtype or a.shape != shape or not a.flags.c_contiguous:
                return None
        held = tuple(i for i, s in enumerate(scalars) if isinstance(s, cuda.Held))
        return _kernel(cuda.Form(rule, len(arrays), vectors, len(scalars), first.dtype.name, held))

    def map(self, arrays: Sequence[Array], results: Sequence[Array], scalars: Sequence[Any] = ()) -> None:
        """results <- rule(*arrays, *scalars), in one pass; the i-th result may be the i-th array."""
        columns = results[0].shape[-1] if self.vectors else results[0].size
        rows = results[0].size // columns
        kind, width = self._width(columns if rows > 1 else 0, (*arrays, *results))
        grid, block = cuda.map_launch(rows, columns, width)
        self._function(f"map_{kind}")(
            grid, block, (numpy.int64(rows), numpy.int64(columns), *arrays, *results, *self._numbers(scalars))
        )

    def sum(self, arrays: Sequence[Array], result: Array) -> Array:
        """result <- rule(*arrays), all of them matrices, and the sums of its columns."""
        rows, columns = result.shape
        kind, width = self._width(columns, (*arrays, result))
        (grid, block), step = cuda.sum_launch(rows, columns, width)
        sums = cupy.empty((grid[1], columns), self.real)
        self._function(f"sum_{kind}")(
            grid,
            block,
            (*(numpy.int64(n) for n in (rows, columns, step)), *arrays, result, sums, *self._numbers(())),
        )
        return sums[0] if len(sums) == 1 else cupy.sum(sums, axis=0)

    def _numbers(self, scalars: Sequence[Any]) -> tuple[Any, ...]:
        if self.held:
            return tuple(s.place if isinstance(s, cuda.Held) else numpy.float64(s) for s in scalars)
        numbers: tuple[Any, ...] = self.prepare(self.real.type, *scalars)
        return numbers

    def _function(self, name: str) -> Any:
        return module(self.source.code).get_function(name)

    def _width(self, apart: int, arrays: Sequence[Array]) -> tuple[str, int]:
        """Which kernel fits: the wide one reads 16 bytes at a time; rows begin so many elements `apart`."""
        width = cuda.WIDE[self.real.name]
        wide = apart % width == 0 and all(a.data.ptr % 16 == 0 for a in arrays)
        return ("wide", width) if wide else ("plain", 1)


@lru_cache(maxsize=256)
def _kernel(form: cuda.Form) -> Kernel | None:
    try:
        return Kernel(form)
    except NotTraceableError:
        return None


@lru_cache(maxsize=256)
def module(code: str) -> Any:
    options = ("--std=c++17", "-ffp-contract=off") if cupy.cuda.runtime.is_hip else cuda.OPTIONS
    return cupy.RawModule(code=code, options=options)


def dense_forward(run: Any, x: Array, weight: Array, bias: Array | None, f: Any) -> tuple[Array, Array | None]:
    z = cupy.matmul(x, weight)
    arrays = [z] if bias is None else [z, bias]
    kernel = Kernel.of(f.value if bias is None else _biased(f), arrays, vectors=len(arrays) - 1)
    if kernel is None:
        z = z if bias is None else z + bias
        y = f.value(run.backend, z)
        return y, f.keep(z, y)
    y = cupy.empty_like(z) if f.keeps == "input" else z
    kernel.map(arrays, [y] if y is z or bias is None else [z, y])
    return y, f.keep(z, y)


def dense_backward(
    run: Any, x: Array, weight: Array, kept: Array | None, dy: Array, f: Any, need_dx: bool, has_bias: bool
) -> tuple[Array | None, Array, Array | None]:
    kernel = None if kept is None else Kernel.of(f.derivative, (kept, dy))
    db = None
    if kernel is None:
        dz = f.derivative(run.backend, kept, dy)
        # a product with ones: a sum over rows would keep only one block busy for every 32 columns
        db = cupy.matmul(cupy.ones((1, dz.shape[0]), dz.dtype), dz)[0] if has_bias else None
    else:
        dz = cupy.empty_like(dy)
        if has_bias:
            db = kernel.sum((kept, dy), dz)
        else:
            kernel.map((kept, dy), (dz,))
    place = run.places and run.places.pop(id(weight), None)
    dw = cupy.matmul(x.T, dz, out=cupy.empty_like(weight) if place is None else place)
    return cupy.matmul(dz, weight.T) if need_dx else None, dw, db


@lru_cache(maxsize=256)
def _biased(f: Any) -> Rule:
    """y, and before it z where the derivative reads that, of a product without its bias."""

    def rule(b: Backend, z: Array, bias: Array) -> tuple[Array, ...]:
        z = z + bias
        y = f.value(b, z)
        return (z, y) if f.keeps == "input" else (y,)

    return rule


KERNELS: dict[str, Callable[..., Any]] = {"dense_forward": dense_forward, "dense_backward": dense_backward}
