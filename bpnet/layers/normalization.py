"""Batch normalization: a layer whose rows depend on each other, with values that are kept but not trained."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape, kernel
from bpnet.options import number, positive


@dataclass(frozen=True)
class BatchNorm(Layer):
    r"""y = scale xhat + shift with xhat = (x - mean) / sqrt(var + epsilon), per feature (Ioffe and Szegedy 2015).

    While training, mean and var are of the batch, over all axes but the last, and with n rows

        dL/dscale = sum dL/dy xhat,    dL/dshift = sum dL/dy,
        dL/dx = scale / sqrt(var + epsilon) (dL/dy - (sum dL/dy + xhat sum dL/dy xhat) / n).

    Otherwise they are the running ones, `running <- momentum running + (1 - momentum) batch` after every step, where
    the batch's variance is taken over n - 1 as PyTorch does; one row has no variance and changes neither.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    couples_rows = True

    def __post_init__(self) -> None:
        self._check(momentum=partial(number, low=0.0, high=1.0), epsilon=positive)

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError("BatchNorm needs rows of features, but x has one axis: make it (rows, features)")
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
            y, *saved = batch_norm_forward(run, rows, p["scale"], p["shift"], self.epsilon)
        else:
            inverse = 1.0 / run.xp.sqrt(p["var"] + self.epsilon)
            y, saved = (rows - p["mean"]) * (p["scale"] * inverse) + p["shift"], [rows, inverse]
        return run.xp.reshape(y, x.shape), saved

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        rows = run.xp.reshape(dy, (-1, dy.shape[-1]))
        dx: Array | None
        if run.training:
            xhat, _, _, inverse = cache
            dx, dscale, dshift = batch_norm_backward(run, xhat, p["scale"] * inverse, rows, need_dx)
        else:
            x, inverse = cache
            dscale, dshift = run.sum_rows(rows * ((x - p["mean"]) * inverse)), run.sum_rows(rows)
            dx = rows * (p["scale"] * inverse) if need_dx else None
        return (None if dx is None else run.xp.reshape(dx, dy.shape)), {"scale": dscale, "shift": dshift}

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        n = cache[0].shape[0]
        if not run.training or n == 1:
            return {}
        _, mean, var, _ = cache
        old, new = self.momentum, 1.0 - self.momentum
        return {"mean": old * p["mean"] + new * mean, "var": old * p["var"] + new * n / (n - 1) * var}


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
