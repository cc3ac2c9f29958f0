"""NumPy's replacements for the kernels: the same mathematics over cut-up memory.

Rows are handled in chunks whose temporaries stay in cache.  Where a batch may not be cut into blocks, because a layer
couples its rows, every kernel cuts its own rows into blocks over the threads and adds up what sums over rows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy

from bpnet.backends.base import NARROW, SUMMED, SUMMED_PRODUCTS, Array, Rows, by_halves
from bpnet.backends.blas import SMALL

CHUNK = 65536
"""Elements of an array that are handled at a time, so that temporaries stay in cache."""


def chunks(block: Rows, width: int) -> list[slice]:
    """Slices of the block's rows of about CHUNK elements."""
    step = max(CHUNK // max(width, 1), 1)
    return [slice(start, min(start + step, block[1])) for start in range(*block, step)]


def by_chunks(rule: Callable[..., Any], b: Any, *args: Any) -> Array:
    """`rule(b, *args)` of arrays of one shape, a chunk of rows at a time; None and numbers stay as they are."""
    like = next(a for a in args if a is not None)
    if like.size <= CHUNK:
        return rule(b, *args)
    result = numpy.empty_like(like)

    def block(number: int, part: Rows) -> None:
        for c in chunks(part, like.size // like.shape[0]):
            result[c] = rule(b, *(a[c] if isinstance(a, numpy.ndarray) and a.ndim else a for a in args))

    list(b.map_blocks(block, b.blocks(like.shape[0], 10.0 * like.size / like.shape[0])))
    return result


_total = partial(by_halves, add=operator.add)


@lru_cache(maxsize=256)
def shared(f: Any) -> Any:
    """The first of equal activations: what is traced of it serves them all."""
    return f


def matmul(run: Any, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """Cut by its shapes over BLAS's threads, or over ours where there are many rows."""
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
        return NotImplemented
    left, right = a.T if transpose_a else a, b.T if transpose_b else b
    (rows, inner), columns = left.shape, right.shape[1]
    sums_rows = transpose_a and not transpose_b
    if sums_rows and inner > SUMMED_PRODUCTS and min(rows, columns) <= NARROW:
        return NotImplemented
    if rows * inner * columns <= SMALL:
        return left @ right
    backend = run.backend
    if sums_rows and len(parts := backend.blocks(inner, 2.0 * rows * columns)) > 1:
        return by_halves(
            backend.map_blocks(lambda _, part: left[:, slice(*part)] @ right[slice(*part)], parts), operator.iadd
        )
    out = numpy.empty((rows, columns), a.dtype)

    def block(number: int, part: Rows) -> None:
        backend.multiply([(left[slice(*part)], right, out[slice(*part)])])

    list(backend.map_blocks(block, backend.blocks(rows, 2.0 * inner * columns)))
    return out


def sum_rows(run: Any, x: Array) -> Array:
    """As it is defined, without what the standard's names for it cost."""
    add, shape = numpy.add.reduce, x.shape[1:]
    if x.shape[0] <= SUMMED:
        return add(x, axis=0)
    x = x.reshape(x.shape[0], math.prod(shape))
    while x.shape[0] > SUMMED:
        rows, columns = x.shape
        side = -(-rows // SUMMED)
        last = rows // side * side
        sums = add(x[:last].reshape(rows // side, side * columns), axis=0)
        sums = sums if last == rows else numpy.concatenate([sums, x[last:].reshape(-1)])
        x = sums.reshape(side + rows - last, columns)
    return add(x, axis=0).reshape(shape)


def scatter_add(run: Any, table: Array, index: Array, rows: Array) -> Array:
    """Sorted by their numbers, and SUMMED of a number at a time, until one row of each is left."""
    order = numpy.argsort(index, kind="stable")
    index, rows, count = index[order], rows[order], 0
    while count != index.size:
        begins = numpy.flatnonzero(numpy.concatenate([[True], index[1:] != index[:-1]]))
        lengths = numpy.diff(begins, append=index.size)
        place = numpy.arange(index.size) - numpy.repeat(begins, lengths)  # of a row among those of its number
        starts, count = numpy.flatnonzero(place % SUMMED == 0), begins.size
        index, rows = index[starts], numpy.add.reduceat(rows, starts, axis=0)
    gradient = run.context.grad_buffer(table)
    gradient[...] = 0.0
    gradient[index] = rows
    return gradient


def dense_forward(run: Any, x: Array, weight: Array, bias: Array | None, f: Any) -> tuple[Array, Array | None]:
    b, rows, units = run.backend, x.shape[0], weight.shape[1]
    # What is small BLAS would not be given in pieces; rows of scipy.sparse, which estimators take, can't be.
    if rows * weight.size <= SMALL or not isinstance(x, numpy.ndarray):
        z = x @ weight
        if bias is not None:
            z += bias
        y = f.value(b, z)
        return y, f.saved(z, y)
    f, parts = shared(f), b.blocks(rows, 2.0 * weight.size)
    z = numpy.empty((rows, units), x.dtype)
    y = numpy.empty_like(z) if f.saves == "input" else z  # y over the memory of z where the derivative does not read z

    def block(number: int, part: Rows) -> None:
        some = slice(*part)
        b.multiply([(x[some], weight, z[some])])
        for c in chunks(part, units):
            if bias is not None:
                z[c] += bias
            part_of_z = z[c]
            b.evaluate(f.value, (part_of_z,), part_of_z if y is z else y[c])

    list(b.map_blocks(block, parts))
    return y, f.saved(z, y)


def dense_backward(
    run: Any, x: Array, weight: Array, saved: Array | None, dy: Array, f: Any, need_dx: bool, has_bias: bool
) -> tuple[Array | None, Array, Array | None]:
    b, rows = run.backend, x.shape[0]
    if rows * weight.size <= SMALL or not isinstance(x, numpy.ndarray):
        dz = f.derivative(b, saved, dy)
        dw = _weight_gradient(run, x, dz, weight)
        return dz @ weight.T if need_dx else None, dw, run.sum_rows(dz) if has_bias else None
    f, parts = shared(f), b.blocks(rows, 4.0 * weight.size)
    dx = numpy.empty((rows, weight.shape[0]), dy.dtype) if need_dx else None
    if len(parts) == 1:
        dz, db = _activation_gradient(run, saved, dy, f, has_bias)
        if rows > SUMMED_PRODUCTS and min(weight.shape) <= NARROW:
            dw = _weight_gradient(run, x, dz, weight)
            if dx is not None:
                b.multiply([(dz, weight.T, dx)])
            return dx, dw, db
        dw = run.context.grad_buffer(weight)
        b.multiply([(x.T, dz, dw)] if dx is None else [(x.T, dz, dw), (dz, weight.T, dx)])
        return dx, dw, db

    def block(number: int, part: Rows) -> tuple[Array, Array | None]:
        some = slice(*part)
        dz, db = _activation_gradient(run, None if saved is None else saved[some], dy[some], f, has_bias)
        if dx is not None:
            numpy.matmul(dz, weight.T, out=dx[some])
        return x[some].T @ dz, db

    def add(total: tuple[Array, Array | None], more: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        for a, some in zip(total, more, strict=True):
            if a is not None:
                a += some
        return total

    return dx, *by_halves(b.map_blocks(block, parts), add)


def _weight_gradient(run: Any, x: Array, dz: Array, weight: Array) -> Array:
    dw = run.context.grad_buffer(weight)
    if not isinstance(x, numpy.ndarray):
        dw[...] = x.T @ dz
        return dw
    if x.shape[0] <= SUMMED_PRODUCTS:
        return numpy.matmul(x.T, dz, out=dw)
    dw[...] = run.matmul(x, dz, transpose_a=True)
    return dw


def _activation_gradient(run: Any, saved: Array | None, dy: Array, f: Any, sums: bool) -> tuple[Array, Array | None]:
    """dz and its sums over the rows, taken while the chunk is in cache."""
    b = run.backend
    if saved is None:
        return f.derivative(b, saved, dy), run.sum_rows(dy) if sums else None
    dz = numpy.empty_like(dy)
    for c in chunks((0, dy.shape[0]), dy.shape[1]):
        b.evaluate(f.derivative, (saved[c], dy[c]), dz[c])
    return dz, run.sum_rows(dz) if sums else None


def batch_norm_forward(
    run: Any, x: Array, scale: Array, shift: Array, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    b, (n, width) = run.backend, x.shape
    parts = b.blocks(n, 10.0 * width)
    xhat, y = numpy.empty_like(x), numpy.empty_like(x)

    mean = _total(b.map_blocks(lambda _, part: run.sum_rows(x[slice(*part)]), parts)) * (1.0 / n)

    def centre(number: int, part: Rows) -> Array:
        sums = []
        for c in chunks(part, width):
            centred = numpy.subtract(x[c], mean, out=xhat[c])
            sums.append(numpy.stack([run.sum_rows(centred), run.sum_rows(centred * centred)]))
        return _total(sums)

    off, squares = _total(b.map_blocks(centre, parts)) * (1.0 / n)  # `off`: what rounding left out of the mean
    mean = mean + off
    var = numpy.maximum(squares - off * off, 0.0)
    inverse = 1.0 / numpy.sqrt(var + epsilon)

    def normal(number: int, part: Rows) -> None:
        for c in chunks(part, width):
            xhat[c] -= off
            xhat[c] *= inverse
            numpy.multiply(xhat[c], scale, out=y[c])
            y[c] += shift

    list(b.map_blocks(normal, parts))
    return y, xhat, mean, var, inverse


def batch_norm_backward(
    run: Any, xhat: Array, gain: Array, dy: Array, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    b, (n, width) = run.backend, dy.shape
    parts = b.blocks(n, 10.0 * width)

    def sums(number: int, part: Rows) -> Array:
        some = chunks(part, width)
        return _total(numpy.stack([run.sum_rows(dy[c] * xhat[c]), run.sum_rows(dy[c])]) for c in some)

    dscale, dshift = _total(b.map_blocks(sums, parts))
    if not need_dx:
        return None, dscale, dshift
    dx = numpy.empty_like(dy)
    along, offset = dscale * (-1.0 / n), dshift * (-1.0 / n)

    def derive(number: int, part: Rows) -> None:
        for c in chunks(part, width):
            numpy.multiply(xhat[c], along, out=dx[c])
            dx[c] += offset
            dx[c] += dy[c]
            dx[c] *= gain

    list(b.map_blocks(derive, parts))
    return dx, dscale, dshift


def elementwise_loss(run: Any, f: Any, output: Array, target: Array, factor: Any) -> tuple[Array, Array]:
    values, dy = f.value(run.backend, output, target), f.derivative(run.backend, output, target) * factor
    if type(factor) is float:
        total = numpy.add.reduce(values, axis=None) * factor
        if math.isfinite(total):  # else the sum alone may be too large
            return total, dy
    return numpy.add.reduce(values * factor, axis=None), dy


def softmax_cross_entropy(run: Any, z: Array, target: Array, weight: Array | None, total: Any) -> Any:
    if target.ndim != 1:
        return NotImplemented
    rows = numpy.arange(z.shape[0])
    e = z - numpy.maximum.reduce(z, axis=1, keepdims=True)
    right = e[rows, target]
    numpy.exp(e, out=e)
    norm = numpy.add.reduce(e, axis=1)
    loss = numpy.log(norm) - right
    share = 1.0 / total if weight is None else weight * (1.0 / total)
    e *= (share / norm)[:, None]
    e[rows, target] -= share
    if weight is None:
        return numpy.add.reduce(loss) * share, e
    e[share == 0.0] = 0.0  # even where it is 0 times what is not finite, as of the loss
    return numpy.add.reduce(numpy.where(share > 0.0, loss * share, 0.0)), e


_KERNELS: tuple[Callable[..., Any], ...] = (
    matmul, sum_rows, scatter_add, dense_forward, dense_backward, elementwise_loss, softmax_cross_entropy,
    batch_norm_forward, batch_norm_backward,
)  # fmt: skip
KERNELS = {kernel.__name__: kernel for kernel in _KERNELS}
