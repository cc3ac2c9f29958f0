r"""What an activation is: y = f(z), and by the chain rule dL/dz = dL/dy f'(z); and one made of a user's own functions.

The catalogue is in `activations`.  Each is a layer too, so it can stand alone in a network.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, kind_of
from bpnet.layer import Derivatives, Layer, Params, Run
from bpnet.slopes import Elementwise, check_slope


class Activation(Layer):
    """Base of the activations: `value` and `derivative`, and which of input and output the derivative reads.

    `Activation(function, slope)` is the activation y = function(xp, z) with f'(z) = slope(xp, z), both elementwise, of
    functions of the namespace `xp`:

        bp.Activation(lambda xp, z: xp.sin(z) ** 2, lambda xp, z: 2.0 * xp.sin(z) * xp.cos(z))

    They are held against each other by central differences at once: GradientError says where they don't agree.  It
    trains and is compiled as any other; a file holds no functions, so to save it, write a subclass, a frozen dataclass.
    """

    saves: ClassVar[str] = "output"
    """What `derivative` is given: the "output" y, the "input" z, or "nothing"."""
    needs = ("value", "derivative")

    def __new__(cls, *args: Any, **options: Any) -> "Activation":
        return object.__new__(_Own if cls is Activation else cls)

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


@dataclass(frozen=True, repr=False)
class _Own(Activation):
    """y = function(xp, z), y' = slope(xp, z): see `Activation`."""

    function: Elementwise
    slope: Elementwise

    saves = "input"

    def __post_init__(self) -> None:
        for name in ("function", "slope"):
            if not callable(getattr(self, name)):
                given = kind_of(getattr(self, name))
                raise ArgumentError(f"the {name} of an Activation is {given}; expected a function of (xp, z)")
        check_slope(self.function, self.slope)

    def __repr__(self) -> str:
        return f"Activation({', '.join(getattr(f, '__name__', repr(f)) for f in (self.function, self.slope))})"

    def value(self, b: Backend, z: Array) -> Array:
        return self.function(b.xp, z)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return dy * self.slope(b.xp, z)
