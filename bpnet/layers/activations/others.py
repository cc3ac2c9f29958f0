"""The identity, the sine, and the softmax with its logarithm, whose outputs depend on all of a row."""

from dataclasses import dataclass

from bpnet.backends.base import Array, Backend
from bpnet.layers.activation import Activation, softmax
from bpnet.options import positive


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
class Sine(Activation):
    """y = sin(w0 z), y' = w0 cos(w0 z) (Sitzmann et al. 2020, SIREN).

    Weights start as `bp.initializers.Siren`, which is `"siren"` by name; with those of the first layer as
    `Siren(first=True)`, the network's input ranges over -1 ... 1.
    """

    w0: float = 30.0

    names = {"sine": {}}
    saves = "input"

    def __post_init__(self) -> None:
        self._check(w0=positive)

    def value(self, b: Backend, z: Array) -> Array:
        return b.xp.sin(self.w0 * z)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return dy * (self.w0 * b.xp.cos(self.w0 * z))


@dataclass(frozen=True)
class Softmax(Activation):
    """y_j = exp(z_j) / sum_k exp(z_k) over the last axis; dL/dz = y (dL/dy - sum_k dL/dy_k y_k) (Bridle 1990).

    For classification train on logits with the cross_entropy loss instead: it is the same and more exact.
    """

    names = {"softmax": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return softmax(b, z)

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        return y * (dy - b.xp.sum(dy * y, axis=-1, keepdims=True))


@dataclass(frozen=True)
class LogSoftmax(Activation):
    """y_j = z_j - log sum_k exp(z_k) over the last axis; dL/dz = dL/dy - exp(y) sum_k dL/dy_k."""

    names = {"log_softmax": {}}

    def value(self, b: Backend, z: Array) -> Array:
        xp = b.xp
        shifted = z - xp.max(z, axis=-1, keepdims=True)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))

    def derivative(self, b: Backend, y: Array, dy: Array) -> Array:
        xp = b.xp
        return dy - xp.exp(y) * xp.sum(dy, axis=-1, keepdims=True)
