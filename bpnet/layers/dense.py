"""The dense layer, a = f(x W + b), and its derivative."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Derivatives, Layer, Params, Rng, Run, Shape, kernel
from bpnet.layers.activation import Activation
from bpnet.options import flag, whole
from bpnet.registry import resolve
from bpnet.typing import ActivationName


@dataclass(frozen=True)
class Dense(Layer):
    r"""y = f(x W + b) for rows x of (..., n) features, W of (n, units) and b of (units,).

    With z = x W + b and dz = dL/dy f'(z), the chain rule gives

        dL/dW = x^T dz,    dL/db = sum of dz over rows,    dL/dx = dz W^T.

    Weights start uniformly within sqrt(6 / (n + units)) (Glorot and Bengio 2010), times sqrt(2) before an activation of
    the relu family, which lets about half of the signal through (He et al. 2015); biases start at 0.
    """

    units: int
    activation: ActivationName | Activation = "identity"
    bias: bool = True

    example = (5, "relu")

    def __post_init__(self) -> None:
        self._set(units=whole("units", self.units, 1, 2**31 - 1), bias=flag("bias", self.bias))
        _ = self.function

    @cached_property
    def function(self) -> Activation:
        """The activation f."""
        return resolve(Activation, "activation", self.activation)

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError(
                "Dense needs rows of features, but x has one axis: make it (rows, features), x[:, None] for one"
            )
        return (*in_shape[:-1], self.units)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n = in_shape[-1]
        gain = 2.0 if self.function.rectifies else 1.0
        limit = math.sqrt(6.0 * gain / (n + self.units))
        weight = {"weight": rng.uniform((n, self.units), limit)}
        return weight | {"bias": rng.full((self.units,), 0.0)} if self.bias else weight

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        rows = x if x.ndim == 2 else run.xp.reshape(x, (-1, x.shape[-1]))
        y, saved = dense_forward(run, rows, p["weight"], p.get("bias"), self.function)
        return (y if x.ndim == 2 else run.xp.reshape(y, (*x.shape[:-1], self.units))), (rows, saved)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        x, saved = cache
        rows = dy if dy.ndim == 2 else run.xp.reshape(dy, (-1, self.units))
        dx, dw, db = dense_backward(run, x, p["weight"], saved, rows, self.function, need_dx, self.bias)
        if dx is not None and dy.ndim != 2:
            dx = run.xp.reshape(dx, (*dy.shape[:-1], x.shape[1]))
        return dx, {"weight": dw, "bias": db} if self.bias else {"weight": dw}


@kernel
def dense_forward(run: Run, x: Array, weight: Array, bias: Array | None, f: Activation) -> tuple[Array, Array]:
    """y = f(x W + b), and what the derivative of f reads; x is (rows, n)."""
    z = run.matmul(x, weight)
    if bias is not None:
        z = z + bias
    y = f.value(run.backend, z)
    return y, f.saved(z, y)


@kernel
def dense_backward(
    run: Run, x: Array, weight: Array, saved: Array, dy: Array, f: Activation, need_dx: bool, has_bias: bool
) -> tuple[Array | None, Array, Array | None]:
    """dL/dx (where needed), dL/dW and dL/db."""
    dz = f.derivative(run.backend, saved, dy)
    dw = run.matmul(x, dz, transpose_a=True)
    db = run.sum_rows(dz) if has_bias else None
    dx = run.matmul(dz, weight, transpose_b=True) if need_dx else None
    return dx, dw, db
