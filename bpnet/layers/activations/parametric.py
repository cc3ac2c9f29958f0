r"""Activations with a trained number alpha for each feature of the last axis, or one for all: y = f(z, alpha).

The chain rule gives dL/dz = dL/dy df/dz and dL/dalpha = sum of dL/dy df/dalpha over all that alpha is for.  In a dense
layer their parameter is called "activation.alpha", and weight decay leaves it alone.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.layer import Derivatives, Layer, Params, Rng, Run, Shape
from bpnet.layers.activation import Activation
from bpnet.options import flag, number
from bpnet.registry import resolve
from bpnet.typing import ActivationName


class _Parametric(Activation):
    """`curve`, `along_z` and `along_alpha` are f and its derivatives.

    `value` and `derivative` are those where alpha starts.
    """

    saves = "input"
    alpha: float
    shared: bool

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {"alpha": rng.full(() if self.shared else in_shape[-1:], self.alpha)}

    def curve(self, b: Backend, z: Array, alpha: Any) -> tuple[Array, Any]:
        """y = f(z, alpha), and what its derivatives read."""
        raise NotImplementedError

    def along_z(self, b: Backend, saved: Any, dy: Array, alpha: Any) -> Array:
        """dL/dz = dL/dy df/dz."""
        raise NotImplementedError

    def along_alpha(self, b: Backend, saved: Any, dy: Array) -> Array:
        """dL/dy df/dalpha, entry by entry."""
        raise NotImplementedError

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return self.curve(run.backend, x, p["alpha"])

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, alpha = run.xp, p["alpha"]
        each = self.along_alpha(run.backend, cache, dy)
        total = run.sum_rows(xp.reshape(each, (-1, dy.shape[-1] if dy.ndim > 1 else 1)))
        dx = self.along_z(run.backend, cache, dy, alpha) if need_dx else None
        return dx, {"alpha": xp.sum(total) if alpha.ndim == 0 else total}

    def value(self, b: Backend, z: Array) -> Array:
        return self.curve(b, z, self.alpha)[0]

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return self.along_z(b, self.curve(b, z, self.alpha)[1], dy, self.alpha)


@dataclass(frozen=True)
class PReLU(_Parametric):
    """y = max(z, 0) + alpha min(z, 0); dy/dz = 1 where z > 0, else alpha; dy/dalpha = min(z, 0) (He et al. 2015).

    alpha starts as the option `alpha`; `shared` makes it one for all features.
    """

    alpha: float = 0.25
    shared: bool = False

    names = {"prelu": {}}

    def __post_init__(self) -> None:
        self._set(alpha=number("alpha", self.alpha, -1e30, 1e30), shared=flag("shared", self.shared))

    def curve(self, b: Backend, z: Array, alpha: Any) -> tuple[Array, Any]:
        xp = b.xp
        return xp.maximum(z, 0.0) + alpha * xp.minimum(z, 0.0), z

    def along_z(self, b: Backend, saved: Any, dy: Array, alpha: Any) -> Array:
        return b.xp.where(saved > 0.0, dy, alpha * dy)

    def along_alpha(self, b: Backend, saved: Any, dy: Array) -> Array:
        return dy * b.xp.minimum(saved, 0.0)


@dataclass(frozen=True)
class Parametric(_Parametric):
    """y = (1 - alpha) z + alpha f(z) of an activation f; dy/dz = 1 - alpha + alpha f'(z), dy/dalpha = f(z) - z.

    alpha starts at 1, where y = f(z), and 0 is a linear function (Holzmueller, Grinsztajn and Steinwart 2024, RealMLP,
    whose names are "parametric_mish" and "parametric_selu").
    """

    inner: ActivationName | Activation = "mish"
    alpha: float = 1.0
    shared: bool = False

    names = {"parametric_mish": {"inner": "mish"}, "parametric_selu": {"inner": "selu"}}

    def __post_init__(self) -> None:
        if type(self.function).init is not Layer.init:
            raise OptionError(f"the inner activation of Parametric is {self.function}; expected one without parameters")
        self._set(
            inner=self.function, alpha=number("alpha", self.alpha, -1e30, 1e30), shared=flag("shared", self.shared)
        )

    @cached_property
    def function(self) -> Activation:
        """The activation f."""
        return resolve(Activation, "the inner activation of Parametric", self.inner)

    def curve(self, b: Backend, z: Array, alpha: Any) -> tuple[Array, Any]:
        f = self.function.value(b, z)
        return (1.0 - alpha) * z + alpha * f, (z, f)

    def along_z(self, b: Backend, saved: Any, dy: Array, alpha: Any) -> Array:
        inner = self.function
        return (1.0 - alpha) * dy + inner.derivative(b, inner.saved(*saved), alpha * dy)

    def along_alpha(self, b: Backend, saved: Any, dy: Array) -> Array:
        z, f = saved
        return dy * (f - z)
