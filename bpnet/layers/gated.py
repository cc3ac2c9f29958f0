"""Gated units: one linear function of the input is multiplied by an activation of another."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Derivatives, Layer, Params, Rng, Run, Shape
from bpnet.layers.activation import Activation, Identity
from bpnet.layers.dense import dense_backward, dense_forward
from bpnet.options import flag, whole
from bpnet.registry import resolve
from bpnet.typing import ActivationName


@dataclass(frozen=True)
class GLU(Layer):
    r"""y = v f(z) with v = x W + b and z = x V + c, entry by entry: a gated linear unit (Dauphin et al. 2017).

    x is of (..., n) features, W and V are of (n, units), b and c of (units,).  With dv = dL/dy f(z) and
    dz = dL/dy v f'(z), the chain rule gives, with sums over rows,

        dL/dW = x^T dv,  dL/db = sum dv,  dL/dV = x^T dz,  dL/dc = sum dz,    dL/dx = dv W^T + dz V^T.

    The gate f is the sigmoid here; others are those of Shazeer (2020): `SwiGLU`, `GeGLU`, and `Bilinear` without one.
    In the parameters W and b are "weight" and "bias", V and c "gate_weight" and "gate_bias".  Weights start uniformly
    within sqrt(6 / (n + units)) (Glorot and Bengio 2010), biases at 0.
    """

    units: int
    activation: ActivationName | Activation = "sigmoid"
    bias: bool = True

    def __post_init__(self) -> None:
        self._set(units=whole("units", self.units, 1, 2**31 - 1), bias=flag("bias", self.bias))
        _ = self.function

    @cached_property
    def function(self) -> Activation:
        """The activation f."""
        return resolve(Activation, "activation", self.activation)

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            name = type(self).__name__
            raise ShapeError(f"{name} needs rows of features, but x has one axis: make it (rows, features)")
        return (*in_shape[:-1], self.units)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n = in_shape[-1]
        limit = math.sqrt(6.0 / (n + self.units))
        start = {name: rng.uniform((n, self.units), limit) for name in ("weight", "gate_weight")}
        if self.bias:
            start |= {name: rng.full((self.units,), 0.0) for name in ("bias", "gate_bias")}
        return start

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        rows = run.xp.reshape(x, (-1, x.shape[-1]))
        v, _ = dense_forward(run, rows, p["weight"], p.get("bias"), LINEAR)
        gate, saved = dense_forward(run, rows, p["gate_weight"], p.get("gate_bias"), self.function)
        return run.xp.reshape(v * gate, (*x.shape[:-1], self.units)), (rows, v, gate, saved)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        x, v, gate, saved = cache
        rows, bias = run.xp.reshape(dy, v.shape), self.bias
        dx, dw, db = dense_backward(run, x, p["weight"], None, rows * gate, LINEAR, need_dx, bias)
        more, dg, dc = dense_backward(run, x, p["gate_weight"], saved, rows * v, self.function, need_dx, bias)
        grads = {"weight": dw, "gate_weight": dg} | ({"bias": db, "gate_bias": dc} if bias else {})
        if dx is None or more is None:
            return None, grads
        return run.xp.reshape(dx + more, (*dy.shape[:-1], x.shape[1])), grads


LINEAR = Identity()


@dataclass(frozen=True)
class SwiGLU(GLU):
    """`GLU` with z sigmoid(z) for its gate (Shazeer 2020)."""

    activation: ActivationName | Activation = "silu"


@dataclass(frozen=True)
class GeGLU(GLU):
    """`GLU` with z Phi(z) for its gate (Shazeer 2020)."""

    activation: ActivationName | Activation = "gelu"


@dataclass(frozen=True)
class Bilinear(GLU):
    """y = (x W + b) (x V + c), entry by entry: `GLU` with z itself for its gate (Shazeer 2020).

    So an output is a product of two linear functions, and a `Dense` layer after it has any quadratic form of the input.
    """

    activation: ActivationName | Activation = "identity"
