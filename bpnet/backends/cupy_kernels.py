"""CuPy's replacements for the kernels: products by cuBLASLt, and all that is elementwise in one pass around them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends import cublaslt, cuda
from bpnet.backends.base import Array, Backend, Rule
from bpnet.backends.trace import NotTraceableError
from bpnet.errors import DeviceError


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
    def of(
        rule: Rule, arrays: Sequence[Array], vectors: int = 0, scalars: Sequence[Any] = (), stored: Any = None
    ) -> "Kernel | None":
        """The kernels of a rule for such arrays; None where they can't be made, or the arrays differ or have gaps.

        The last `vectors` arrays have an entry for every column of the others.  `stored` is the results' type where
        that, or an array's, may be BFLOAT16.
        """
        first = arrays[0]
        narrow = () if stored is None else tuple([dtype == BFLOAT16 for dtype in (*(a.dtype for a in arrays), stored)])
        name = "float32" if any(narrow) else first.dtype.name
        if name not in cuda.TYPES or not first.size:
            return None
        for i, a in enumerate(arrays):
            shape = first.shape if i < len(arrays) - vectors else first.shape[-1:]
            fits = a.dtype.name == name or (a.dtype == BFLOAT16 and stored is not None)
            if not fits or a.shape != shape or not a.flags.c_contiguous:
                return None
        held = tuple(i for i, s in enumerate(scalars) if isinstance(s, cuda.Held))
        form = cuda.Form(rule, len(arrays), vectors, len(scalars), name, held, narrow if any(narrow) else ())
        return _kernel(form)

    def map(self, arrays: Sequence[Array], results: Sequence[Array], scalars: Sequence[Any] = ()) -> None:
        """results <- rule(*arrays, *scalars), in one pass; the i-th result may be the i-th array, if of its type."""
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
    """y, and what the derivative of f reads.

    The product's epilogue adds the bias and applies relu, whose derivative reads y itself: so the bit mask that the
    library offers would only be more memory.  It may make 0 of what is not a number (NVIDIA's forum, topic 329783),
    where the rule hands that on.  A training that diverges is still seen from its parameters: what is not finite in a
    layer's input makes its weights' gradient so, times 0 or not.  It applies gelu by tanh too, but how exactly is not
    documented, so not where float32 is wanted.  Any other f takes a pass of its own over what the product stored.
    """
    x, weight = contiguous(x), contiguous(weight)
    named, biased = known(f), "" if bias is None else "_BIAS"
    narrow = run.narrow and weight.dtype == numpy.float32 and named != "IDENTITY"  # as the last layer's mostly is
    z = cupy.empty((x.shape[0], weight.shape[1]), BFLOAT16 if narrow else weight.dtype)
    left, right = factor(run, x), factor(run, weight)
    added = factor(run, bias) if narrow and bias is not None else bias  # an epilogue's vector is of the result's type
    if named == "RELU" and multiply(run, left, right, z, (False, False), f"RELU{biased}", added):
        return z, f.keep(None, z)
    if named == "GELU" and run.precision != "float32" and weight.dtype == numpy.float32:
        kept = cupy.empty_like(z)
        if multiply(run, left, right, z, (False, False), f"GELU_AUX{biased}", added, kept):
            return z, f.keep(kept, z)
    if bias is not None and multiply(run, left, right, z, (False, False), "BIAS", added):
        bias = None
    else:
        plain(run, left, right, z)
    arrays = [z] if bias is None else [z, bias]
    rule = f.value if bias is None else _biased(f)
    kernel = Kernel.of(rule, arrays, vectors=len(arrays) - 1, stored=z.dtype if narrow else None)
    if kernel is None:
        z = widened(z) if narrow else z
        z = z if bias is None else z + bias
        y = f.value(run.backend, z)
        return y, f.keep(z, y)
    y = cupy.empty_like(z) if f.keeps == "input" else z
    kernel.map(arrays, [y] if y is z or bias is None else [z, y])
    return y, f.keep(z, y)


def dense_backward(
    run: Any, x: Array, weight: Array, kept: Array | None, dy: Array, f: Any, need_dx: bool, has_bias: bool
) -> tuple[Array | None, Array, Array | None]:
    """dL/dx (where needed), dL/dW and dL/db.

    dz = dL/dy f'(.) is read three times: for dL/dW, dL/dx and dL/db.  The epilogues that multiply by the slope of relu
    or gelu belong to the product whose result is dL/dy, which is that of the layer above, and that layer knows nothing
    of this one's activation (dropout may lie between); so the slope has a pass of its own.  dL/db, the sums of the
    columns of dz, comes with that pass, or with the product for dL/dW, which saves a launch: see FEW_OPERATIONS.
    """
    x, weight, dy = contiguous(x), contiguous(weight), contiguous(dy)
    narrow = run.precision == "bfloat16" and weight.dtype == numpy.float32
    kernel = None
    if kept is not None:
        kernel = Kernel.of(f.derivative, (kept, dy), stored=BFLOAT16 if narrow else None)
    few = 2.0 * x.size * weight.shape[1] <= FEW_OPERATIONS and by_cublaslt(run)
    db = None
    if kernel is None:
        if dy.dtype == BFLOAT16 and known(f) != "IDENTITY":
            kept, dy = kept if kept is None else widened(kept), widened(dy)
        dz = contiguous(f.derivative(run.backend, kept, dy))
        dz = rounded(dz) if narrow and dz.dtype != BFLOAT16 else dz
    else:
        dz = cupy.empty(dy.shape, BFLOAT16 if narrow else dy.dtype)
        if has_bias and not few:
            db = kernel.sum((kept, dy), dz)
        else:
            kernel.map((kept, dy), (dz,))
    dw, left = run.place(weight), factor(run, x)
    sums = cupy.empty(dz.shape[1], dw.dtype) if has_bias and db is None and few else None
    if sums is not None and multiply(run, left, dz, dw, (True, False), "BGRADA", sums):
        db = sums
    else:
        plain(run, left, dz, dw, (True, False))
    if has_bias and db is None:
        db = column_sums(run, dz, dw.dtype)
    if not need_dx:
        return None, dw, db
    dx = cupy.empty(x.shape, x.dtype)
    plain(run, dz, factor(run, weight), dx, (False, True))
    return dx, dw, db


FEW_OPERATIONS = 2.0**30
"""Operations of a product, up to which it takes so little time (some 20 microseconds) that a launch less is worth more
than the algorithm that the library would choose if it had no columns to sum up besides.  An estimate, to be measured:
of large products it was reported that the sums slow them down (NVIDIA/CUDALibrarySamples, issue 90)."""

BFLOAT16 = numpy.dtype(numpy.uint16)
"""The type of arrays of bfloat16: words of 16 bits, which only kernels and products here read, so that neither CuPy
nor a layer need know of a type that the standard has not.

Factors are rounded to it, sums and what the optimizer sees are float32.  Where a run is `narrow`, what passes between
dense layers is stored in it too; otherwise it is float32, and rounded when a product takes it."""


def by_cublaslt(run: Any) -> bool:
    """Whether products are to be tried there first."""
    return "cublaslt" in run.backend.techniques and cublaslt.available()


def multiply(
    run: Any, a: Array, b: Array, out: Array, transposed: tuple[bool, bool], epilogue: str,
    vector: Array | None = None, extra: Array | None = None, precision: str | None = None,
) -> bool:  # fmt: skip
    """As `cublaslt.product`, in the precision of the run or another, where that is for arrays of this type."""
    if not by_cublaslt(run):
        return False
    named = "bfloat16" if a.dtype == BFLOAT16 else "float32"
    if a.dtype == numpy.float32:
        named = precision or run.precision
    return cublaslt.product(a, b, out, transposed, epilogue, vector, extra, named)


def plain(
    run: Any, a: Array, b: Array, out: Array, transposed: tuple[bool, bool] = (False, False),
    precision: str | None = None,
) -> None:  # fmt: skip
    """out <- op(a) op(b): by cuBLASLt, or else by CuPy, which knows float32 and float64 only."""
    if multiply(run, a, b, out, transposed, "DEFAULT", precision=precision):
        return
    wanted = precision or run.precision
    if wanted != "float32" and a.dtype != numpy.float64:
        raise DeviceError(f"cuBLASLt has no {wanted} product for {a.shape} and {b.shape}: use float32")
    cupy.matmul(*(m.T if t else m for m, t in zip((a, b), transposed, strict=True)), out=out)


def column_sums(run: Any, dz: Array, dtype: Any) -> Array:
    """The sums of the columns by a product with ones: a sum over rows would keep only one block busy for every 32."""
    ones, sums = cupy.ones((1, dz.shape[0]), dtype), cupy.empty((1, dz.shape[1]), dtype)
    narrow = dz.dtype == BFLOAT16
    plain(run, rounded(ones) if narrow else ones, dz, sums, precision="bfloat16" if narrow else "float32")
    return sums[0]


def factor(run: Any, a: Array) -> Array:
    """A factor as the products of the run take it: rounded once in a run, for the forward and the backward pass."""
    if run.precision != "bfloat16" or a.dtype != numpy.float32:
        return a
    if id(a) not in run.rounded:
        run.rounded[id(a)] = a, rounded(a)  # with the array itself, so that no other takes its id
    return run.rounded[id(a)][1]


def rounded(a: Array) -> Array:
    """A float32 array as bfloat16."""
    return _stored(a, BFLOAT16)


def widened(a: Array) -> Array:
    """A bfloat16 array as float32, others as they are."""
    return _stored(a, numpy.float32) if a.dtype == BFLOAT16 else a


def _stored(a: Array, dtype: Any) -> Array:
    a = contiguous(a)
    kernel = Kernel.of(_itself, (a,), stored=dtype)
    assert kernel is not None
    result = cupy.empty(a.shape, dtype)
    kernel.map((a,), (result,))
    return result


def _itself(b: Backend, a: Array) -> Array:
    return a * 1.0


def contiguous(a: Array) -> Array:
    """`a`, or where its rows are apart or its columns together, a copy."""
    return a if a.flags.c_contiguous else a.copy()  # in C order


def known(f: Any) -> str:
    """The activation as epilogues are called; a class has its name for itself, so its text tells what f is."""
    return {"ReLU()": "RELU", "GELU(approximate=True)": "GELU", "Identity()": "IDENTITY"}.get(repr(f), "")


@lru_cache(maxsize=256)
def _biased(f: Any) -> Rule:
    """y, and before it z where the derivative reads that, of a product without its bias."""

    def rule(b: Backend, z: Array, bias: Array) -> tuple[Array, ...]:
        z = z + bias
        y = f.value(b, z)
        return (z, y) if f.keeps == "input" else (y,)

    return rule


def defined(run: Any, x: Array, *_: Any) -> Any:
    """Leaves a product to its definition, where no other precision than float32 is asked for."""
    if run.precision != "float32" and x.dtype == numpy.float32:
        raise DeviceError(f"products in {run.precision} need the technique 'fused', which was taken out: use float32")
    return NotImplemented


KERNELS: dict[str, Callable[..., Any]] = {"dense_forward": dense_forward, "dense_backward": dense_backward}
DEFINITIONS: dict[str, Callable[..., Any]] = dict.fromkeys(KERNELS, defined)
"""Instead of these, where rules are not fused."""
