"""Normalization: over the rows of a batch, which then depend on each other, or within each row."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape, kernel
from bpnet.options import flag, number, positive, whole


def features_of(layer: Layer, in_shape: Shape) -> int:
    """How many features a row of `in_shape` has, along its last axis; raises ShapeError where it has no axis."""
    if not in_shape:
        name = type(layer).__name__
        raise ShapeError(f"{name} needs rows of features, but x has one axis: make it (rows, features)")
    return in_shape[-1]


@dataclass(frozen=True)
class BatchNorm(Layer):
    r"""y = scale xhat + shift with xhat = (x - mean) / sqrt(var + epsilon), per feature (Ioffe and Szegedy 2015).

    While training, mean and var are of the batch, over all axes but the last, and with n rows

        dL/dscale = sum dL/dy xhat,    dL/dshift = sum dL/dy,
        dL/dx = scale / sqrt(var + epsilon) (dL/dy - (sum dL/dy + xhat sum dL/dy xhat) / n).

    Otherwise they are the running ones, `running <- momentum running + (1 - momentum) batch` after every step, where
    the batch's variance is taken over n - 1 as PyTorch does; one row has no variance and changes neither.

    Where several ranks train (`Trainer(distributed=...)`), each normalizes its part of a batch by the statistics of
    that part, and the running ones are the mean over ranks, by their rows.  With synchronised=True they are of the
    whole batch, so that training is that of one process: mean = sum x / n and var = sum (x - mean)**2 / n, and in
    dL/dx sum dL/dy and sum dL/dy xhat, are sums over the rows of all ranks (Peng et al. 2018, MegDet).  That takes two
    small all-reduces forward and one backward, worth it where a rank has few rows.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    synchronised: bool = False

    couples_rows = True

    @property
    def communicates(self) -> bool:
        return self.synchronised

    def __post_init__(self) -> None:
        self._check(momentum=partial(number, low=0.0, high=1.0), epsilon=positive, synchronised=flag)

    def out_shape(self, in_shape: Shape) -> Shape:
        features_of(self, in_shape)
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n = in_shape[-1:]
        return {
            "scale": rng.full(n, 1.0),
            "shift": rng.full(n, 0.0),
            "mean": Leaf(rng.full(n, 0.0), trainable=False),
            "var": Leaf(rng.full(n, 1.0), trainable=False),
        }

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        rows = run.xp.reshape(x, (-1, x.shape[-1]))
        if run.training:
            over = synchronised_forward if self.synchronised and run.ranks is not None else batch_norm_forward
            y, *saved = over(run, rows, p["scale"], p["shift"], self.epsilon)
        else:
            inverse = 1.0 / run.xp.sqrt(p["var"] + self.epsilon)
            y, saved = (rows - p["mean"]) * (p["scale"] * inverse) + p["shift"], [rows, inverse]
        return run.xp.reshape(y, x.shape), saved

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        rows = run.xp.reshape(dy, (-1, dy.shape[-1]))
        dx: Array | None
        if run.training:
            xhat, _, _, inverse, *n = cache
            over = synchronised_backward if n else batch_norm_backward
            dx, dscale, dshift = over(run, xhat, p["scale"] * inverse, rows, need_dx, *n)
        else:
            x, inverse = cache
            dscale, dshift = run.sum_rows(rows * ((x - p["mean"]) * inverse)), run.sum_rows(rows)
            dx = rows * (p["scale"] * inverse) if need_dx else None
        return (None if dx is None else run.xp.reshape(dx, dy.shape)), {"scale": dscale, "shift": dshift}

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        if not run.training:
            return {}
        xhat, mean, var, _, *of_ranks = cache
        old, new, n = self.momentum, 1.0 - self.momentum, xhat.shape[0]
        if of_ranks:  # an array, so that it can't be asked whether it is 1
            n = run.xp.maximum(of_ranks[0], 2.0)
        elif n == 1:
            return {}
        made = {"mean": old * p["mean"] + new * mean, "var": old * p["var"] + new * n / (n - 1) * var}
        return {name: run.xp.where(of_ranks[0] > 1.0, made[name], p[name]) for name in made} if of_ranks else made


