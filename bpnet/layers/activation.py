r"""Activation functions, each with its derivative beside it.

All but softmax act on every element alone: y = f(z), and by the chain rule dL/dz = dL/dy f'(z).  Where f' can be
written with y, the output is saved instead of the input.  Each is a layer too, so it can stand alone in a network.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from bpnet.backends.base import Array, Backend
from bpnet.layer import Derivatives, Layer, Params, Run
from bpnet.options import flag, fraction, positive


class Activation(Layer):
    """Base of the activations: `value` and `derivative`, and which of input and output the derivative reads."""

    saves: ClassVar[str] = "output"
    """What `derivative` is given: the "output" y, the "input" z, or "nothing"."""
    rectifies: ClassVar[bool] = False
    """Whether f belongs to the relu family, which passes about half of its input on: weights then start larger."""
    needs = ("value", "derivative")

    def value(self, b: Backend, z: Array) -> Array:
        """y = f(z)."""
        raise NotImplementedError

    def derivative(self, b: Backend, saved: Array, dy: Array, /) -> Array:
        """dL/dz = dL/dy f'(z), from what `saves` says."""
        raise NotImplementedError

    @final
    def saved(self, z: Array, y: Array) -> Array | None:
        """The one of `z` and `y` that the derivative reads."""
        return y if self.saves == "output" else z if self.saves == "input" else None

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        y = run.backend.fuse(self.value)(run.backend, x)
        return y, self.saved(x, y)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        return (run.backend.fuse(self.derivative)(run.backend, cache, dy) if need_dx else None), {}


def sigmoid(b: Backend, z: Array) -> Array:
    """1 / (1 + exp(-z)), written so that exp never overflows."""
    xp = b.xp
    return xp.exp(xp.minimum(z, 0.0)) / (1.0 + xp.exp(-xp.abs(z)))


