r"""What an activation is: y = f(z), and by the chain rule dL/dz = dL/dy f'(z); and one made of a user's own functions.

The catalogue is in `activations`.  Each is a layer too, so it can stand alone in a network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

from bpnet.backends import get
from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, GradientError, ShapeError, kind_of
from bpnet.layer import Derivatives, Layer, Params, Run

Pair = Callable[[Any, Array], Array]
"""A function of a namespace of the Array API and an array."""


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

    function: Pair
    slope: Pair

    saves = "input"

    def __post_init__(self) -> None:
        for name in ("function", "slope"):
            if not callable(getattr(self, name)):
                given = kind_of(getattr(self, name))
                raise ArgumentError(f"the {name} of an Activation is {given}; expected a function of (xp, z)")
        _check_pair(self.function, self.slope)

    def __repr__(self) -> str:
        return f"Activation({', '.join(getattr(f, '__name__', repr(f)) for f in (self.function, self.slope))})"

    def value(self, b: Backend, z: Array) -> Array:
        return self.function(b.xp, z)

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return dy * self.slope(b.xp, z)


STEPS = (1e-4, 1e-5, 1e-6)
"""Half-widths of the differences; the one that agrees best counts, since a kink or rounding spoils some of them."""


def _check_pair(function: Pair, slope: Pair) -> None:
    """Raise where `slope` is not the derivative of `function` at some points, at which both are numbers."""
    backend = get("numpy")
    xp = backend.xp
    z = xp.linspace(-6.1, 6.3, 82)  # at none of the places where kinks usually are
    with backend.session():
        try:
            derived, *ends = slope(xp, z), *(function(xp, z + h) for step in STEPS for h in (step, -step))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ArgumentError(
                f"the functions of an Activation are called with (xp, z), which fails: {told}"
            ) from error
        for made in (derived, *ends):
            if getattr(made, "shape", None) != z.shape:
                given = kind_of(made) if getattr(made, "shape", None) is None else f"of shape {made.shape}"
                raise ShapeError(f"a function of an Activation gave what is {given} for z of shape {z.shape}")
        measured = [(up - down) / (2.0 * h) for h, up, down in zip(STEPS, ends[::2], ends[1::2], strict=True)]
        off = xp.min(xp.stack([xp.abs(derived - m) / xp.maximum(xp.abs(m), 1.0) for m in measured]), axis=0)
        known = xp.isfinite(measured[-1]) & xp.isfinite(ends[-1])
        wrong = known & ~(off < 1e-5)  # so is a slope that is no number
        if not xp.any(known):
            raise GradientError("the function of an Activation is finite nowhere from -6 to 6")
        if xp.any(wrong):
            i = int(xp.argmax(xp.astype(wrong, xp.int8)))
            says = f"its slope there is {float(derived[i]):.6g}, but differences of the function say"
            raise GradientError(f"Activation at z = {float(z[i]):.6g}: {says} {float(measured[1][i]):.6g}")