@kernel
def batch_norm_forward(
    run: Run, x: Array, scale: Array, shift: Array, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    """y, xhat, mean, var and 1 / sqrt(var + epsilon) of the rows x of (n, features).

    A mean is rounded, which matters where it is large beside the deviation; the mean of what is left of x is not.
    """
    xp, sums, share = run.xp, run.sum_rows, 1.0 / x.shape[0]
    mean = sums(x) * share
    centred = x - mean
    off = sums(centred) * share
    var = xp.maximum(sums(centred * centred) * share - off * off, 0.0)
    inverse = 1.0 / xp.sqrt(var + epsilon)
    xhat = (centred - off) * inverse
    return xhat * scale + shift, xhat, mean + off, var, inverse


@kernel
def batch_norm_backward(
    run: Run, xhat: Array, gain: Array, dy: Array, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """dL/dx (where needed), dL/dscale and dL/dshift, from what forward gave: `gain` is scale / sqrt(var + epsilon)."""
    dscale, dshift = run.sum_rows(dy * xhat), run.sum_rows(dy)
    dx = gain * (dy - (dshift + xhat * dscale) * (1.0 / dy.shape[0])) if need_dx else None
    return dx, dscale, dshift


def synchronised_forward(
    run: Run, x: Array, scale: Array, shift: Array, epsilon: float
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """As `batch_norm_forward`, by sums over the rows of all ranks; and how many these are, of (1,)."""
    xp, sums, concat, width = run.xp, run.sum_rows, run.backend.concat, x.shape[1]
    total = run.all_reduce(concat([sums(x), run.backend.constants([float(x.shape[0])], x)]))
    n = total[width:]
    mean = total[:width] / n
    centred = x - mean
    total = run.all_reduce(concat([sums(centred), sums(centred * centred)])) / n
    off = total[:width]
    var = xp.maximum(total[width:] - off * off, 0.0)
    inverse = 1.0 / xp.sqrt(var + epsilon)
    xhat = (centred - off) * inverse
    return xhat * scale + shift, xhat, mean + off, var, inverse, n


def synchronised_backward(
    run: Run, xhat: Array, gain: Array, dy: Array, need_dx: bool, n: Array
) -> tuple[Array | None, Array, Array]:
    """As `batch_norm_backward`; dL/dscale and dL/dshift are this rank's part of them, as of all parameters."""
    dscale, dshift = run.sum_rows(dy * xhat), run.sum_rows(dy)
    if not need_dx:
        return None, dscale, dshift
    total = run.all_reduce(run.backend.concat([dshift, dscale])) / n
    width = dy.shape[1]
    return gain * (dy - (total[:width] + xhat * total[width:])), dscale, dshift


@dataclass(frozen=True)
class LayerNorm(Layer):
    r"""y = scale xhat + shift with xhat = (x - mean) / sqrt(var + epsilon), each row by itself (Ba et al. 2016).

    mean and var are over the n features of the last axis of x, (..., n); scale and shift are of (n,).  With
    g = scale dL/dy, and sums over rows,

        dL/dscale = sum dL/dy xhat,    dL/dshift = sum dL/dy,
        dL/dx = (g - mean(g) - xhat mean(g xhat)) / sqrt(var + epsilon).
    """

    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        self._check(epsilon=positive)

    def out_shape(self, in_shape: Shape) -> Shape:
        features_of(self, in_shape)
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n = in_shape[-1:]
        return {"scale": rng.full(n, 1.0), "shift": rng.full(n, 0.0)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xhat, inverse = normalized(run, run.xp.reshape(x, (-1, x.shape[-1])), self.epsilon)
        return run.xp.reshape(xhat * p["scale"] + p["shift"], x.shape), (xhat, inverse)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xhat, inverse = cache
        rows = run.xp.reshape(dy, xhat.shape)
        grads = {"scale": run.sum_rows(rows * xhat), "shift": run.sum_rows(rows)}
        if not need_dx:
            return None, grads
        return run.xp.reshape(normalized_backward(run, xhat, inverse, rows * p["scale"]), dy.shape), grads


def normalized(run: Run, x: Array, epsilon: float) -> tuple[Array, Array]:
    """xhat = (x - mean) / sqrt(var + epsilon) of each row of x, (rows, n), and 1 / sqrt(var + epsilon), (rows, 1)."""
    xp = run.xp
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    inverse = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def normalized_backward(run: Run, xhat: Array, inverse: Array, g: Array) -> Array:
    """dL/dx from g = dL/dxhat: xhat changes neither with the mean of x nor with its scale."""
    xp = run.xp
    along = xp.mean(g * xhat, axis=-1, keepdims=True)
    return (g - xp.mean(g, axis=-1, keepdims=True) - xhat * along) * inverse


@dataclass(frozen=True)
class RMSNorm(Layer):
    r"""y = scale xhat with xhat = x / sqrt(mean(x**2) + epsilon), each row by itself (Zhang and Sennrich 2019).

    The mean is over the n features of the last axis of x, (..., n); scale is of (n,).  With g = scale dL/dy,

        dL/dscale = sum of dL/dy xhat over rows,    dL/dx = (g - xhat mean(g xhat)) / sqrt(mean(x**2) + epsilon).
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        self._check(epsilon=positive)

    def out_shape(self, in_shape: Shape) -> Shape:
        features_of(self, in_shape)
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {"scale": rng.full(in_shape[-1:], 1.0)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, rows = run.xp, run.xp.reshape(x, (-1, x.shape[-1]))
        inverse = 1.0 / xp.sqrt(xp.mean(rows * rows, axis=-1, keepdims=True) + self.epsilon)
        xhat = rows * inverse
        return xp.reshape(xhat * p["scale"], x.shape), (xhat, inverse)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xhat, inverse = cache
        rows = run.xp.reshape(dy, xhat.shape)
        grads = {"scale": run.sum_rows(rows * xhat)}
        if not need_dx:
            return None, grads
        g = rows * p["scale"]
        dx = (g - xhat * run.xp.mean(g * xhat, axis=-1, keepdims=True)) * inverse
        return run.xp.reshape(dx, dy.shape), grads


@dataclass(frozen=True)
class GroupNorm(Layer):
    r"""y = scale xhat + shift with xhat = (x - mean) / sqrt(var + epsilon) of each group of features (Wu and He 2018).

    The n features of the last axis of x, (..., n), are parted into `groups` of as many that follow each other.  mean
    and var are of a row's group, over all axes but the first; scale and shift are of (n,), one for each feature.  The
    derivative is `LayerNorm`'s, with a group of a row in the place of the row.  `GroupNorm(1)` normalizes over all that
    a row holds, and `GroupNorm(n)`, for rows of several axes, over each feature alone (instance normalization).
    """

    groups: int
    epsilon: float = 1e-5

    example = (2,)

    def __post_init__(self) -> None:
        self._check(groups=whole, epsilon=positive)

    def out_shape(self, in_shape: Shape) -> Shape:
        n = features_of(self, in_shape)
        if n % self.groups:
            raise ShapeError(f"{self} parts features into {self.groups} groups of as many, but rows have {n} of them")
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n = in_shape[-1:]
        return {"scale": rng.full(n, 1.0), "shift": rng.full(n, 0.0)}

    def _grouped(self, run: Run, x: Array) -> Array:
        """A row for each group of each row of x."""
        xp, places = run.xp, math.prod(x.shape[1:-1])
        if places > 1 and self.groups > 1:
            x = xp.reshape(x, (x.shape[0], places, self.groups, x.shape[-1] // self.groups))
            x = xp.permute_dims(x, (0, 2, 1, 3))
        return xp.reshape(x, (x.shape[0] * self.groups, -1))

    def _as_rows(self, run: Run, grouped: Array, shape: Shape) -> Array:
        """The inverse: rows of features, for x of the `shape`."""
        xp, places = run.xp, math.prod(shape[1:-1])
        if places > 1 and self.groups > 1:
            grouped = xp.reshape(grouped, (shape[0], self.groups, places, shape[-1] // self.groups))
            grouped = xp.permute_dims(grouped, (0, 2, 1, 3))
        return xp.reshape(grouped, (-1, shape[-1]))

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        grouped, inverse = normalized(run, self._grouped(run, x), self.epsilon)
        xhat = self._as_rows(run, grouped, x.shape)
        return run.xp.reshape(xhat * p["scale"] + p["shift"], x.shape), (xhat, grouped, inverse)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, (xhat, grouped, inverse) = run.xp, cache
        rows = xp.reshape(dy, xhat.shape)
        grads = {"scale": run.sum_rows(rows * xhat), "shift": run.sum_rows(rows)}
        if not need_dx:
            return None, grads
        g = self._grouped(run, xp.reshape(rows * p["scale"], dy.shape))
        dx = self._as_rows(run, normalized_backward(run, grouped, inverse, g), dy.shape)
        return xp.reshape(dx, dy.shape), grads
