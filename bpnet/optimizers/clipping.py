"""Gradients that are no larger than a limit."""

from typing import Any

from bpnet.backends.base import Array, Backend


def clip_by_global_norm(backend: Backend, grad: Array, limit: float) -> Array:
    """`grad` scaled down, where needed, to a Euclidean norm of at most `limit` (Pascanu, Mikolov and Bengio 2013).

    It is divided by its largest entry first (or by a number that has an inverse), so that no square overflows, nor
    limit / norm underflows.  A limit beyond the numbers of its type is none.
    """
    xp = backend.xp
    if limit > float(xp.finfo(grad.dtype).max):
        return grad
    largest, root = scaled_norm(backend, grad)
    clips = largest * root > limit
    down, up = xp.where(clips, largest, 1.0), limit / xp.where(clips, root, limit)
    return backend.fuse(_rescaled)(backend, grad, down, up)


def scaled_norm(backend: Backend, x: Array) -> tuple[Array, Array]:
    """Two factors of the Euclidean norm of `x`, the larger of which is about its largest entry: no square overflows."""
    xp = backend.xp
    smallest = float(xp.finfo(x.dtype).smallest_normal)
    largest = xp.minimum(xp.maximum(xp.max(xp.abs(x)), smallest), 0.5 / smallest)
    part = x / largest
    return largest, xp.sqrt(xp.sum(part * part))


def norm(backend: Backend, x: Array) -> Array:
    """The Euclidean norm of all entries of `x`, a 0-d array."""
    largest, root = scaled_norm(backend, x)
    return largest * root


def _rescaled(b: Backend, grad: Array, down: Any, up: Any) -> Array:
    return grad / down * up