def softmax(b: Backend, z: Array) -> Array:
    """exp(z_j) / sum_k exp(z_k) along the last axis, the largest z subtracted first."""
    e = b.xp.exp(z - b.xp.max(z, axis=-1, keepdims=True))
    return e / b.xp.sum(e, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Identity(Activation):
    """y = z, y' = 1."""

    names = {"identity": {}, "linear": {}}
    saves = "nothing"

    def value(self, b: Backend, z: Array) -> Array:
        return z

    def derivative(self, b: Backend, saved: Array, dy: Array) -> Array:
        return dy


@dataclass(frozen=True)
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-z)), y' = y (1 - y).

    Where y rounds to 1, so does y' to 0: its error is that of 1, not of y' itself.
    """

    names = {"sigmoid": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return sigmoid(b, z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * y * (1.0 - y)


@dataclass(frozen=True)
class Tanh(Activation):
    """y = tanh(z), y' = 1 - y**2, which is 0 where y rounds to 1 or -1: its error is that of 1, not of y' itself."""

    names = {"tanh": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.tanh(z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * (1.0 - y * y)


@dataclass(frozen=True)
class ReLU(Activation):
    """y = max(z, 0), y' = 1 where y > 0, else 0 (Nair and Hinton 2010)."""

    names = {"relu": {}}
    rectifies = True

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.maximum(z, 0.0)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * b.xp.astype(y > 0.0, dy.dtype)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """y = max(z, a z), y' = 1 where y > 0, else a, the `negative_slope`, 0 <= a < 1 (Maas, Hannun and Ng 2013)."""

    negative_slope: float = 0.01

    names = {"leaky_relu": {}}
    rectifies = True

    def __post_init__(self) -> None:
        self._check(negative_slope=fraction)

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.maximum(z, self.negative_slope * z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        above = b.xp.astype(y > 0.0, dy.dtype)
        return dy * (self.negative_slope + (1.0 - self.negative_slope) * above)


@dataclass(frozen=True)
class GELU(Activation):
    r"""y = z Phi(z), y' = Phi(z) + z phi(z), with Phi and phi of the normal distribution (Hendrycks and Gimpel 2016).

    Phi(z) = (1 + erf(z / sqrt 2)) / 2, so where z is far below 0, its error is that of 1, not of Phi(z) itself.

    `approximate` takes the paper's Phi(z) = (1 + tanh u) / 2 with u = sqrt(2/pi) (z + 0.044715 z**3).  That is the
    sigmoid s = 1 / (1 + exp(-2u)), which loses no digits where z is far below 0; then y' = s + z s (1 - s) 2u'.
    """

    approximate: bool = False

    names = {"gelu": {}, "gelu_tanh": {"approximate": True}}
    saves = "input"
    rectifies = True

    def __post_init__(self) -> None:
        self._check(approximate=flag)

    def value(self, b: Backend, z: Array) -> Array:
        if self.approximate:
            return z / (1.0 + b.xp.exp(z * (_TANH_1 + _TANH_3 * z * z)))
        return 0.5 * z * (1.0 + b.erf(z * _ROOT_HALF))

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        if self.approximate:
            s = 1.0 / (1.0 + b.xp.exp(z * (_TANH_1 + _TANH_3 * z * z)))
            fading = z * s * (1.0 - s)  # 0 long before the square of z overflows, which is never computed alone
            return dy * (s - (_TANH_1 * fading + 3.0 * _TANH_3 * fading * z * z))
        density = _ROOT_1_OVER_2PI * b.xp.exp(-0.5 * z * z)
        return dy * (0.5 * (1.0 + b.erf(z * _ROOT_HALF)) + z * density)


@dataclass(frozen=True)
class SiLU(Activation):
    """y = z s with s = sigmoid(z), y' = s (1 + z (1 - s)) (Elfwing, Uchibe and Doya 2018)."""

    names = {"silu": {}, "swish": {}}
    saves = "input"
    rectifies = True

    def value(self, b: Backend, z: Array) -> Array:
        return z * sigmoid(b, z)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        s = sigmoid(b, z)
        return dy * s * (1.0 + z * (1.0 - s))


@dataclass(frozen=True)
class Softplus(Activation):
    """y = log(1 + exp(z)), y' = sigmoid(z) = 1 - exp(-y) (Dugas et al. 2001)."""

    names = {"softplus": {}}
    rectifies = True

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return -dy * b.xp.expm1(-y)


@dataclass(frozen=True)
class ELU(Activation):
    """y = z where z > 0, else alpha (exp(z) - 1); y' = 1 where z > 0, else alpha exp(z) (Clevert et al. 2016).

    The same derivative written as y + alpha would lose its digits where y comes near -alpha.
    """

    alpha: float = 1.0

    names = {"elu": {}}
    saves = "input"
    rectifies = True

    def __post_init__(self) -> None:
        self._check(alpha=positive)

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.maximum(z, 0.0) + self.alpha * xp.expm1(xp.minimum(z, 0.0))

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        e = b.xp.exp(b.xp.minimum(z, 0.0))
        return dy * (e if self.alpha == 1.0 else b.xp.where(z > 0.0, 1.0, self.alpha * e))


@dataclass(frozen=True)
class Softmax(Activation):
    """y_j = exp(z_j) / sum_k exp(z_k) over the last axis; dL/dz = y (dL/dy - sum_k dL/dy_k y_k).

    For classification train on logits with the cross_entropy loss instead: it is the same and more exact.
    """

    names = {"softmax": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return softmax(b, z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return y * (dy - b.xp.sum(dy * y, axis=-1, keepdims=True))


_ROOT_HALF = math.sqrt(0.5)
_TANH_1, _TANH_3 = -2.0 * math.sqrt(2.0 / math.pi), -2.0 * math.sqrt(2.0 / math.pi) * 0.044715
"""-2u = z (_TANH_1 + _TANH_3 z**2)."""
_ROOT_1_OVER_2PI = math.sqrt(0.5 / math.pi)
