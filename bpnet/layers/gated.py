"""Gated units: one linear function of the input is multiplied by an activation of another."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.initializers import Initializer
from bpnet.layer import Composite, Derivatives, Layer, Params, Rng, Run, Shape
from bpnet.layers.activation import Activation
from bpnet.layers.composition import called
from bpnet.layers.dense import Dense
from bpnet.typing import ActivationName, InitializerName


@dataclass(frozen=True, repr=False)
class GLU(Composite):
    r"""y = v f(z) with v = x W + b and z = x V + c, entry by entry: a gated linear unit (Dauphin et al. 2017).

    x is of (..., n) features, W and V are of (n, units), b and c of (units,).  By the product rule what goes back into
    v is dL/dv = dL/dy f(z), and into f(z) dL/dy v; from there on both are `Dense` layers, "value" and "gate", so

        dL/dx = dL/dv W^T + dL/dz V^T.

    The gate f is the sigmoid here; others are those of Shazeer (2020): `SwiGLU`, `GeGLU`, "relu", and "identity", of
    which a `Dense` layer makes any quadratic form of x.  The other options are those of `Dense`, for both.
    """

    units: int
    activation: ActivationName | Activation = "sigmoid"
    bias: bool = True
    kernel_init: InitializerName | Initializer = "glorot_uniform"
    bias_init: InitializerName | Initializer = "zeros"

    example = (20,)
    __repr__ = Dense.__repr__

    def __post_init__(self) -> None:
        gate = self.children[1][1]
        self._set(units=gate.units, bias=gate.bias)  # type: ignore[attr-defined]

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        rest = self.bias, self.kernel_init, self.bias_init
        return ("value", Dense(self.units, "identity", *rest)), ("gate", Dense(self.units, self.activation, *rest))

    def out_shape(self, in_shape: Shape) -> Shape:
        return self.children[0][1].out_shape(in_shape)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {name: layer.init(rng, in_shape) for name, layer in self.children}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        (at_v, value), (at_f, gate) = (called(run, name, layer) for name, layer in self.children)
        rows = run.xp.reshape(x, (-1, x.shape[-1]))
        v, v_cache = value.forward(at_v, p["value"], rows)
        f, f_cache = gate.forward(at_f, p["gate"], rows)
        return run.xp.reshape(v * f, (*x.shape[:-1], self.units)), (v_cache, f_cache, v, f, x.shape)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        (at_v, value), (at_f, gate) = (called(run, name, layer) for name, layer in self.children)
        v_cache, f_cache, v, f, shape = cache
        dy = run.xp.reshape(dy, v.shape)
        dx, of_value = value.backward(at_v, p["value"], v_cache, dy * f, need_dx)
        more, of_gate = gate.backward(at_f, p["gate"], f_cache, dy * v, need_dx)
        grads = {"value": of_value, "gate": of_gate}
        return (None if dx is None or more is None else run.xp.reshape(dx + more, shape)), grads

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        return super().update_buffers(run, p, cache[:2])


@dataclass(frozen=True, repr=False)
class SwiGLU(GLU):
    """`GLU` with z sigmoid(z) for its gate (Shazeer 2020)."""

    activation: ActivationName | Activation = "silu"


@dataclass(frozen=True, repr=False)
class GeGLU(GLU):
    """`GLU` with z Phi(z) for its gate (Shazeer 2020)."""

    activation: ActivationName | Activation = "gelu"
