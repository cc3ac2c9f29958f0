"""Batch normalization: a layer whose rows depend on each other, with values that are kept but not trained."""

import math
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Layer, Leaf, Params, Rng, Run, Shape
from bpnet.options import number


@dataclass(frozen=True)
class BatchNorm(Layer):
    r"""y = scale xhat + shift with xhat = (x - mean) / sqrt(var + epsilon), per feature (Ioffe and Szegedy 2015).

    While training, mean and var are of the batch, over all axes but the last, and with n rows

        dL/dscale = sum dL/dy xhat,    dL/dshift = sum dL/dy,
        dL/dx = scale / sqrt(var + epsilon) (dL/dy - (sum dL/dy + xhat sum dL/dy xhat) / n).

    Otherwise they are the running ones, `running <- momentum running + (1 - momentum) batch` after every step, where the
    batch's variance is taken over n - 1 as PyTorch does.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    couples_rows = True

    def __post_init__(self) -> None:
        self._set(momentum=number("momentum", self.momentum, 0.0, 1.0))
        self._set(epsilon=number("epsilon", self.epsilon, 0.0, math.inf, closed="neither"))

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
        xp = run.xp
        if run.training:
            axes = tuple(range(x.ndim - 1))
            mean = xp.mean(x, axis=axes)
            centred = x - mean
            var = xp.mean(centred * centred, axis=axes)
        else:
            mean, var = p["mean"], p["var"]
            centred = x - mean
        inverse = 1.0 / xp.sqrt(var + self.epsilon)
        xhat = centred * inverse
        return xhat * p["scale"] + p["shift"], (xhat, inverse, mean, var)

    def backward(
        self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Array | None, dict[str, Any]]:
        xp = run.xp
        xhat, inverse, _, _ = cache
        axes = tuple(range(dy.ndim - 1))
        dscale = xp.sum(dy * xhat, axis=axes)
        dshift = xp.sum(dy, axis=axes)
        grads = {"scale": dscale, "shift": dshift}
        if not need_dx:
            return None, grads
        if not run.training:
            return dy * (p["scale"] * inverse), grads
        n = math.prod(dy.shape[:-1])
        return (p["scale"] * inverse) * (dy - (dshift + xhat * dscale) * (1.0 / n)), grads

    def absorb(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        xhat, _, mean, var = cache
        n = math.prod(xhat.shape[:-1])
        new = 1.0 - self.momentum
        return {
            "mean": self.momentum * p["mean"] + new * mean,
            "var": self.momentum * p["var"] + (new * n / max(n - 1, 1)) * var,
        }
