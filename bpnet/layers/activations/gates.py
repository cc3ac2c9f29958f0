"""Activations y = z g(z), of a gate g from 0 to 1 that z itself opens: y' = g(z) + z g'(z)."""

import math
from dataclasses import dataclass

from bpnet.backends.base import Array, Backend
from bpnet.layers.activation import Activation, sigmoid
from bpnet.options import flag


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

    def value(self, b: Backend, z: Array) -> Array:
        return z * sigmoid(b, z)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        s = sigmoid(b, z)
        return dy * s * (1.0 + z * (1.0 - s))


@dataclass(frozen=True)
class Mish(Activation):
    """y = z t with t = tanh(log(1 + exp(z))), y' = t + z t' (Misra 2019).

    With e = exp(z), t = (e**2 + 2 e) / (e**2 + 2 e + 2) and t' = 4 e (1 + e) / (e**2 + 2 e + 2)**2; where z > 0, both
    are multiplied out with powers of exp(-z), so that nothing overflows.
    """

    names = {"mish": {}}
    saves = "input"

    def value(self, b: Backend, z: Array) -> Array:
        above, _, below = self._parts(b, z)
        return z * (above / below)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        above, slope, below = self._parts(b, z)
        return dy * (above / below + z * (slope / (below * below)))

    def _parts(self, b: Backend, z: Array) -> tuple[Array, Array, Array]:
        """Numerators of t and of t', and the denominator of t."""
        xp = b.xp
        e, positive = xp.exp(-xp.abs(z)), z > 0.0
        above = xp.where(positive, 1.0 + 2.0 * e, e * (e + 2.0))
        rest = xp.where(positive, e * e, 1.0)
        return above, 4.0 * (1.0 + e) * (e * xp.where(positive, e, 1.0)), above + 2.0 * rest


@dataclass(frozen=True)
class HardSwish(Activation):
    """y = z h with h = min(max(z / 6 + 1/2, 0), 1), y' = 0 where z <= -3, z / 3 + 1/2 up to 3, then 1 (Howard 2019)."""

    names = {"hard_swish": {}}
    saves = "input"

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return z * (xp.minimum(xp.maximum(z + 3.0, 0.0), 6.0) / 6.0)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        xp = b.xp
        return dy * xp.where(z < 3.0, xp.where(z > -3.0, z / 3.0 + 0.5, 0.0), 1.0)


_ROOT_HALF = math.sqrt(0.5)
_TANH_1, _TANH_3 = -2.0 * math.sqrt(2.0 / math.pi), -2.0 * math.sqrt(2.0 / math.pi) * 0.044715
"""-2u = z (_TANH_1 + _TANH_3 z**2)."""
_ROOT_1_OVER_2PI = math.sqrt(0.5 / math.pi)
