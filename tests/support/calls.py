"""Layers that call functions of the standard, and some that do what no file can say."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import bpnet as bp


@dataclass(frozen=True)
class Function(bp.Layer):
    """Any function of (xp, x), one row at a time, as a user may write it in a layer; see `CALLS`."""

    name: str

    def out_shape(self, in_shape):
        return (12,)

    def init(self, rng, in_shape):
        return {"w": rng.full(in_shape, 0.5)}

    def forward(self, run, p, x):
        y = CALLS[self.name](run.xp, x * p["w"], x)
        y = run.xp.astype(y, x.dtype)
        return y if tuple(y.shape) == tuple(x.shape) else run.xp.zeros_like(x) + y, None

    def backward(self, run, p, cache, dy, need_dx=True):
        return dy, {"w": run.xp.zeros_like(p["w"])}


def _pairs(names: str) -> dict[str, Any]:
    return {name: lambda xp, x, y, name=name: getattr(xp, name)(x, y) for name in names.split()}


def _unary(names: str, of: Any = lambda xp, x: x) -> dict[str, Any]:
    return {name: lambda xp, x, y, name=name: getattr(xp, name)(of(xp, x)) for name in names.split()}


def _within(xp: Any, x: Any) -> Any:
    return x / (1.0 + xp.abs(x))


CALLS: dict[str, Any] = {
    **_unary(
        "abs asinh atan ceil cos cosh exp expm1 floor isfinite isinf isnan negative positive round sign signbit sin "
        "sinh square tanh trunc reciprocal"
    ),
    **_unary("acos asin atanh log1p tan", _within),
    **_unary("log log2 log10 sqrt", lambda xp, x: xp.abs(x)),
    **_unary("acosh", lambda xp, x: 1.0 + xp.abs(x)),
    **_unary("logical_not bitwise_invert", lambda xp, x: x > 0.0),
    **_pairs(
        "add subtract multiply divide maximum minimum equal not_equal less less_equal greater greater_equal logaddexp "
        "hypot copysign floor_divide remainder logical_and logical_or logical_xor"
    ),
    "pow": lambda xp, x, y: xp.pow(xp.abs(x), y),
    "whole numbers": lambda xp, x, y: xp.astype(x * 9.0, xp.int64) // 4 + xp.astype(y * 9.0, xp.int32) % 5,
    "bits": lambda xp, x, y: (xp.astype(x * 9.0, xp.int64) & 6) | (xp.astype(y * 9.0, xp.int64) ^ 5),
    "truths": lambda xp, x, y: ((x > 0.1) & (y < 0.5)) | ~(x > 1.0) ^ (y > 2.0),
    "operators": lambda xp, x, y: -x + 2.0 * y - x / 3.0 + abs(y) ** 2.0 + (+x),
    "clip": lambda xp, x, y: xp.clip(x, -0.2, 0.3) + xp.clip(y, max=0.5),
    "where": lambda xp, x, y: xp.where(x > 0.0, y, 0.0) + xp.where(y > 0.0, 1.0, x),
    "matmul": lambda xp, x, y: xp.matmul(x, xp.matmul(xp.matrix_transpose(y[:1, :]), x[:1, :])),
    "vecdot": lambda xp, x, y: xp.vecdot(x, y)[:, None],
    "tensordot": lambda xp, x, y: xp.tensordot(x, xp.reshape(xp.arange(144, dtype=x.dtype) / 99.0, (12, 12)), axes=1),
    "reshape": lambda xp, x, y: xp.reshape(xp.permute_dims(xp.reshape(x, (-1, 3, 4)), (0, 2, 1)), (-1, 12)),
    "moveaxis": lambda xp, x, y: xp.reshape(xp.moveaxis(xp.reshape(x, (-1, 3, 4)), 1, 2), x.shape),
    "broadcast": lambda xp, x, y: xp.broadcast_to(x[:, :1], x.shape) + xp.broadcast_arrays(x[:, 1:2], y)[0],
    "squeeze": lambda xp, x, y: xp.squeeze(xp.expand_dims(xp.expand_dims(x, axis=1), axis=-1), axis=(1, -1)),
    "concat": lambda xp, x, y: xp.concat([x[:, 6:], y[:, :6]], axis=1),
    "stack": lambda xp, x, y: xp.sum(xp.stack([x, y], axis=1) * 2.0, axis=1),
    "unstack": lambda xp, x, y: xp.stack(list(xp.unstack(x, axis=1))[::-1], axis=1),
    "flip": lambda xp, x, y: xp.flip(x, axis=1) + y[:, ::-1],
    "roll": lambda xp, x, y: xp.roll(x, 5, axis=1) + xp.roll(y, -1, axis=1),
    "repeat": lambda xp, x, y: xp.repeat(x[:, :4], 3, axis=1),
    "tile": lambda xp, x, y: xp.tile(x[:, :4], (1, 3)),
    "tril": lambda xp, x, y: xp.reshape(xp.tril(xp.reshape(x, (-1, 3, 4))) + xp.triu(xp.reshape(y, (-1, 3, 4)), k=1),
                                        (-1, 12)),
    "index": lambda xp, x, y: x[:, 3][:, None] + y[..., -1:] + xp.reshape(x, (-1, 3, 4))[:, None, 1:, 2][:, 0, -2:-1],
    "numbers of columns": lambda xp, x, y: x[:, xp.asarray([3, 1] * 6)],
    "take": lambda xp, x, y: xp.take(x, xp.asarray([11, 0, -1] * 4), axis=1),
    "take_along_axis": lambda xp, x, y: xp.take_along_axis(x, xp.argsort(y, axis=1), axis=1),
    "searchsorted": lambda xp, x, y: xp.searchsorted(xp.asarray([-1.0, 0.0, 1.0], dtype=x.dtype), x)
    + xp.searchsorted(xp.asarray([-1.0, 0.0, 1.0], dtype=x.dtype), y, side="right"),
    **{name: lambda xp, x, y, name=name: getattr(xp, name)(xp.reshape(x, (-1, 3, 4)), axis=(1, 2))[:, None]
       for name in "sum mean max min var std".split()},  # noqa: SIM905
    "prod": lambda xp, x, y: xp.prod(x, axis=-1, keepdims=True),
    "corrected": lambda xp, x, y: xp.std(x, axis=1, correction=1.0, keepdims=True),
    "all": lambda xp, x, y: xp.all(x < 1.0, axis=1, keepdims=True) | xp.any(y > 1.0, axis=1, keepdims=True),
    "count_nonzero": lambda xp, x, y: xp.count_nonzero(xp.trunc(x), axis=1, keepdims=True),
    "argmax": lambda xp, x, y: xp.argmax(x, axis=1, keepdims=True) - xp.argmin(y, axis=-1)[:, None],
    "sort": lambda xp, x, y: xp.sort(x, axis=1) + xp.sort(y, axis=-1, descending=True),
    "cumulative_sum": lambda xp, x, y: xp.cumulative_sum(x, axis=1),
    "diff": lambda xp, x, y: xp.diff(xp.concat([x, y[:, :2]], axis=1), axis=1, n=2),
    "over all rows": lambda xp, x, y: x - xp.mean(x, axis=0) + xp.max(y, axis=0, keepdims=True) * xp.sum(y),
    "of so many rows": lambda xp, x, y: xp.zeros((x.shape[0], 1)) + xp.arange(x.shape[0], dtype=x.dtype)[:, None]
    + xp.full((x.shape[0] + 1, 12), 2.0)[1:, :] + xp.ones_like(x) + xp.full_like(y, 3.0),
    "to the last row": lambda xp, x, y: x[: x.shape[0] - 1 + 1, :] * y[-1:, :] + x[-1, :],
    "two axes of rows": lambda xp, x, y: xp.reshape(xp.reshape(x, (x.shape[0] * 3, 4)), (x.shape[0], 12)),
    "norm": lambda xp, x, y: xp.linalg.vector_norm(x, axis=1, keepdims=True),
    "outer": lambda xp, x, y: x + xp.sum(xp.linalg.outer(x[0, :], y[0, :]), axis=0),
    "NumPy's arrays": lambda xp, x, y: x + xp.asarray(np.arange(12.0), dtype=x.dtype) * np.float32(2.0),
}  # fmt: skip
"""Functions of the standard, of x and another array like it; what has a column for each row is made as wide as x."""


@dataclass(frozen=True)
class Refused(Function):
    """What can't be said in a file."""

    def forward(self, run, p, x):
        return (REFUSED | UNUSUAL)[self.name][0](run, x), None


