"""How CuPy launches what `cuda` writes: rules, in one pass each, and the sums over rows of what they give."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends import cuda
from bpnet.backends.base import Array, Backend, Rule
from bpnet.backends.interrupts import uninterrupted
from bpnet.compiler.graph import NotTraceableError

BFLOAT16 = numpy.dtype(numpy.uint16)
"""The type of arrays of bfloat16: words of 16 bits, which only kernels and products here read, so that neither CuPy
nor a layer need know of a type that the standard lacks."""
FLOAT32 = numpy.dtype(numpy.float32)


def launch(code: str, name: str, where: cuda.Launch, arguments: Sequence[Any]) -> None:
    """Launch a kernel of a text on CuPy's current stream; numbers are of NumPy's types."""
    uninterrupted([launching(code, name, where, arguments)])


def launching(code: str, name: str, where: cuda.Launch, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The call that launches it."""
    return function(code, name, cupy.cuda.runtime.getDevice()), *where, tuple(arguments)


@lru_cache(maxsize=1024)
def function(code: str, name: str, device: int) -> Any:
    """A kernel of a text, on the current device, whose number is `device`."""
    return _module(code).get_function(name)


@lru_cache(maxsize=512)
def _module(code: str) -> Any:
    options = ("--std=c++17", "-ffp-contract=off") if cupy.cuda.runtime.is_hip else cuda.OPTIONS
    return cupy.RawModule(code=code, options=options)


