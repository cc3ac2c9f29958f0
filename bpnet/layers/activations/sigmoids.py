"""Activations that level off on both sides, smooth ones and those of straight lines; and the logarithm of one."""

from dataclasses import dataclass

from bpnet.backends.base import Array, Backend
from bpnet.layers.activation import Activation, sigmoid


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
class LogSigmoid(Activation):
    """y = log(1 / (1 + exp(-z))), y' = 1 / (1 + exp(z)) = 1 - exp(y)."""

    names = {"log_sigmoid": {}}

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.minimum(z, 0.0) - xp.log1p(xp.exp(-xp.abs(z)))

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return -dy * b.xp.expm1(y)


@dataclass(frozen=True)
class Tanh(Activation):
    """y = tanh(z), y' = 1 - y**2, which is 0 where y rounds to 1 or -1: its error is that of 1, not of y' itself."""

    names = {"tanh": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.tanh(z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * (1.0 - y * y)


@dataclass(frozen=True)
class Softsign(Activation):
    """y = z / (1 + |z|), y' = 1 / (1 + |z|)**2 (Turian, Bergstra and Bengio 2009)."""

    names = {"softsign": {}}
    saves = "input"

    def value(self, b: Backend, z: Array) -> Array:
        return z / (1.0 + b.xp.abs(z))

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        share = 1.0 / (1.0 + b.xp.abs(z))
        return dy * share * share


@dataclass(frozen=True)
class HardSigmoid(Activation):
    """y = min(max(z / 6 + 1/2, 0), 1), y' = 1/6 where 0 < y < 1, else 0 (Courbariaux et al. 2015; this slope as Keras 3
    and PyTorch have it)."""

    names = {"hard_sigmoid": {}}

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.minimum(xp.maximum(z + 3.0, 0.0), 6.0) / 6.0

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * b.xp.astype((y > 0.0) & (y < 1.0), dy.dtype) / 6.0


@dataclass(frozen=True)
class HardTanh(Activation):
    """y = min(max(z, -1), 1), y' = 1 where -1 < y < 1, else 0 (Collobert 2004)."""

    names = {"hard_tanh": {}}

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        return xp.minimum(xp.maximum(z, -1.0), 1.0)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return dy * b.xp.astype((y > -1.0) & (y < 1.0), dy.dtype)