def _looks(run, x):
    return x if run.xp.any(x > 100.0) else -x


def _writes(run, x):
    x[0, 0] = 1.0
    return x


REFUSED = {
    "values": (_looks, "looks at values"),
    "masks": (lambda run, x: run.xp.broadcast_to(x[x > 0.0][0], x.shape), "a mask selects"),
    "writing": (_writes, "changed in place"),
    "random numbers": (lambda run, x: x + run.normal(x.shape, like=x), "draws random numbers"),
    "rows in a branch": (lambda run, x: x * 2.0 if x.shape[0] == 1 else x, "number of rows"),
    "rows in a number": (lambda run, x: x * (1.0 / x.shape[0]), "multiply depends on the number of rows"),
    "half of the rows": (lambda run, x: x + run.xp.sum(x[: x.shape[0] // 2, :]), "otherwise than"),
    "methods": (lambda run, x: x - x.mean(), "write xp.mean"),
    "other values, other shapes": (lambda run, x: x + run.xp.unique_values(x)[0], "unique_values"),
    "NumPy's functions": (lambda run, x: np.tanh(x), "Recorded"),
}

UNUSUAL = {"pinv": (lambda run, x: x + run.xp.linalg.pinv(x)[0, 0], r"no counterpart of linalg\.pinv")}
"""What can be recorded, and hardly any other library has."""
