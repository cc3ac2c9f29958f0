"""The dense layer, a = f(x W + b), and its derivative."""

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.initializers import Initializer
from bpnet.layer import Derivatives, Layer, Params, Rng, Run, Shape, kernel
from bpnet.layers.activation import Activation
from bpnet.layers.activations.others import Identity
from bpnet.options import flag, whole
from bpnet.registry import resolve
from bpnet.typing import ActivationName, InitializerName


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    r"""y = f(x W + b) for rows x of (..., n) features, W of (n, units) and b of (units,).

    With z = x W + b and dz = dL/dy f'(z), the chain rule gives (Rumelhart, Hinton and Williams 1986)

        dL/dW = x^T dz,    dL/db = sum of dz over rows,    dL/dx = dz W^T.

    Weights start as Keras's do, by `kernel_init` uniformly within sqrt(6 / (n + units)) (Glorot and Bengio 2010), and
    biases, by `bias_init`, at 0; see `bp.initializers`.  Deep networks with relu start better from "he_normal".

    `ntk` is the parametrization of the neural tangent kernel (Jacot et al. 2018): y = f(x W / sqrt(n) + b), where W
    starts as sqrt(n) times what `kernel_init` draws.  So the network starts as the same function, and steps of
    one rate are others, since dL/dW is divided by sqrt(n), and W is not.  With "lecun_normal" W starts as N(0, 1).

    Parameters are "weight", "bias", and where f has some of its own, as "prelu", "activation.alpha".
    """

    units: int
    activation: ActivationName | Activation = "identity"
    bias: bool = True
    kernel_init: InitializerName | Initializer = "glorot_uniform"
    bias_init: InitializerName | Initializer = "zeros"
    ntk: bool = False

    example = (5, "relu")

    def __post_init__(self) -> None:
        self._set(units=whole("units", self.units, 1, 2**31 - 1))
        self._check(bias=flag, ntk=flag)
        for name in ("kernel_init", "bias_init"):
            resolve(Initializer, name, getattr(self, name))
        resolve(Activation, "activation", self.activation)  # outside of a lock, in which no module may be waited for

    def __repr__(self) -> str:
        """All options but those of start values that are as they are by default."""
        options = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        shown = [f"{name}={value!r}" for i, (name, value, usual) in enumerate(options) if i < 3 or value != usual]
        return f"{type(self).__name__}({', '.join(shown)})"

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
        n, units = in_shape[-1], self.units
        weight = resolve(Initializer, "kernel_init", self.kernel_init).draw(rng, (n, units), n, units)
        params = {"weight": rng.scaled(weight, math.sqrt(n)) if self.ntk else weight}
        if self.bias:
            params["bias"] = resolve(Initializer, "bias_init", self.bias_init).draw(rng, (units,), n, units)
        own = self.function.init(rng, self.out_shape(in_shape))
        return params | {"activation": own} if own else params

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        own, f = p.get("activation"), self.function
        rows = x if x.ndim == 2 else run.xp.reshape(x, (-1, x.shape[-1]))
        if self.ntk:
            rows = rows * (1.0 / math.sqrt(x.shape[-1]))
        y, saved = dense_forward(run, rows, p["weight"], p.get("bias"), f if own is None else Identity())
        if own is not None:
            y, saved = f.forward(run, own, y)
        return (y if x.ndim == 2 else run.xp.reshape(y, (*x.shape[:-1], self.units))), (rows, saved)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        own, f = p.get("activation"), self.function
        grads: dict[str, Any] = {}
        x, saved = cache
        rows = dy if dy.ndim == 2 else run.xp.reshape(dy, (-1, self.units))
        if own is not None:
            rows, grads["activation"] = f.backward(run, own, saved, rows)
            f, saved = Identity(), None  # the product's own part follows, without one
        dx, grads["weight"], db = dense_backward(run, x, p["weight"], saved, rows, f, need_dx, self.bias)
        if self.bias:
            grads["bias"] = db
        if dx is not None and self.ntk:
            dx = dx * (1.0 / math.sqrt(x.shape[-1]))
        if dx is not None and dy.ndim != 2:
            dx = run.xp.reshape(dx, (*dy.shape[:-1], x.shape[1]))
        return dx, grads


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
