"""CuPy's replacements for the kernels: products by cuBLASLt, and all that is elementwise in one pass around them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends import cublaslt, cuda
from bpnet.backends.base import Array, Backend, Context, Rule
from bpnet.backends.cupy_launch import BFLOAT16, FLOAT32, Kernel, as_they_are, contiguous, finished, mapped
from bpnet.backends.cupy_sums import SUMS, column_sums
from bpnet.errors import DeviceError


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
    narrow = (
        run.context.narrow and weight.dtype == numpy.float32 and named != "IDENTITY"
    )  # as the last layer's mostly is
    z = cupy.empty((x.shape[0], weight.shape[1]), BFLOAT16 if narrow else weight.dtype)
    left, right = factor(run, x), factor(run, weight)
    added = factor(run, bias) if narrow and bias is not None else bias  # an epilogue's vector is of the result's type
    if named == "RELU" and multiply(run, left, right, z, (False, False), f"RELU{biased}", added):
        return z, f.saved(None, z)
    if named == "GELU" and run.context.precision != "float32" and weight.dtype == numpy.float32:
        kept = cupy.empty_like(z)
        if multiply(run, left, right, z, (False, False), f"GELU_AUX{biased}", added, kept):
            return z, f.saved(kept, z)
    if bias is not None and multiply(run, left, right, z, (False, False), "BIAS", added):
        bias = None
    else:
        plain(run, left, right, z)
    arrays = [z] if bias is None else [z, bias]
    rule = f.value if bias is None else _biased(f)
    kernel = Kernel.of(rule, arrays, "ec"[: len(arrays)], stored=z.dtype if narrow else None)
    if kernel is None:
        z = widened(z) if narrow else z
        z = z if bias is None else z + bias
        y = f.value(run.backend, z)
        return y, f.saved(z, y)
    y = cupy.empty_like(z) if f.saves == "input" else z
    kernel.map(arrays, [y] if y is z or bias is None else [z, y])
    return y, f.saved(z, y)


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
    narrow = run.context.precision == "bfloat16" and weight.dtype == numpy.float32
    kernel = None
    few = 2.0 * x.size * weight.shape[1] <= FEW_OPERATIONS and by_cublaslt(run)
    sums_up = has_bias and not few
    if kept is not None:
        rule = _summed(f.derivative) if sums_up else f.derivative
        kernel = Kernel.of(rule, (kept, dy), stored=BFLOAT16 if narrow else None, summed=int(sums_up))
    db = None
    if kernel is None:
        if dy.dtype == BFLOAT16 and known(f) != "IDENTITY":
            kept, dy = kept if kept is None else widened(kept), widened(dy)
        dz = contiguous(f.derivative(run.backend, kept, dy))
        dz = rounded(dz) if narrow and dz.dtype != BFLOAT16 else dz
    else:
        dz = cupy.empty(dy.shape, BFLOAT16 if narrow else dy.dtype)
        if sums_up:
            (db,) = finished(as_they_are, kernel.sum((kept, dy), (dz,)))
        else:
            kernel.map((kept, dy), (dz,))
    dw, left = run.context.grad_buffer(weight), factor(run, x)
    sums = cupy.empty(dz.shape[1], dw.dtype) if has_bias and db is None and few else None
    if sums is not None and multiply(run, left, dz, dw, (True, False), "BGRADA", sums):
        db = sums
    else:
        plain(run, left, dz, dw, (True, False))
    if has_bias and db is None:
        db = column_sums(dz)
    if not need_dx:
        return None, dw, db
    dx = cupy.empty(x.shape, x.dtype)
    plain(run, dz, factor(run, weight), dx, (False, True))
    return dx, dw, db


class CupyContext(Context):
    """Of products in a precision, of a network whose activations may be stored as they round them, or not."""

    def __init__(
        self,
        backend: Backend,
        precision: str,
        grad_buffers: dict[int, Array] | None,
        network: Any,
    ) -> None:
        super().__init__(backend, precision, grad_buffers)
        self.narrow = precision == "bfloat16" and network is not None and network.products_only
        """Whether kernels store what passes between layers in bfloat16."""
        self.rounded: dict[int, tuple[Array, Array]] = {}
        """By the `id` of an array: that array, and what was made of it for products of less precision."""

    def output(self, y: Array) -> Array:
        return widened(y)


def matmul(run: Any, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """A product of matrices by cuBLASLt, in the precision of the run; of stacks of them, as it is defined."""
    types = {a.dtype, b.dtype}
    if a.ndim != 2 or b.ndim != 2 or (types != {numpy.dtype("float64")} and not types <= {FLOAT32, BFLOAT16}):
        return NotImplemented
    shape = a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]
    out = cupy.empty(shape, FLOAT32 if BFLOAT16 in types else a.dtype)
    plain(run, factor(run, contiguous(a)), factor(run, contiguous(b)), out, (transpose_a, transpose_b))
    return out


def sum_rows(run: Any, x: Array) -> Array:
    if x.ndim != 2 or not x.size or (x.dtype.name not in cuda.TYPES and x.dtype != BFLOAT16):
        return NotImplemented
    return column_sums(contiguous(x))


FEW_OPERATIONS = 2.0**30
"""Operations of a product, up to which it takes so little time (some 20 microseconds) that a launch less is worth more
than the algorithm that the library would choose if it had no columns to sum up besides.  An estimate, to be measured:
of large products it was reported that the sums slow them down (NVIDIA/CUDALibrarySamples, issue 90)."""


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
        named = precision or run.context.precision
    return cublaslt.product(a, b, out, transposed, epilogue, vector, extra, named)


def plain(
    run: Any, a: Array, b: Array, out: Array, transposed: tuple[bool, bool] = (False, False),
    precision: str | None = None,
) -> None:  # fmt: skip
    """out <- op(a) op(b): by cuBLASLt, or else by CuPy, which knows float32 and float64 only."""
    if multiply(run, a, b, out, transposed, "DEFAULT", precision=precision):
        return
    wanted = precision or run.context.precision
    if wanted != "float32" and a.dtype != numpy.float64:
        raise DeviceError(f"cuBLASLt has no {wanted} product for {a.shape} and {b.shape}: use float32")
    cupy.matmul(*(m.T if t else m for m, t in zip((a, b), transposed, strict=True)), out=out)


def factor(run: Any, a: Array) -> Array:
    """A factor as the products of the run take it: rounded once in a run, for the forward and the backward pass.

    Factors are rounded to bfloat16, sums and what the optimizer sees are float32.  Where its context is `narrow`, what
    passes between layers is stored in bfloat16 too; otherwise it is float32, and rounded when a product takes it.
    """
    if run.context.precision != "bfloat16" or a.dtype != numpy.float32:
        return a
    if id(a) not in run.context.rounded:
        run.context.rounded[id(a)] = a, rounded(a)  # with the array itself, so that no other takes its id
    return run.context.rounded[id(a)][1]


def rounded(a: Array) -> Array:
    """A float32 array as bfloat16."""
    return _stored(a, BFLOAT16)


def widened(a: Array) -> Array:
    """A bfloat16 array as float32, others as they are."""
    return _stored(a, FLOAT32) if a.dtype == BFLOAT16 else a


def _stored(a: Array, dtype: Any) -> Array:
    result = cupy.empty(a.shape, dtype)
    mapped(_itself, (contiguous(a),), (result,), stored=dtype)
    return result


def _itself(b: Backend, a: Array) -> Array:
    return a * 1.0


@lru_cache(maxsize=256)
def _summed(rule: Rule) -> Rule:
    """The rule's result twice: to be stored, and to be summed up."""

    def both(b: Backend, *arrays: Array) -> tuple[Array, Array]:
        result = rule(b, *arrays)
        return result, result

    return both


def known(f: Any) -> str:
    """The activation as epilogues are called; a class has its name for itself, so its text tells what f is."""
    return {"ReLU()": "RELU", "GELU(approximate=True)": "GELU", "Identity()": "IDENTITY"}.get(repr(f), "")


@lru_cache(maxsize=256)
def _biased(f: Any) -> Rule:
    """y, and before it z where the derivative reads that, of a product without its bias."""

    def rule(b: Backend, z: Array, bias: Array) -> tuple[Array, ...]:
        z = z + bias
        y = f.value(b, z)
        return (z, y) if f.saves == "input" else (y,)

    return rule


def defined(run: Any, x: Array, *_: Any, **__: Any) -> Any:
    """Leaves a product to its definition, where no other precision than float32 is asked for."""
    if run.context.precision != "float32" and x.dtype == numpy.float32:
        raise DeviceError(
            f"products in {run.context.precision} need the technique 'fused', which was taken out: use float32"
        )
    return NotImplemented


KERNELS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (matmul, sum_rows, dense_forward, dense_backward)
} | SUMS
DEFINITIONS: dict[str, Callable[..., Any]] = {"matmul": defined}
"""Instead of these, where rules are not fused."""
