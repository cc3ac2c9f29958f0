"""CuPy's replacements for the kernels that sum over rows: what is elementwise comes with the sums, in one pass.

CuPy's own sums over rows keep one block busy for every 32 columns, and every operation besides is a pass of its own.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends import cuda_texts, cupy_launch
from bpnet.backends.base import Array, Backend, Rule
from bpnet.backends.cuda import TYPES, Held, map_launch
from bpnet.backends.cupy_launch import BFLOAT16, FLOAT32, as_they_are, contiguous, finished, mapped, summed
from bpnet.compiler.random import fold, threshold


def column_sums(a: Array) -> Array:
    """The sums of the columns of a contiguous matrix; those of bfloat16 are float32."""
    return finished(as_they_are, summed(as_they_are, (a,), stored=FLOAT32 if a.dtype == BFLOAT16 else None))[0]


# ---- batch normalization --------------------------------------------------------------------------------------------


def batch_norm_forward(run: Any, x: Array, scale: Array, shift: Array, epsilon: float) -> Any:
    """As the definition: the mean first, then the squares around it, so that no large numbers cancel.

    The mean that is given back lacks `off`, a unit in its last place or two, which is not worth a launch.
    """
    if x.dtype.name not in TYPES or not x.size:
        return NotImplemented
    x, share = contiguous(x), 1.0 / x.shape[0]
    (mean,) = finished(_mean, summed(as_they_are, (x,)), (share,))
    off, var, inverse = finished(_spread, summed(_around, (x, mean), along="ec", count=2), (share, epsilon))
    y, xhat = cupy.empty_like(x), cupy.empty_like(x)
    mapped(_normal, (x, mean, off, inverse, scale, shift), (y, xhat), along="eccccc")
    return y, xhat, mean, var, inverse


def batch_norm_apply(
    run: Any, x: Array, scale: Array, shift: Array, mean: Array, var: Array, epsilon: float
) -> Any:  # fmt: skip
    if x.dtype.name not in TYPES or not x.size:
        return NotImplemented
    x = contiguous(x)
    y, inverse = cupy.empty_like(x), cupy.empty_like(var)
    mapped(_inverse, (var,), (inverse,), (epsilon,))
    mapped(_by_running, (x, mean, inverse, scale, shift), (y,), along="ecccc")
    return y, inverse


def batch_norm_backward(run: Any, xhat: Array, gain: Array, dy: Array, need_dx: bool) -> Any:
    if dy.dtype.name not in TYPES or not dy.size:
        return NotImplemented
    xhat, dy = contiguous(xhat), contiguous(dy)
    dscale, dshift = finished(as_they_are, summed(_along_and_over, (dy, xhat), count=2))
    if not need_dx:
        return None, dscale, dshift
    dx = cupy.empty_like(dy)
    mapped(_of_batch, (dy, xhat, gain, dscale, dshift), (dx,), (1.0 / dy.shape[0],), along="eeccc")
    return dx, dscale, dshift


def _mean(b: Backend, total: Array, share: Any) -> Array:
    return total * share


def _around(b: Backend, x: Array, mean: Array) -> tuple[Array, Array]:
    centred = x - mean
    return centred, centred * centred


def _spread(b: Backend, off: Array, squares: Array, share: Any, epsilon: Any) -> tuple[Array, Array, Array]:
    off = off * share
    var = b.xp.maximum(squares * share - off * off, 0.0)
    return off, var, _inverse(b, var, epsilon)


def _normal(
    b: Backend, x: Array, mean: Array, off: Array, inverse: Array, scale: Array, shift: Array
) -> tuple[Array, Array]:  # fmt: skip
    xhat = (x - mean - off) * inverse
    return xhat * scale + shift, xhat


def _inverse(b: Backend, var: Array, epsilon: Any) -> Array:
    return 1.0 / b.xp.sqrt(var + epsilon)


def _by_running(
    b: Backend, x: Array, mean: Array, inverse: Array, scale: Array, shift: Array
) -> Array:  # fmt: skip
    return (x - mean) * (scale * inverse) + shift


def _along_and_over(b: Backend, dy: Array, xhat: Array) -> tuple[Array, Array]:
    return dy * xhat, dy


def _of_batch(
    b: Backend, dy: Array, xhat: Array, gain: Array, dscale: Array, dshift: Array, share: Any
) -> Array:  # fmt: skip
    return gain * (dy - (dshift + xhat * dscale) * share)


# ---- losses ---------------------------------------------------------------------------------------------------------


def softmax_cross_entropy(run: Any, z: Array, target: Array, weight: Array | None, total: Any) -> Any:
    labels = target.dtype.name if target.ndim == 1 else None
    real = z.dtype
    known = labels in cuda_texts.LABELS if labels else target.dtype == real
    known = known and (weight is None or weight.dtype == real)
    if not known or real.name not in TYPES or not z.size:
        return NotImplemented
    z, target = contiguous(z), contiguous(target)
    rows, classes = z.shape
    where = cuda_texts.cross_entropy_launch(rows, classes)
    slope, sums = cupy.empty_like(z), cupy.empty((where[0][0], 1), real)
    factor, weights = (1.0 / total, numpy.intp(0)) if weight is None else (1.0, weight * (1.0 / total))
    sizes = numpy.int64(rows), numpy.int64(classes)
    code = cuda_texts.cross_entropy_source(real.name, labels)
    cupy_launch.launch(code, "cross_entropy", where, (*sizes, z, target, weights, real.type(factor), slope, sums))
    return finished(as_they_are, (sums,), whole=True)[0], slope


def elementwise_loss(run: Any, f: Any, output: Array, target: Array, factor: Any) -> Any:
    if not output.size:
        return NotImplemented
    rows = output.shape[0]
    arrays = [contiguous(a).reshape(rows, -1) for a in (output, target)]
    scalars: tuple[Any, ...] = (factor,)
    if not isinstance(factor, float):
        arrays, scalars = [*arrays, contiguous(factor).reshape(-1)], ()
    if any(a.dtype != output.dtype or a.dtype.name not in TYPES for a in arrays):
        return NotImplemented
    dy = cupy.empty_like(arrays[0])
    sums = summed(_stored_first(f), arrays, (dy,), scalars, "eer"[: len(arrays)])
    return finished(as_they_are, sums, whole=True)[0], dy.reshape(output.shape)


@lru_cache(maxsize=64)
def _stored_first(f: Any) -> Rule:
    """Derivative and value of an elementwise loss: what is stored comes before what is summed up."""

    def both(b: Backend, output: Array, target: Array, factor: Any) -> tuple[Array, Array]:
        return f.derivative(b, output, target) * factor, f.value(b, output, target) * factor

    return both


# ---- dropout, clipping ----------------------------------------------------------------------------------------------


def drop(run: Any, x: Array, keep: float, kept: Any) -> Any:
    """Without a mask in memory: what is kept is the key, by which its bits are drawn again for the derivative."""
    if x.dtype.name not in TYPES:
        return NotImplemented
    key, x = run.key if kept is None else kept, contiguous(x)
    y = cupy.empty_like(x)
    width = cuda_texts.DROPPED[x.dtype.name]
    kind, width = ("wide", width) if x.data.ptr % 16 == 0 else ("plain", 1)
    draw(f"drop_{kind}", width, key, keep, (x, y))
    return y, key


def draw(name: str, width: int, key: Any, keep: float, arrays: tuple[Array, ...]) -> None:
    """Launch a kernel of `cuda_texts.mask_source`, the last of whose arrays is the result."""
    size, real, limit = arrays[-1].size, arrays[-1].dtype, threshold(keep)
    if not size:
        return
    held = next((i for i, part in enumerate(key) if isinstance(part, Held)), None)
    if held is None:
        parts, code = (numpy.uint32(fold(key)),), cuda_texts.mask_source(real.name)
    else:
        rest = [numpy.uint32(part & 0xFFFFFFFF) for part in key[held + 1 :]]
        parts = (numpy.uint32(fold(key[:held])), key[held].place, *rest)
        code = cuda_texts.mask_source(real.name, len(rest))
    numbers = numpy.uint32(limit), real.type(2**32 / limit)
    cupy_launch.launch(code, name, map_launch(1, size, width), (numpy.int64(size), *parts, *numbers, *arrays))


def clip_by_global_norm(run: Any, grad: Array, limit: float) -> Any:
    """In float64, where no square of a float32 overflows, so that the largest need not be known first."""
    if grad.dtype != FLOAT32 or not grad.size:
        return NotImplemented
    down, up = finished(_shrink, summed(_power, (grad.reshape(-1, 1),), exact=True), (limit,), whole=True)
    result = cupy.empty_like(grad)
    mapped(_rescaled, (grad,), (result,), (Held(down), Held(up)))
    return result


def _power(b: Backend, x: Array) -> Array:
    return x * x


def _shrink(b: Backend, squares: Array, limit: Any) -> tuple[Array, Array]:
    """By what to divide, and then to multiply, so that neither these nor what comes of them leave float32."""
    norm = b.xp.sqrt(squares)
    down = b.xp.minimum(norm, 1e37)
    return b.xp.where(norm > limit, down, 1.0), b.xp.where(norm > limit, limit * (down / norm), 1.0)


def _rescaled(b: Backend, grad: Array, down: Any, up: Any) -> Array:
    return grad / down * up


SUMS: dict[str, Callable[..., Any]] = {
    "batch_norm_forward": batch_norm_forward,
    "batch_norm_apply": batch_norm_apply,
    "batch_norm_backward": batch_norm_backward,
    "softmax_cross_entropy": softmax_cross_entropy,
    "elementwise_loss": elementwise_loss,
    "drop": drop,
    "clip_by_global_norm": clip_by_global_norm,
}
