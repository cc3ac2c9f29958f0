"""Activations that pass on what is above a threshold, and little or nothing of what is below."""

from dataclasses import dataclass

from bpnet.backends.base import Array, Backend
from bpnet.layers.activation import Activation
from bpnet.options import fraction, not_negative, positive


@dataclass(frozen=True)
class ReLU(Activation):
    """y = max(z, 0), y' = 1 where y > 0, else 0 (Nair and Hinton 2010)."""

    names = {"relu": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.maximum(z, 0.0)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * b.xp.astype(y > 0.0, dy.dtype)


@dataclass(frozen=True)
class ReLU6(Activation):
    """y = min(max(z, 0), 6), y' = 1 where 0 < y < 6, else 0 (Krizhevsky 2010)."""

    names = {"relu6": {}}

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.minimum(xp.maximum(z, 0.0), 6.0)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * b.xp.astype((y > 0.0) & (y < 6.0), dy.dtype)


@dataclass(frozen=True)
class SquaredReLU(Activation):
    """y = max(z, 0)**2, y' = 2 max(z, 0) (So et al. 2021)."""

    names = {"squared_relu": {}}
    saves = "input"

    def value(self, b: Backend, z: Array) -> Array:
        above = b.xp.maximum(z, 0.0)
        return above * above

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return dy * (2.0 * b.xp.maximum(z, 0.0))


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """y = max(z, a z), y' = 1 where y > 0, else a, the `negative_slope`, 0 <= a < 1 (Maas, Hannun and Ng 2013)."""

    negative_slope: float = 0.01

    names = {"leaky_relu": {}}

    def __post_init__(self) -> None:
        self._check(negative_slope=fraction)

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.maximum(z, self.negative_slope * z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        above = b.xp.astype(y > 0.0, dy.dtype)
        return dy * (self.negative_slope + (1.0 - self.negative_slope) * above)


@dataclass(frozen=True)
class Softshrink(Activation):
    """y = z - t where z > t, z + t where z < -t, else 0; y' = 1 where y is not 0 (Donoho 1995), t the `threshold`."""

    threshold: float = 0.5

    names = {"softshrink": {}}

    def __post_init__(self) -> None:
        self._check(threshold=not_negative)

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return z - xp.minimum(xp.maximum(z, -self.threshold), self.threshold)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * b.xp.astype(y != 0.0, dy.dtype)


@dataclass(frozen=True)
class Softplus(Activation):
    """y = log(1 + exp(z)), y' = sigmoid(z) = 1 - exp(-y) (Dugas et al. 2001)."""

    names = {"softplus": {}}

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

    def __post_init__(self) -> None:
        self._check(alpha=positive)

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.maximum(z, 0.0) + self.alpha * xp.expm1(xp.minimum(z, 0.0))

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        e = b.xp.exp(b.xp.minimum(z, 0.0))
        return dy * (e if self.alpha == 1.0 else b.xp.where(z > 0.0, 1.0, self.alpha * e))


@dataclass(frozen=True)
class CELU(Activation):
    """y = z where z > 0, else alpha (exp(z / alpha) - 1); y' = 1 where z > 0, else exp(z / alpha) (Barron 2017)."""

    alpha: float = 1.0

    names = {"celu": {}}
    saves = "input"

    def __post_init__(self) -> None:
        self._check(alpha=positive)

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.maximum(z, 0.0) + self.alpha * xp.expm1(xp.minimum(z, 0.0) / self.alpha)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return dy * b.xp.exp(b.xp.minimum(z, 0.0) / self.alpha)


@dataclass(frozen=True)
class SELU(Activation):
    """y = l z where z > 0, else l a (exp(z) - 1); y' = l where z > 0, else l a exp(z) (Klambauer et al. 2017).

    With l = 1.0507 and a = 1.6733, and weights that start as `lecun_normal`, means of 0 and variances of 1 are kept.
    """

    names = {"selu": {}}
    saves = "input"

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return SELU_SCALE * xp.maximum(z, 0.0) + SELU_BELOW * xp.expm1(xp.minimum(z, 0.0))

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        xp = b.xp
        return dy * xp.where(z > 0.0, SELU_SCALE, SELU_BELOW * xp.exp(xp.minimum(z, 0.0)))


SELU_SCALE = 1.0507009873554804934193349852946
SELU_BELOW = SELU_SCALE * 1.6732632423543772848170429916717
"""The paper's lambda, and lambda alpha."""