class Kernel:
    """A rule as kernels for arrays of one type."""

    def __init__(self, form: cuda.Form) -> None:
        self.form, self.source = form, cuda.source(form)
        self.real = numpy.dtype(form.dtype)
        space: dict[str, Any] = {}
        exec(self.source.text.prepare, space)  # made of names chosen there
        self.prepare = space["prepare"]

    @staticmethod
    def of(
        rule: Rule, arrays: Sequence[Array], along: str = "", scalars: Sequence[Any] = (), stored: Any = None,
        summed: int = 0, exact: bool = False,
    ) -> "Kernel | None":  # fmt: skip
        """The kernels of a rule for such arrays; None where they can't be made, or the arrays differ or have gaps.

        `along` and `summed` are those of `cuda.Form`; without the first, all arrays are of one shape.  `stored` is the
        results' type where that, or an array's, may be BFLOAT16.  `exact` computes in float64 whatever the arrays hold.
        """
        first, along = arrays[0], along or "e" * len(arrays)
        shapes = {"e": first.shape, "c": first.shape[-1:], "r": first.shape[:1]}
        for a, letter in zip(arrays, along, strict=True):
            fits = a.dtype == first.dtype or (stored is not None and {a.dtype, first.dtype} <= {BFLOAT16, FLOAT32})
            if not fits or a.shape != shapes[letter] or not a.flags.c_contiguous:
                return None
        dtypes = [*(a.dtype for a in arrays), first.dtype if stored is None else stored]
        real = "float64" if exact else "float32" if BFLOAT16 in dtypes and stored is not None else first.dtype.name
        if real not in cuda.TYPES or not first.size:
            return None
        kinds = tuple([cuda.STORED.get(dtype.name, "") for dtype in dtypes])
        held = tuple(i for i, s in enumerate(scalars) if isinstance(s, cuda.Held))
        uniform = set(kinds) == {cuda.TYPES[real]}
        return _kernel(cuda.Form(rule, along, len(scalars), real, held, () if uniform else kinds, summed))

    def map(self, arrays: Sequence[Array], results: Sequence[Array], scalars: Sequence[Any] = ()) -> None:
        """results <- rule(*arrays, *scalars), in one pass; the i-th result may be the i-th array, if of its type."""
        uninterrupted([self.mapping(arrays, results, scalars)])

    def mapping(
        self, arrays: Sequence[Array], results: Sequence[Array], scalars: Sequence[Any] = ()
    ) -> tuple[Any, ...]:
        """The call that launches `map`."""
        first = arrays[0]
        columns = first.size if self.form.along.strip("e") == "" else first.shape[-1]
        rows = first.size // columns
        kind, width = self._width(columns if rows > 1 else 0, (*arrays, *results))
        where = cuda.map_launch(rows, columns, width)
        return self.launching(f"map_{kind}", where, (rows, columns), (*arrays, *results), scalars)

    def sum(self, arrays: Sequence[Array], results: Sequence[Array], scalars: Sequence[Any] = ()) -> list[Array]:
        """results <- rule(*arrays, *scalars) of a matrix, but for those of which only sums are wanted: of each a
        matrix of sums of its columns, over some rows each, for `finished`."""
        rows, columns = arrays[0].shape
        kind, width = self._width(columns, (*arrays, *results))
        where, step = cuda.sum_launch(rows, columns, width)
        sums = [cupy.empty((where[0][1], columns), self.real) for _ in range(self.form.summed)]
        self.run(f"sum_{kind}", where, (rows, columns, step), (*arrays, *results, *sums), scalars)
        return sums

    def run(
        self, name: str, where: cuda.Launch, sizes: Sequence[int], arrays: Sequence[Array], scalars: Sequence[Any]
    ) -> None:
        """Launch a kernel of the text."""
        uninterrupted([self.launching(name, where, sizes, arrays, scalars)])

    def launching(
        self, name: str, where: cuda.Launch, sizes: Sequence[int], arrays: Sequence[Array], scalars: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The call that launches it."""
        if self.form.held:
            numbers = tuple(s.place if isinstance(s, cuda.Held) else numpy.float64(s) for s in scalars)
        else:
            numbers = self.prepare(self.real.type, *scalars)
        return launching(self.source.code, name, where, (*map(numpy.int64, sizes), *arrays, *numbers))

    def _width(self, apart: int, arrays: Sequence[Array]) -> tuple[str, int]:
        """Which kernel fits: the wide one reads 16 bytes at a time; rows begin so many elements `apart`."""
        width, along = self.form.width, self.form.along.ljust(len(arrays), "e")
        whole = [a for a, letter in zip(arrays, along, strict=True) if letter == "e"]
        return ("wide", width) if apart % width == 0 and all(a.data.ptr % 16 == 0 for a in whole) else ("plain", 1)


@lru_cache(maxsize=256)
def _kernel(form: cuda.Form) -> Kernel | None:
    try:
        return Kernel(form)
    except NotTraceableError:
        return None


def mapped(
    rule: Rule, arrays: Sequence[Array], results: Sequence[Array], scalars: Sequence[Any] = (), along: str = "",
    stored: Any = None,
) -> None:  # fmt: skip
    """As `Kernel.map`, of a rule and arrays of which it is known that it can be."""
    kernel = Kernel.of(rule, arrays, along, scalars, stored)
    assert kernel is not None
    kernel.map(arrays, results, scalars)


def summed(
    rule: Rule, arrays: Sequence[Array], results: Sequence[Array] = (), scalars: Sequence[Any] = (), along: str = "",
    count: int = 1, stored: Any = None, exact: bool = False,
) -> list[Array]:  # fmt: skip
    """As `Kernel.sum`, of a rule and arrays of which it is known that it can be."""
    kernel = Kernel.of(rule, arrays, along, scalars, stored, count, exact)
    assert kernel is not None
    return kernel.sum(arrays, results, scalars)


def finished(rule: Rule, sums: Sequence[Array], scalars: Sequence[Any] = (), whole: bool = False) -> tuple[Array, ...]:
    """rule(*sums, *scalars) of sums that `Kernel.sum` began, over all rows: vectors.

    Where these are of one `whole` each, over all elements: 0-d arrays.
    """
    if rule is as_they_are and not whole and len(sums[0]) == 1:
        return tuple(s[0] for s in sums)
    count, columns = (sums[0].size, 1) if whole else sums[0].shape
    kernel = _kernel(cuda.Form(rule, "s" * len(sums), len(scalars), sums[0].dtype.name))
    assert kernel is not None
    results = [cupy.empty(() if whole else columns, sums[0].dtype) for _ in kernel.source.text.results]
    kernel.run("finish", cuda.finish_launch(columns), (count, columns), (*sums, *results), scalars)
    return tuple(results)


def as_they_are(b: Backend, *arrays: Array) -> tuple[Array, ...]:
    """The rule of what is only to be summed up."""
    return arrays


def contiguous(a: Array) -> Array:
    """`a`, or where its rows are apart or its columns together, a copy."""
    return a if a.flags.c_contiguous else a.copy()  # in C order
